"""What the commands share: the types of their arguments, options, and how they answer."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn, TextIO

import click

from cbtlab.errors import InputError
from cbtlab.units import parse_size, parse_time

POLICIES = ("allocated", "extents", "union")
DONE, FOUND, UNUSABLE = 0, 1, 2


class Size(click.ParamType[int]):
    """Bytes, or a number with K, M, G or T behind."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        return parse_size(value, param.opts[0] if param else "size")


SIZE = Size()
FOLDER = click.Path(path_type=Path)
as_json = click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
force = click.option("--force", is_flag=True, help="Replace an output that exists.")


def with_rules(command: Callable[..., Any]) -> Callable[..., Any]:
    """Take rules: ``--exclude``, ``--exclude-from``, ``--set``, and what ages count from."""
    for option in (
        click.option(
            "--instant", metavar="TIME", help="The snapshot's instant, which ages count from."
        ),
        click.option(
            "--set", "sets", multiple=True, metavar="NAME", help="A ready-made set of rules."
        ),
        click.option("--exclude-from", type=FOLDER, help="A file of rules, before --exclude."),
        click.option(
            "--exclude",
            multiple=True,
            metavar="RULE",
            help="A gitignore pattern, perhaps with [size>100M], [age>90d], [owner=1000].",
        ),
    ):
        command = option(command)
    return command


def instant_ns(text: str | None) -> int | None:
    """Return an instant as nanoseconds since 1970 UTC; None for none given."""
    return None if text is None else int(parse_time(text, "--instant").astype("int64"))


def say(*words: object) -> None:
    """Print words for a person: to stderr, so that stdout holds results alone."""
    try:
        click.echo(" ".join(map(str, words)), err=True)
    except OSError:  # nobody listens, or the disk behind it is full
        let_go(sys.stderr)


def answer(document: dict[str, Any], shown: bool, words: Callable[[], str] | str) -> None:
    """Print the result: as JSON where it was asked for, else in words."""
    if shown:
        text = json.dumps(document, allow_nan=False)
    else:
        text = words if isinstance(words, str) else words()
    if sys.stdout is None:
        raise InputError("standard output", "is closed", "the result has nowhere to go")
    try:
        click.echo(text)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise InputError("standard output", f"cannot be written: {error.strerror}") from error


def status(holds: bool) -> NoReturn:
    """Leave with the exit status of a check that holds, or that found something."""
    sys.exit(DONE if holds else FOUND)


def let_go(stream: TextIO | None) -> None:
    """Lead a stream that takes nothing more to nowhere, so that leaving does not fail on it."""
    with suppress(OSError, ValueError, AttributeError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())  # type: ignore[union-attr]
        os.close(null)
