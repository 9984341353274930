"""Lost events: which sequences a gap in the numbers may be of, and when it happened.

A number that stands nowhere is an event that nobody has.  It is of a sequence
that goes on around the gap, or stands right beside it.  Where a sequence is
the only record of its volume, whatever it may hide counts.
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

    def of(self, volume: str, k: int, *, alone: bool) -> list[Loss]:
        """Return what may be missing of a sequence; ``alone``: it is the only record."""
        pair = (volume, k)
        return [
            loss for loss in self.losses if pair in loss.near or (alone and pair in loss.gap.hides)
        ]
