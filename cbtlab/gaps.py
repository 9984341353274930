"""Lost events: gaps in the sequence numbers of a case, and what they may hide.

One sequence counts over all trackers, so a number that stands nowhere is an
event that nobody has.  Which volume and interval it may have been of follows from
its neighbours: a write on ``P`` in interval ``i`` lies between ``T_i-1`` and ``T_i``,
and a write on ``S_k`` after ``T_k``, that is, while ``P`` is in interval ``k + 1``.
``P`` is written at any time; ``S_k`` is written in one go, by its mount, the delete
and the unmount, so an event of it is missed only within its own numbers or next to
them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["Gap", "Numbers", "find_gaps", "numbers_of"]


@dataclass(frozen=True, eq=False)
class Numbers:
    """The sequence numbers of one volume in one interval, as runs without a hole.

    ``first`` and ``last`` are arrays, rising; ``rows`` also counts the rows
    without a number.  A sequence that has rows and no number has no gap that
    can be known.
    """

    volume: str
    interval: int
    rows: int
    first: npt.NDArray[np.uint64]
    last: npt.NDArray[np.uint64]


@dataclass(frozen=True)
class Gap:
    """Numbers ``first`` to ``last`` are missing, between events of two intervals.

    ``after`` and ``before`` are the intervals of the event in front of the gap
    and of the one behind it.  ``hides`` are the (volume, interval) pairs that a
    missing event may be of.
    """

    first: int
    last: int
    after: int
    before: int
    hides: frozenset[tuple[str, int]]

    @property
    def count(self) -> int:
        """How many events are missing."""
        return self.last - self.first + 1

    def between(self, k: int) -> bool:
        """Whether interval ``k`` is one of those that the events around the gap are of."""
        return min(self.after, self.before) <= k <= max(self.after, self.before)

    def __str__(self) -> str:
        if self.count == 1:
            return f"event {self.first} is missing"
        return f"{self.count} events are missing, {self.first} to {self.last}"


def numbers_of(
    volume: str, interval: int, chunks: Iterable[tuple[int, npt.NDArray[np.uint64]]]
) -> Numbers:
    """Collect the numbers of one sequence from chunks of (rows, their numbers)."""
    rows, firsts, lasts = 0, [], []
    for count, seq in chunks:
        rows += count
        first, last = _runs(seq)
        firsts.append(first)
        lasts.append(last)
    none = np.zeros(0, dtype=np.uint64)
    first, last = np.concatenate([none, *firsts]), np.concatenate([none, *lasts])
    order = np.argsort(first, kind="stable")
    return Numbers(volume, interval, rows, first[order], last[order])


def find_gaps(sequences: list[Numbers]) -> list[Gap]:
    """The gaps of a case, rising.

    Where a number stands twice, one sequence cannot be over all: then each
    volume counted by itself, or else each recorded sequence.
    """
    together = _gaps(sequences)
    if together is not None:
        return together
    for key in (lambda s: (s.volume,), lambda s: (s.volume, s.interval)):
        groups: dict[tuple[object, ...], list[Numbers]] = {}
        for sequence in sequences:
            groups.setdefault(key(sequence), []).append(sequence)
        each = [_gaps(group) for group in groups.values()]
        if all(found is not None for found in each):
            return [gap for found in each for gap in found or []]
    # A number twice within one recorded sequence: the same event, read twice.
    return [gap for sequence in sequences for gap in _gaps([sequence], twice=True) or []]


# Within -----------------------------------------------------------------------------------------


def _runs(seq: npt.NDArray[np.uint64]) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint64]]:
    if seq.size == 0:
        return seq, seq
    seq = np.sort(seq)
    breaks = np.flatnonzero(np.diff(seq) != 1)
    return seq[np.append(0, breaks + 1)], seq[np.append(breaks, seq.size - 1)]


def _gaps(sequences: list[Numbers], twice: bool = False) -> list[Gap] | None:
    """The gaps of one counting; None where a number stands twice and must not."""
    counted = [s for s in sequences if s.first.size]
    if not counted:
        return []
    first = np.concatenate([s.first for s in counted])
    last = np.concatenate([s.last for s in counted])
    owner = np.repeat(np.arange(len(counted)), [s.first.size for s in counted])
    order = np.argsort(first, kind="stable")
    first, last, owner = first[order], last[order], owner[order]
    if not twice and (first[1:] <= last[:-1]).any():
        return None
    reach = np.maximum.accumulate(last)
    # Compared without adding: the highest number may be the last of 64 bits.
    holes = np.flatnonzero((first[1:] > reach[:-1]) & (first[1:] - reach[:-1] > 1))
    made = []
    for at in holes.tolist():
        left, right = counted[owner[at]], counted[owner[at + 1]]
        missing = int(reach[at]) + 1, int(first[at + 1]) - 1
        hidden = frozenset(_hidden(missing[0], left, right, sequences))
        made.append(Gap(*missing, left.interval, right.interval, hidden))
    return made


def _hidden(
    number: int, left: Numbers, right: Numbers, sequences: list[Numbers]
) -> Iterator[tuple[str, int]]:
    """What the missing ``number``, between one of ``left`` and one of ``right``, may be of."""
    low, high = sorted((_time(left.volume, left.interval), _time(right.volume, right.interval)))
    for sequence in sequences:
        name = sequence.volume, sequence.interval
        if not sequence.first.size:
            near = sequence.rows == 0
        elif sequence.volume == "physical":
            near = True
        else:
            near = sequence in (left, right)
            near = near or int(sequence.first[0]) < number < int(sequence.last[-1])
        if near and low <= _time(*name) <= high:
            yield name


def _time(volume: str, interval: int) -> int:
    """The interval that ``P`` is in when a write of this volume and interval happens."""
    return interval if volume == "physical" else interval + 1
