"""Names as the file system has them, in bytes, and as text that shows every byte."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Walk:
    """What a walk found: full paths as bytes with their inodes, in the order of the walk.

    ``faults`` tells what could not be read: there names may be missing.
    """

    paths: list[bytes]
    inodes: npt.NDArray[np.int64]
    faults: list[str]


_LOOKS_ESCAPED = re.compile(r"\\(?=x[0-9a-fA-F]{2})")
_SURROGATE = re.compile(r"[\udc80-\udcff]")


def text(raw: bytes) -> str:
    r"""A name or path for people: bytes that are not UTF-8 show as ``\xNN``.

    A backslash that would look like such an escape shows as ``\x5c``, so that no two
    paths have one text.
    """
    try:
        name = raw.decode()
    except UnicodeDecodeError:
        name = raw.decode(errors="surrogateescape")
    if "\\" in name:
        name = _LOOKS_ESCAPED.sub(r"\\x5c", name)
    if not name.isascii():
        name = _SURROGATE.sub(lambda at: f"\\x{ord(at.group()) - 0xDC00:02x}", name)
    return name


def texts(names: list[bytes]) -> list[str]:
    """`text` of many names, none of which holds a zero byte: those that are plain all at once."""
    whole = b"\0".join(names)
    if names and whole.isascii() and b"\\" not in whole:
        return whole.decode().split("\0")
    return [text(name) for name in names]


def raw(path: str) -> bytes:
    r"""The bytes of what `text` shows."""
    parts = re.split(r"\\x([0-9a-fA-F]{2})", path)
    return b"".join(
        bytes([int(part, 16)]) if at % 2 else part.encode(errors="surrogateescape")
        for at, part in enumerate(parts)
    )
