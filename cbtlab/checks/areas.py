"""Reads an image once, and gives apart what of it lies in some ranges, for a search by bytes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from cbtlab.checks.streams import Bools, Bytes, Ints
from cbtlab.files.ranges import Ranges
from cbtlab.images import CHUNK, Image


@dataclass(frozen=True)
class Area:
    """Bytes of an image, one run behind the other: ``flat``, and of each run its first byte.

    ``begin`` counts within ``flat``, ``place`` within the image.  What ends at ``fresh`` or
    before was in the area before this one.
    """

    flat: Bytes
    begin: Ints
    place: Ints
    fresh: int

    def placed(self, at: Ints, length: Ints) -> tuple[Ints, Bools]:
        """Where finds lie in the image, and which are whole in one run and new."""
        run = np.searchsorted(self.begin, at, side="right") - 1
        end = np.append(self.begin[1:], len(self.flat))[run]
        place = self.place[run] + at - self.begin[run]
        return place, np.asarray((at + length <= end) & (place + length > self.fresh), np.bool_)


def chunks_and_areas(
    image: Image, wanted: Ranges, overlap: int, length: int = CHUNK
) -> Iterator[tuple[int, Bytes | None, Area | None]]:
    """Yield every chunk of an image, its offset first, with the area of what is ``wanted`` of it.

    Of a run that goes on behind a chunk, the last ``overlap`` bytes come again.  A chunk that is
    known to be zero is None.
    """
    rest = np.zeros(0, np.uint8)
    for offset, data in image.chunks(length):
        chunk = None if data is None else np.frombuffer(data, np.uint8)
        if chunk is None:
            area = None
            if len(rest):  # what began before may end in zeros
                zeros = np.zeros(min(overlap, image.size - offset), np.uint8)
                area = _area(np.concatenate([rest, zeros]), offset - len(rest), offset)
            rest = rest[:0]
            yield offset, None, area
            continue
        low, high = np.array([offset]), np.array([offset + len(chunk)])
        _, start, end = wanted.clipped(low, high)
        yield offset, chunk, _cut(chunk, offset, start, end, rest)
        rest = rest[:0]
        if len(end) and int(end[-1]) == offset + len(chunk):
            many = min(overlap, int(end[-1] - start[-1]))
            rest = chunk[len(chunk) - many :]


def complement(ranges: Ranges, size: int) -> Ranges:
    """What of ``size`` bytes the ranges do not cover."""
    start = np.concatenate(([0], ranges.end))
    end = np.concatenate((ranges.start, [size]))
    return Ranges.union(start, np.maximum(np.minimum(end, size) - start, 0))


def _area(flat: Bytes, place: int, fresh: int) -> Area:
    return Area(flat, np.zeros(1, np.int64), np.array([place], np.int64), fresh)


def _cut(chunk: Bytes, offset: int, start: Ints, end: Ints, rest: Bytes) -> Area | None:
    """What of a chunk lies in ranges; ``rest`` is what came before its first byte."""
    if not len(start):
        return None
    if len(start) == 1 and len(rest) == 0:
        flat = chunk[int(start[0]) - offset : int(end[0]) - offset]
        return Area(flat, np.zeros(1, np.int64), start, offset)
    bounds = zip((start - offset).tolist(), (end - offset).tolist(), strict=True)
    parts = [chunk[low:high] for low, high in bounds]
    length = end - start
    if len(rest) and int(start[0]) == offset:
        parts.insert(0, rest)
        length[0] += len(rest)
        start = np.concatenate(([offset - len(rest)], start[1:]))
    begin = np.cumsum(length) - length
    return Area(np.concatenate(parts), begin, start, offset)
