"""Parts of the sectors of excluded files, which are looked for at any byte.

Of every sector two windows of 32 bytes are remembered by their middle 16, so that 287 bytes in
a row that lie anywhere hold a whole one.  What is found is compared with the file again.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from cbtlab.checks.needles import Needles
from cbtlab.checks.streams import Bools, Bytes, Ints

WIDTH = 32  # bytes
BEFORE, MIDDLE = 8, 16  # bytes of a window before its middle, and in it
_PLACES = (112, 368)  # in a sector
_TELLING = 8  # different bytes in a window: with less it may be anybody's


@dataclass
class Windows:
    """``middle`` has a row a window; ``origin`` is the backup, ``place`` the byte on its S_k."""

    middle: Bytes = field(default_factory=lambda: np.zeros((0, MIDDLE), np.uint8))
    origin: npt.NDArray[np.int32] = field(default_factory=lambda: np.zeros(0, np.int32))
    place: Ints = field(default_factory=lambda: np.zeros(0, np.int64))

    def add(self, k: int, taken: list[tuple[Bytes, Ints]]) -> None:
        """Take in what `taken_from` gave for sectors of S_k that were not known."""
        new = sum(len(places) for _, places in taken)
        self.middle = np.concatenate([self.middle, *(rows for rows, _ in taken)])
        self.origin = np.concatenate([self.origin, np.full(new, k, np.int32)])
        self.place = np.concatenate([self.place, *(places for _, places in taken)])

    def drop(self, gone: Bools) -> None:
        """Forget windows that a kept file holds too."""
        self.middle = self.middle[~gone]
        self.origin = self.origin[~gone]
        self.place = self.place[~gone]

    def needles(self, area: int) -> Needles:
        """The windows' middles, to be looked for in ``area`` bytes."""
        return Needles(self.middle, np.full(len(self.middle), MIDDLE, np.int64), area)


def taken_from(sectors: Bytes, places: Ints) -> tuple[Bytes, Ints]:
    """Return the middles of the windows of sectors, and the place of each window."""
    rows, spots = [np.zeros((0, MIDDLE), np.uint8)], [np.zeros(0, np.int64)]
    for at in _PLACES:
        windows = sectors[:, at : at + WIDTH]
        chosen = np.flatnonzero(telling(windows))
        rows.append(windows[chosen, BEFORE : BEFORE + MIDDLE])
        spots.append(places[chosen] + at)
    return np.ascontiguousarray(np.concatenate(rows)), np.concatenate(spots)


def telling(windows: Bytes) -> Bools:
    """Return which windows have enough different bytes, and are no short pattern."""
    column = np.ascontiguousarray(windows.T)
    many = np.ones(windows.shape[0], np.uint8)
    for at in range(1, WIDTH):
        seen = column[:at] == column[at]
        many += ~seen.any(axis=0)
        if at % 8 == 7 and (many >= _TELLING).all():
            break
    good = many >= _TELLING
    for period in range(_TELLING, WIDTH // 2 + 1):
        good &= (column[period:] != column[:-period]).any(axis=0)
    return np.asarray(good, np.bool_)
