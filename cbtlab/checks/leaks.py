"""Searches a restored volume, and the image file of its link, for content of excluded files.

One pass over the volume looks at whole sectors everywhere, and, where no kept file's content
lies, at every byte for short pieces, for parts of sectors and for names.  Only if something is
found are the kept files looked into: what one of them has too is no leak.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from cbtlab.checks.areas import complement
from cbtlab.checks.common import COMPARED, Common
from cbtlab.checks.content import Content, Source
from cbtlab.checks.contents import kept_ranges
from cbtlab.checks.hits import Hits, Searches, found_in, read_at, whole_windows
from cbtlab.checks.material import Material
from cbtlab.checks.needles import Needles
from cbtlab.checks.sectors import fingerprints
from cbtlab.checks.streams import Bools, Ints, read_ranges, table
from cbtlab.checks.windows import WIDTH
from cbtlab.files.ranges import Ranges
from cbtlab.images import Image
from cbtlab.units import SECTOR


@dataclass(frozen=True)
class Finds:
    """Leaks, rising: offset and length of each, and the place on the snapshot of backup ``origin``.

    Pieces have no place but a path of their own, by offset and origin.
    """

    offset: Ints
    length: Ints
    origin: Ints
    place: Ints
    paths: list[str]
    sources: dict[int, Source]

    def whose(self, n: int) -> tuple[str, int]:
        """Whose content find ``n`` is, and the backup that excludes it."""
        k, place, at = int(self.origin[n]), int(self.place[n]), int(self.of_piece[n])
        return (self.paths[at] if at >= 0 else self.sources[k].path_at(place)), k

    of_piece: Ints = field(default_factory=lambda: np.zeros(0, np.int64))


class Leaks:
    """The search of one backup.  ``content`` forgets what turns out to be a kept file's too.

    ``named`` are hits of the ``names`` that were given, for who wants to judge them;
    ``searches`` is ready for the content that is left.
    """

    def __init__(self, m: Material, content: Content, names: Needles | None = None) -> None:
        assert m.restored is not None
        self._m, self._content = m, content
        self.kept = kept_ranges(m)
        area = complement(self.kept, m.size)
        searches = Searches(content, self._read_by_bytes(area), names)
        sectors, pieces, windows, self.named = found_in(m.restored, searches, area)
        known = len(content.keys), len(content.pieces), len(content.windows.place)
        self.finds = self._judged(sectors, pieces, windows)
        left = len(content.keys), len(content.pieces), len(content.windows.place)
        self.searches = searches if left == known else Searches(content, 0)

    def _read_by_bytes(self, area: Ranges) -> int:
        """About how many bytes are searched one by one: the area, less what is known to be zero."""
        plan = self._m.plan
        assert plan is not None
        held = plan.held.count() * plan.held.granularity - int(self.kept.length.sum())
        return max(0, min(int(area.length.sum()), held))

    def _judged(self, sectors: Hits, pieces: Hits, windows: Hits) -> Finds:
        m, content = self._m, self._content
        assert m.restored is not None
        every = list(content.pieces)
        common = np.zeros(len(content.keys), np.bool_)
        inside = _within(self.kept, sectors.offset, SECTOR)
        common[_same_sectors(m.mapped_image, content, sectors[inside])] = True
        sectors = sectors[~common[sectors.number]]
        sectors = sectors[self._identical(sectors)]
        new = ~np.isin(windows.offset // SECTOR * SECTOR, sectors.offset)
        new &= ~_touches(self.kept, windows.offset, WIDTH)
        windows, parts = whole_windows(m, m.restored, content, windows[new])
        also = Common(m, self.kept, content, sectors, pieces, parts)
        common[also.sectors] = True
        sectors = sectors[~common[sectors.number]]
        pieces = pieces[~np.isin(pieces.number, also.pieces)]
        windows = windows[~np.isin(windows.number, also.windows)]
        finds = _told(content, every, sectors, pieces, windows)
        gone = np.zeros(len(content.windows.middle), np.bool_)
        gone[also.windows] = True
        content.windows.drop(gone)
        content.drop(common, {every[n] for n in also.pieces.tolist()})
        return finds

    def _identical(self, hits: Hits) -> Bools:
        """Compare the first finds with what they are said to be, byte by byte."""
        assert self._m.restored is not None
        content, same = self._content, np.ones(len(hits), np.bool_)
        first = [
            n for n in range(min(len(hits), COMPARED)) if int(content.place[hits.number[n]]) >= 0
        ]
        places = [
            (int(content.origin[i]), int(content.place[i])) for i in (hits.number[n] for n in first)
        ]
        want = read_at(self._m, places, SECTOR)
        for n, data in zip(first, want, strict=True):
            same[n] = self._m.restored.read(int(hits.offset[n]), SECTOR) == data
        return same


def _told(
    content: Content, every: list[bytes], sectors: Hits, pieces: Hits, windows: Hits
) -> Finds:
    """All hits as finds, by rising offset."""
    own = [content.pieces[every[n]] for n in pieces.number.tolist()]
    long = np.array([len(every[n]) for n in pieces.number.tolist()], np.int64)
    nowhere = np.full(len(own), 0, np.int64)
    columns = (
        (sectors.offset, pieces.offset, windows.offset),
        (np.full(len(sectors), SECTOR), long, np.full(len(windows), WIDTH)),
        (
            content.origin[sectors.number],
            np.array([k for k, _ in own], np.int64),
            content.windows.origin[windows.number],
        ),
        (content.place[sectors.number], nowhere, content.windows.place[windows.number]),
        (np.full(len(sectors), -1), np.arange(len(own)), np.full(len(windows), -1)),
    )
    offset, length, origin, place, piece = (np.concatenate(parts) for parts in columns)
    order = np.argsort(offset, kind="stable")
    return Finds(
        offset[order],
        length[order],
        origin[order],
        place[order],
        [path for _, path in own],
        content.sources,
        piece[order],
    )


def _within(ranges: Ranges, offset: Ints, length: int) -> Bools:
    """Return which spans lie whole in one of the ranges."""
    if not len(ranges.end):
        return np.zeros(len(offset), np.bool_)
    at = np.searchsorted(ranges.start, offset, side="right") - 1
    return np.asarray((at >= 0) & (offset + length <= ranges.end[np.maximum(at, 0)]))


def _touches(ranges: Ranges, offset: Ints, length: int) -> Bools:
    """Return which spans have a byte in common with one of the ranges."""
    low = np.searchsorted(ranges.end, offset, side="right")
    high = np.searchsorted(ranges.start, offset + length, side="left")
    return np.asarray(high > low)


def _same_sectors(image: Image, content: Content, hits: Hits) -> Ints:
    """Return which keys S_k itself has at these offsets: there a kept file holds them."""
    if not len(hits):
        return hits.number
    order = np.argsort(hits.offset)
    offset, key = hits.offset[order], hits.number[order]
    seen = [
        np.zeros(length // SECTOR, np.uint64) if part is None else fingerprints(table(part, SECTOR))
        for _, length, part in read_ranges(image, offset, np.full(len(offset), SECTOR))
    ]
    same = content.keys[key] == np.concatenate(seen)
    return np.asarray(key[same])
