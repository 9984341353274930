"""Searches a restored volume, and the image file of its link, for content of excluded files.

One pass over the volume looks at whole sectors everywhere, and, where no kept file's content
lies, at every byte for short pieces, for parts of sectors and for names.  Only if something is
found are the kept files looked into: what one of them has too is no leak.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from cbtlab.checks.areas import chunks_and_areas, complement
from cbtlab.checks.content import Content, Source, attributes
from cbtlab.checks.contents import kept_ranges
from cbtlab.checks.material import Material
from cbtlab.checks.needles import Needles
from cbtlab.checks.pieces import LONGEST, Search
from cbtlab.checks.sectors import Known, fingerprints
from cbtlab.checks.streams import Bools, Ints, read_ranges, table
from cbtlab.checks.windows import BEFORE, WIDTH
from cbtlab.files.ranges import Ranges
from cbtlab.images import Image
from cbtlab.units import SECTOR

_COMPARED = 1000  # sectors that are compared byte by byte; 64 bits vouch for the others
_PROOF = slice(224, 288)  # the part of a found sector that kept files are searched for


@dataclass(frozen=True)
class Hits:
    """Where something was found: its offset, and its number among what was looked for."""

    offset: Ints
    number: Ints

    @classmethod
    def join(cls, parts: list[tuple[Ints, Ints]]) -> Hits:
        """All of them, each place and number once."""
        offset = np.concatenate([np.zeros(0, np.int64), *(part[0] for part in parts)])
        number = np.concatenate([np.zeros(0, np.int64), *(part[1] for part in parts)])
        return cls(offset, number)

    def __getitem__(self, which: Bools) -> Hits:
        return Hits(self.offset[which], self.number[which])

    def __len__(self) -> int:
        return len(self.offset)


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


class Searches:
    """What is looked for, made ready for ``area`` bytes: sectors, pieces, windows, and names."""

    def __init__(self, content: Content, area: int, names: Needles | None = None) -> None:
        self.sectors = Known(content.keys, content.probe)
        self.needles = [Needles.of(list(content.pieces), area), content.windows.needles(area)]
        self.needles += [] if names is None else [names]


def found_in(image: Image, searches: Searches, area: Ranges) -> tuple[Hits, Hits, Hits, Hits]:
    """Search an image once; return the hits of sectors, pieces, windows, and names.

    Sectors are looked for all over it, in their places; the others in ``area``, at every byte.
    Of a window the middle was seen; `whole_windows` says which are whole.
    """
    needles = searches.needles
    overlap = max(LONGEST, *(search.rows.shape[1] for search in needles)) - 1
    sectors: list[tuple[Ints, Ints]] = []
    others: list[list[tuple[Ints, Ints]]] = [[], [], []]
    for offset, chunk, part in chunks_and_areas(image, area, overlap):
        if chunk is not None:
            at, key = searches.sectors.find(table(chunk, SECTOR))
            sectors.append((offset + at * SECTOR, key))
        if part is None:
            continue
        for search, hits in zip(needles, others, strict=False):
            at, number = search.places(part.flat)
            place, good = part.placed(at, search.length[number])
            hits.append((place[good], number[good]))
    pieces, windows, named = (Hits.join(hits) for hits in others)
    return Hits.join(sectors), pieces, Hits(windows.offset - BEFORE, windows.number), named


def whole_windows(
    m: Material, image: Image, content: Content, hits: Hits
) -> tuple[Hits, dict[int, bytes]]:
    """Return the windows that are whole where their middle was seen, and the bytes of each.

    They are compared with the snapshot that they were taken from.
    """
    windows = content.windows
    hits = hits[(hits.offset >= 0) & (hits.offset + WIDTH <= image.size)]
    placed = [n for n in np.unique(hits.number).tolist() if int(windows.place[n]) >= 0]
    places = [(int(windows.origin[n]), int(windows.place[n])) for n in placed]
    parts = dict(zip(placed, _read_at(m, places, WIDTH), strict=True))
    good = np.zeros(len(hits), np.bool_)
    for at, (offset, n) in enumerate(zip(hits.offset.tolist(), hits.number.tolist(), strict=True)):
        data = image.read(offset, WIDTH)
        good[at] = parts.setdefault(n, data) == data  # decoded content: nothing to compare with
    hits = hits[good]
    there = set(np.unique(hits.number).tolist())
    return hits, {n: data for n, data in parts.items() if n in there}


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
        also = _Kept(m, self.kept, content, sectors, pieces, parts)
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
            n for n in range(min(len(hits), _COMPARED)) if int(content.place[hits.number[n]]) >= 0
        ]
        places = [
            (int(content.origin[i]), int(content.place[i])) for i in (hits.number[n] for n in first)
        ]
        want = _read_at(self._m, places, SECTOR)
        for n, data in zip(first, want, strict=True):
            same[n] = self._m.restored.read(int(hits.offset[n]), SECTOR) == data
        return same


class _Kept:
    """Which of what was found kept files have too, at any byte: numbers of each kind."""

    def __init__(
        self,
        m: Material,
        kept: Ranges,
        content: Content,
        sectors: Hits,
        pieces: Hits,
        windows: dict[int, bytes],
    ) -> None:
        assert m.restored is not None
        self.sectors, self.pieces, self.windows = (np.zeros(0, np.int64) for _ in range(3))
        every = list(content.pieces)
        one, place = np.unique(sectors.number, return_index=True)
        one, place = one[:_COMPARED], sectors.offset[place[:_COMPARED]]
        whole = [m.restored.read(at, SECTOR) for at in place.tolist()]
        two, three = np.unique(pieces.number), np.array(sorted(windows), np.int64)
        looked = [data[_PROOF] for data in whole]
        looked += [every[n] for n in two.tolist()] + [windows[n] for n in three.tolist()]
        if not looked:
            return
        shared = set()
        for at, n in Search(looked).find(m.restored, kept):
            if n < len(one):
                data, begin = whole[n], at - _PROOF.start
            else:
                data, begin = looked[n], at
            inside = bool(_within(kept, np.array([begin]), len(data))[0])
            if n not in shared and inside and m.mapped_image.read(begin, len(data)) == data:
                shared.add(n)
        beside = beside_content(m)
        shared |= {n for n in range(len(one), len(looked)) if looked[n] in beside}
        found = np.array(sorted(shared), np.int64)
        first, second = len(one), len(one) + len(two)
        self.sectors = one[found[found < first]]
        self.pieces = two[found[(found >= first) & (found < second)] - first]
        self.windows = three[found[found >= second] - second]


def beside_content(m: Material) -> bytes:
    """Return what S_k keeps beside the content of files: names, and attributes of kept inodes."""
    assert m.before is not None and m.exclusion is not None
    names = m.before.names
    leaves = {bytes(raw).rpartition(b"/")[2] for raw in names["raw"]}
    kept = names.loc[~names["path"].isin(m.exclusion.files["path"]), "inode"].unique()
    values = {value for inode in kept.tolist() for value in attributes(m, int(inode))}
    return b"\0".join([*leaves, *values])


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


def _read_at(m: Material, places: list[tuple[int, int]], length: int) -> list[bytes]:
    """Read bytes of the snapshots of several backups: of each, the backup and the offset."""
    found = [b""] * len(places)
    for k in sorted({k for k, _ in places}):
        with m.case.interval(k).mended() as image:
            for n in _positions(places, k):
                found[n] = image.read(places[n][1], length)
    return found


def _positions(places: list[tuple[int, int]], k: int) -> Iterator[int]:
    """The positions of one backup's places, by rising offset: neighbours are read together."""
    mine = [n for n, place in enumerate(places) if place[0] == k]
    yield from sorted(mine, key=lambda n: places[n][1])


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
