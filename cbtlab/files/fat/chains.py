"""The chains of a file allocation table, all of them at once.

The table is cut into runs of clusters that follow each other; a run leads to the run where
its last cluster points.  Each round of pointer doubling halves the way to the first run, so
that the number of steps grows with the logarithm of the longest chain, and never with the
number of clusters.  A cluster with two predecessors, and a chain that leads back into itself,
are found on the way and cut.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]
Table = npt.NDArray[np.uint32]

#: What an entry of the table says, besides the next cluster; the same for every width.
FREE, BAD, END = 0, 0xFFFFFFF7, 0xFFFFFFFF

#: What can be wrong with a chain: codes into the words for it.
SOUND, OUTSIDE, UNUSED, INSIDE, BROKEN, SHARED = range(6)
FAULTS = (
    "",
    "its first cluster lies outside of the volume",
    "its first cluster is free or bad",
    "its first cluster lies inside of another chain, or of a loop",
    "its chain leads to a cluster that is free, bad or outside of the volume",
    "its chain shares clusters with another chain, or leads back into itself",
)


class Chains:
    """The chains of a table.  ``table[c]`` is what follows cluster ``c``, or `FREE`, `BAD`, `END`.

    ``used`` are the clusters that have an entry in a chain; others are treated as free.
    """

    def __init__(self, table: Table, used: Mask) -> None:
        self._last = len(table) - 1
        self._used = used
        starts = _starts(table, used)
        self._start = np.flatnonzero(starts)
        ends = used.copy()
        ends[:-1] &= ~used[1:] | starts[1:]
        end = np.flatnonzero(ends)
        self._length = end - self._start + 1
        target = table[end].astype(np.int64)
        known = (target >= 2) & (target <= self._last)
        known[known] = used[target[known]]
        follower = np.where(known, np.searchsorted(self._start, target), -1)
        self._rank(follower, broken=~known & (target != END))

    def _rank(self, follower: Array, broken: Mask) -> None:
        """Find for each run the first of its chain, and how many clusters lie before it."""
        runs = len(follower)
        leads = np.flatnonzero(follower >= 0)[::-1]  # the first of two wins
        before = np.full(runs, -1, np.int64)
        before[follower[leads]] = leads
        cut = np.zeros(runs, np.bool_)
        cut[leads] = before[follower[leads]] != leads
        shared = cut.copy()
        shared[follower[cut]] = True
        self._root = before < 0
        jump = np.where(self._root, np.arange(runs), before)
        place = np.where(self._root, 0, self._length[before] if runs else 0)
        for _ in range(runs.bit_length()):
            after = jump[jump]
            if np.array_equal(after, jump):
                break
            place = place + place[jump]
            jump = after
        self._chain = jump
        self._order = np.lexsort((place, jump))
        self._first = jump[self._order]
        self._place = place[self._order]
        self._broken, self._shared = broken[self._order], shared[self._order]

    def slices(self, heads: Array) -> tuple[Array, Array, npt.NDArray[np.int8]]:
        """Where the runs of each chain lie among all `runs`, from and to, and what is wrong.

        ``heads`` are first clusters.  A chain that does not begin at its head has no runs, and
        that in which it begins is damaged too; of a damaged one there are those up to the damage.
        """
        fault = np.zeros(len(heads), np.int8)
        inside = (heads >= 2) & (heads <= self._last)
        fault[~inside] = OUTSIDE
        safe = np.where(inside, heads, 0)
        unused = inside & ~self._used[safe]
        fault[unused] = UNUSED
        run = np.searchsorted(self._start, safe, side="right") - 1
        good = inside & ~unused
        good[good] = (self._start[run[good]] == safe[good]) & self._root[run[good]]
        fault[inside & ~unused & ~good] = INSIDE
        low = np.where(good, np.searchsorted(self._first, run), 0)
        high = np.where(good, np.searchsorted(self._first, run, side="right"), 0)
        for flags, code in ((self._broken, BROKEN), (self._shared, SHARED)):
            many = np.concatenate(([0], np.cumsum(flags)))
            fault[good & (many[high] > many[low])] = code
        entered = self._chain[run[fault == INSIDE]]
        fault[good & np.isin(run, entered)] = SHARED
        return low, high, fault

    def runs(self, low: Array, high: Array) -> tuple[Array, Array, Array, Array]:
        """The runs of the given slices: which slice, clusters before it, first cluster, length."""
        which, at = spread(low, high)
        run = self._order[at]
        return which, self._place[at], self._start[run], self._length[run]


def claim_once(heads: Array, low: Array, high: Array, fault: npt.NDArray[np.int8]) -> None:
    """Of chains asked for twice, leave the runs to the first who asked, and mark all as damaged.

    Else a small volume could have as many extents as it has files, times its clusters.
    """
    claims = np.flatnonzero(high > low)
    _, first, back, many = np.unique(
        heads[claims], return_index=True, return_inverse=True, return_counts=True
    )
    twice = claims[many[back] > 1]
    fault[twice] = SHARED
    later = np.setdiff1d(twice, claims[first])
    high[later] = low[later]


def spread(low: Array, high: Array) -> tuple[Array, Array]:
    """All whole numbers of the half-open ranges, and which range each comes from."""
    many = high - low
    which = np.repeat(np.arange(len(low)), many)
    return which, np.arange(len(which)) - np.repeat(np.cumsum(many) - many - low, many)


def _starts(table: Table, used: Mask) -> Mask:
    """The clusters where a run begins: all that do not only continue the one before them."""
    number = np.arange(1, len(table) + 1, dtype=np.uint32)
    goes_on = used & (table == number)
    goes_on[-1] = False
    goes_on[:-1] &= used[1:]
    starts = used.copy()
    starts[1:] &= ~goes_on[:-1]
    far = table[used & ~goes_on].astype(np.int64)
    far = far[(far >= 2) & (far < len(table))]
    starts[far[used[far]]] = True
    return starts
