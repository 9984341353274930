"""The one error type: what is wrong with which piece, and the way out."""

from __future__ import annotations


class CbtlabError(Exception):
    """An error that a user can act on, told in one line.

    ``piece`` names the file, volume or option; ``fault`` says what is wrong
    with it; ``remedy`` says what to do.  The command line prints the line and
    ends with exit status 2.
    """

    def __init__(self, piece: object, fault: str, remedy: str = "") -> None:
        self.piece = str(piece)
        self.fault = fault
        self.remedy = remedy
        super().__init__(piece, fault, remedy)

    def __str__(self) -> str:
        line = f"{self.piece}: {self.fault}"
        if self.remedy:
            line += f"; {self.remedy}"
        return " ".join(line.split())


class InputError(CbtlabError, ValueError):
    """The input, or the call, cannot be used."""


class NotAtRest(InputError):
    """A file system whose journal or log waits for a replay, or that was not ended cleanly."""
