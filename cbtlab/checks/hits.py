"""Searches an image once for content of excluded files, and for their names."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from cbtlab.checks.areas import chunks_and_areas
from cbtlab.checks.content import Content
from cbtlab.checks.material import Material
from cbtlab.checks.needles import Needles
from cbtlab.checks.pieces import LONGEST
from cbtlab.checks.sectors import Known
from cbtlab.checks.streams import Bools, Ints, table
from cbtlab.checks.windows import BEFORE, WIDTH
from cbtlab.files.ranges import Ranges
from cbtlab.images import CHUNK, Image
from cbtlab.units import SECTOR


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
    parts = dict(zip(placed, read_at(m, places, WIDTH), strict=True))
    hits = hits[_same_as(image, hits, parts)]
    number, first = np.unique(hits.number, return_index=True)
    places_of = zip(number.tolist(), hits.offset[first].tolist(), strict=True)
    return hits, {n: parts[n] if n in parts else image.read(at, WIDTH) for n, at in places_of}


def _same_as(image: Image, hits: Hits, parts: dict[int, bytes]) -> Bools:
    """Return where an image has what the windows are; decoded ones have nothing to compare with."""
    good = np.ones(len(hits), np.bool_)
    numbers = np.array(sorted(parts), np.int64)
    if not len(numbers):
        return good
    flat = np.frombuffer(b"".join(parts[n] for n in numbers.tolist()), np.uint8)
    rows = flat.reshape(-1, WIDTH)
    at = np.minimum(np.searchsorted(numbers, hits.number), len(numbers) - 1)
    known = np.flatnonzero(numbers[at] == hits.number)
    order = known[np.argsort(hits.offset[known], kind="stable")]
    chunk = hits.offset[order] // CHUNK
    bounds = np.flatnonzero(np.concatenate(([True], chunk[1:] != chunk[:-1], [True])))
    for low, high in pairwise(bounds.tolist() if len(order) else []):
        mine, start = order[low:high], int(chunk[low]) * CHUNK
        data = image.load(start, min(CHUNK + WIDTH, image.size - start))
        data = np.zeros(CHUNK + WIDTH, np.uint8) if data is None else data
        places = (hits.offset[mine] - start)[:, None] + np.arange(WIDTH)
        good[mine] = (data[places] == rows[at[mine]]).all(axis=1)
    return good


def read_at(m: Material, places: list[tuple[int, int]], length: int) -> list[bytes]:
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
