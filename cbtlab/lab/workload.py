"""What people and programs do to a file system, in small pieces for scenarios; stdlib only."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from pathlib import Path

from cbtlab.lab.content import text

PAGE = 4096


def write(path: Path, seed: str, size: int) -> None:
    """Write a whole file of text."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text(seed, size))


def append(path: Path, seed: str, size: int) -> None:
    """Append text to a file, as a log grows."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as out:
        out.write(text(seed, size))


def rewrite(path: Path, seed: str, pages: list[int]) -> None:
    """Rewrite pages of a file in place, as a database does."""
    with path.open("r+b") as out:
        for page in pages:
            out.seek(page * PAGE)
            out.write(text(f"{seed} {page}", PAGE))
        out.flush()
        os.fsync(out.fileno())


def preallocate(path: Path, size: int) -> None:
    """Give a file blocks that it has not written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    # Not opened to append, nor for writing alone: libc fills where the kernel cannot.
    with path.open("r+b") as out:
        os.posix_fallocate(out.fileno(), 0, size)


def fill_up(path: Path, piece: int = 8 << 20) -> None:
    """Preallocate until the file system is full, so that only freed blocks can be had."""
    with path.open("ab") as out:
        offset = 0
        while piece >= PAGE:
            try:
                os.posix_fallocate(out.fileno(), offset, piece)
                offset += piece
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
                piece //= 2
        os.fsync(out.fileno())


def settle(root: Path) -> None:
    """Commit, so that freed blocks can be given to others."""
    os.sync()
    fd = os.open(root, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def interleave(paths: Sequence[Path], seed: str, pieces: int, size: int = PAGE) -> None:
    """Append to several files in turns, each piece on the disk before the next: fragments."""
    for number in range(pieces):
        for path in paths:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("ab") as out:
                out.write(text(f"{seed} {path.name} {number}", size))
                out.flush()
                os.fsync(out.fileno())


def scatter(path: Path, seed: str, places: Sequence[int], size: int = PAGE) -> None:
    """Write pieces of text at ``places`` (bytes) of a file: what lies between is a hole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as out:
        for place in places:
            out.seek(place)
            out.write(text(f"{seed} {place}", size))
            out.flush()
            os.fsync(out.fileno())
