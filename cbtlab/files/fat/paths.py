"""Full paths of a tree that is read level by level, within bounds on its depth and its length."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from cbtlab.errors import InputError

DEEPEST = 1024
LONGEST = 1 << 30  # bytes of all paths together


class Paths:
    """The paths of files and folders, in the order in which they were found.

    ``fault`` makes the error to raise for names that no path can hold, and for too many.
    """

    def __init__(self, fault: Callable[[str], InputError]) -> None:
        self._fault = fault
        self.found: list[bytes] = []
        self._above: list[bytes] = [b"/"]
        self._level: list[bytes] = []
        self._depth = self._length = 0

    def full(self, at: int) -> bytes:
        """The path of a folder of the level that is read now, without the slash behind it."""
        path = self._above[at] if at < len(self._above) else b"/"
        return path[:-1] or path

    def add(self, folder: npt.NDArray[np.int64], names: list[bytes]) -> None:
        """Take the names of some records; ``folder`` are positions in the level above."""
        for bad in (b"", b".", b".."):
            if bad in names:
                raise self._fault(f"a record has the impossible name {bad!r}")
        above = self._above
        self._length += sum(map(len, names)) + sum(len(above[at]) for at in folder.tolist())
        if self._length > LONGEST:
            raise self._fault(f"its paths have more than {LONGEST} bytes")
        if any(b"/" in name for name in names):
            raise self._fault("a name has a slash in it")
        level = [above[at] + name for at, name in zip(folder.tolist(), names, strict=True)]
        self._level += level
        self.found += level

    def descend(self, folders: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Go to the next level: that of ``folders``, which are positions in this one.

        Returns their positions as folders of the level that is read then.
        """
        self._depth += 1
        if self._depth > DEEPEST:
            raise self._fault(f"its folders lie more than {DEEPEST} deep in each other")
        if self._level:
            self._above = [self._level[at] + b"/" for at in folders.tolist()]
        else:
            self._above = [b"/..."] * len(folders)  # names were not asked for
        self._level = []
        return np.arange(len(folders))
