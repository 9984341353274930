"""Reading big images side by side, and masks in step with them: memory stays flat."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from cbtlab.bitmap import Bitmap
from cbtlab.images import CHUNK, Image

Bytes = npt.NDArray[np.uint8]
Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]


class ZeroImage(Image):
    """A disk of zeros: what lies under a full backup."""

    def __init__(self, size: int) -> None:
        super().__init__("zeros", size)

    def load(self, offset: int, length: int) -> None:
        """Return None: everything is zero."""
        return

    def close(self) -> None:
        """There is nothing to close."""


def marks(bitmap: Bitmap, offset: int, length: int, granularity: int) -> Bools:
    """Return the marks of ``length`` bytes at ``offset``, one value per ``granularity`` bytes.

    ``offset`` is a multiple of both granularities; ``granularity`` is the
    bitmap's own or finer, where a mark repeats.
    """
    first = offset // bitmap.granularity
    last = -(-(offset + length) // bitmap.granularity)
    packed = np.frombuffer(bitmap.bits[first:last].tobytes(), np.uint8)
    own = np.unpackbits(packed, count=last - first, bitorder="little").view(np.bool_)
    repeated = np.repeat(own, bitmap.granularity // granularity)
    return repeated[: -(-length // granularity)]


def rows(data: memoryview | None, granularity: int) -> Bytes | None:
    """Return a chunk as `table`, or None for known zeros."""
    return None if data is None else table(np.frombuffer(data, np.uint8), granularity)


def table(flat: Bytes, granularity: int) -> Bytes:
    """Return bytes as rows of ``granularity``; a partial last row is filled up with zeros."""
    if len(flat) % granularity:
        flat = np.pad(flat, (0, -len(flat) % granularity))
    return flat.reshape(-1, granularity)


def not_zero(part: Bytes) -> Bools:
    """Return which rows hold a byte that is not zero."""
    return np.asarray(part.view(np.uint64).any(axis=1))


def unequal(one: Bytes | None, other: Bytes | None, length: int) -> Bools:
    """Return which rows differ; None stands for ``length`` rows of zeros."""
    if one is None and other is None:
        return np.zeros(length, np.bool_)
    if one is None or other is None:
        return not_zero(one if other is None else other)  # type: ignore[arg-type]
    return np.asarray((one.view(np.uint64) != other.view(np.uint64)).any(axis=1))


def read_ranges(
    image: Image, start: Ints, length: Ints, most: int = CHUNK
) -> Iterator[tuple[int, int, Bytes | None]]:
    """Yield offset, length and bytes of ranges, rising, joined where they touch.

    At most ``most`` bytes come at a time; None stands for zeros that were not
    read.  The ranges must not overlap.
    """
    order = np.argsort(start, kind="stable")
    begin, end = start[order], (start + length)[order]
    if not len(begin):
        return
    gap = np.concatenate([[True], begin[1:] > end[:-1]])
    lows = begin[gap]
    highs = np.maximum.reduceat(end, np.flatnonzero(gap))
    for low, high in zip(lows.tolist(), highs.tolist(), strict=True):
        for offset in range(low, high, most):
            count = min(most, high - offset)
            yield offset, count, image.load(offset, count)


def inside(points: Ints, start: Ints, length: Ints) -> Bools:
    """Return which points lie in one of the ranges, which rise and do not overlap."""
    if not len(start):
        return np.zeros(len(points), np.bool_)
    at = np.searchsorted(start, points, side="right") - 1
    return np.asarray((at >= 0) & (points < (start + length)[np.maximum(at, 0)]))


def pair(one: Image, other: Image) -> Iterator[tuple[int, int, Any, Any]]:
    """Yield offset, length and both contents of two images of one size, chunk by chunk."""
    for (offset, left), (_, right) in zip(one.chunks(), other.chunks(), strict=True):
        yield offset, min(CHUNK, one.size - offset), left, right


def first_unequal(one: Image, other: Image, offset: int, length: int) -> int | None:
    """Return the first byte in a range at which two images differ, or None."""
    left = np.frombuffer(one.read(offset, length), np.uint8)
    odd = np.flatnonzero(left != np.frombuffer(other.read(offset, length), np.uint8))
    return offset + int(odd[0]) if len(odd) else None
