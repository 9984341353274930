"""Lost events: which sequences a gap in the numbers may be of, and when it happened.

A number that stands nowhere is an event that nobody has.  Of the sequences that
may have had it, it is one that goes on around the gap or stands right beside
it, one whose bitmap has bits that no event explains, or one that is the only
record of its volume.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cbtlab.gaps import Gap
from cbtlab.replay import Replay
from cbtlab.units import format_time

Pair = tuple[str, int]


@dataclass(frozen=True)
class Loss:
    """A gap with the instants of the events beside it (ISO 8601), and whose it seems to be."""

    gap: Gap
    after: str | None
    before: str | None
    near: frozenset[Pair]

    def __str__(self) -> str:
        if self.after and self.before:
            return f"{self.gap}, between {self.after} and {self.before}"
        return str(self.gap)


class Losses:
    """The gaps of a case, looked up once for all its backups."""

    def __init__(self, replay: Replay) -> None:
        self._replay = replay
        self._known: dict[Pair, bool | None] = {}
        gaps = replay.gaps
        self.losses: list[Loss] = []
        if not gaps:
            return
        edges = np.unique([n for gap in gaps for n in (gap.first - 1, gap.last + 1)])
        spans: dict[Pair, tuple[int, int]] = {}
        times: dict[int, dict[Pair, np.datetime64]] = {}
        for interval in replay.case.intervals:
            for volume in ("physical", "snapshot"):
                pair = (volume, interval.k)
                for frame in interval.iter_writes(volume):
                    numbered = frame[frame["seq"].notna()]
                    seq = numbered["seq"].to_numpy(np.uint64)
                    if not len(seq):
                        continue
                    low, high = int(seq.min()), int(seq.max())
                    first, last = spans.get(pair, (low, high))
                    spans[pair] = min(first, low), max(last, high)
                    at = np.flatnonzero(np.isin(seq, edges))
                    for n, time in zip(
                        seq[at].tolist(), numbered["time"].to_numpy()[at], strict=True
                    ):
                        times.setdefault(n, {})[pair] = time
        for gap in gaps:
            left, right = (
                {pair: time for pair, time in times.get(n, {}).items() if pair in gap.hides}
                for n in (gap.first - 1, gap.last + 1)
            )
            around = {
                pair
                for pair in gap.hides
                if pair in spans and spans[pair][0] < gap.first and gap.last < spans[pair][1]
            }
            stamps = [format_time(min(side.values())) if side else None for side in (left, right)]
            near = frozenset(around | left.keys() | right.keys())
            self.losses.append(Loss(gap, stamps[0], stamps[1], near))

    def of(self, volume: str, k: int) -> list[Loss]:
        """Return the losses that may be of a sequence, and leave it unproven."""
        return [loss for loss in self.losses if self._blames(loss, (volume, k))]

    def _blames(self, loss: Loss, pair: Pair) -> bool:
        if pair not in loss.gap.hides:
            return False
        unexplained = self._unexplained(pair)
        if unexplained is None or unexplained:
            return True  # the only record of its volume, or bits that no event explains
        if loss.gap.count == 1 and any(self._unexplained(other) for other in loss.gap.hides):
            return False  # one event, and another sequence lacks one
        return pair in loss.near

    def _unexplained(self, pair: Pair) -> bool | None:
        """Return whether the tracker has bits that no event explains; None without a tracker."""
        if pair not in self._known:
            tracker = self._replay.tracker(*pair)
            replayed = self._replay.replayed(*pair)
            known = None if tracker is None or replayed is None else (tracker - replayed).any()
            self._known[pair] = known
        return self._known[pair]
