"""``DataFrame.writes``: what a write sequence can tell about itself."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from cbtlab.bitmap import Bitmap
from cbtlab.errors import InputError
from cbtlab.units import format_time
from cbtlab.writes.schema import COLUMNS, OPS
from cbtlab.writes.skipped import left_out


@pd.api.extensions.register_dataframe_accessor("writes")
class WritesAccessor:
    """The methods of a write sequence; a frame without its columns is refused."""

    def __init__(self, frame: pd.DataFrame) -> None:
        missing = [name for name in COLUMNS if name not in frame]
        if missing:
            raise AttributeError(f"not a write sequence: column {missing[0]!r} is missing")
        self._frame = frame

    def select(
        self, *, volume: str | None = None, interval: int | None = None, until: Any = None
    ) -> pd.DataFrame:
        """Return the rows of a volume, of an interval, up to an instant (inclusive).

        A row marked ``overlap`` belongs to its own interval and to the next.
        """
        frame = self._frame
        keep = np.ones(len(frame), bool)
        if volume is not None:
            keep &= (frame["volume"] == volume).to_numpy()
        if interval is not None:
            keep &= self.in_interval(interval)
        if until is not None:
            keep &= (frame["time"] <= pd.Timestamp(until)).to_numpy()
        return frame if keep.all() else frame[keep]

    def in_interval(self, interval: int) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """Return which rows count in ``interval``: its own, and the overlap of the one before."""
        own = self._frame["interval"].to_numpy()
        keep = own == interval
        if interval:
            keep |= (own == interval - 1) & self._frame["overlap"].to_numpy()
        return np.asarray(keep)

    def bitmap(
        self,
        volume_size: int,
        granularity: int,
        *,
        volume: str | None = None,
        interval: int | None = None,
        until: Any = None,
    ) -> Bitmap:
        """Return the active bitmap that these rows leave: every block that one of them touches."""
        rows = self.select(volume=volume, interval=interval, until=until)
        return Bitmap.from_ranges(
            rows["offset"].to_numpy(),
            rows["length"].to_numpy(),
            volume_size=volume_size,
            granularity=granularity,
        )

    def missing(self) -> pd.DataFrame:
        """Return the gaps in ``seq``, one row each.

        Columns: ``first`` and ``last`` number between two events, ``count`` of the
        missing among them (rows that were left out are not missing), the times and
        intervals of the events around it (``after``, ``before``,
        ``interval_after``, ``interval_before``).  A sequence whose rows have no
        number has no gap that can be known.  Raises InputError where a number
        stands twice.
        """
        numbered = self._frame[self._frame["seq"].notna()]
        seq = numbered["seq"].to_numpy(np.uint64)
        order = np.argsort(seq, kind="stable")
        seq = seq[order]
        if (seq[1:] == seq[:-1]).any():
            twice = int(seq[1:][seq[1:] == seq[:-1]][0])
            raise InputError("writes", f"the sequence number {twice} stands twice")
        lost = np.diff(seq) - np.uint64(1)
        if (more := left_out(self._frame)) is not None and len(seq):
            there = np.searchsorted(seq, np.unique(more.seq))
            lost -= np.bincount(there, minlength=len(seq) + 1)[1:-1].astype(np.uint64)
        at = np.flatnonzero(lost)
        left, right = order[at], order[at + 1]
        time = numbered["time"].to_numpy()
        interval = numbered["interval"].to_numpy()
        return pd.DataFrame(
            {
                "first": seq[at] + np.uint64(1),
                "last": seq[at + 1] - np.uint64(1),
                "count": lost[at],
                "after": time[left],
                "before": time[right],
                "interval_after": interval[left],
                "interval_before": interval[right],
            }
        )

    def _lost_at_the_edges(self) -> tuple[int, int]:
        """Return how many numbers are missing before the first event and after the last."""
        first, following = (self._frame.attrs.get(name) for name in ("first_seq", "next_seq"))
        seq = self._frame["seq"].dropna()
        if not len(seq):
            return (following - first if first and following else 0), 0
        head = int(seq.min()) - first if first else 0
        tail = int(following) - 1 - int(seq.max()) if following else 0
        return max(head, 0), max(tail, 0)

    def summary(self) -> dict[str, Any]:
        """Return the counts of ``cbtlab writes --json``.

        ``lost`` counts events, ``gaps`` the places where they are missing; a
        native stream tells of those before its first event and after its last.
        """
        frame = self._frame
        gaps = self.missing()
        lost, places = int(gaps["count"].sum()), len(gaps)
        for edge in self._lost_at_the_edges():
            lost, places = lost + edge, places + (edge > 0)
        counts = frame["op"].value_counts()
        times = frame["time"]
        return {
            "rows": len(frame),
            "first": format_time(times.min()) if len(frame) else None,
            "last": format_time(times.max()) if len(frame) else None,
            "ops": {name: int(counts[name]) for name in OPS if counts[name]},
            "bytes": int(frame["length"].sum()),
            "skipped": int(frame.attrs.get("skipped", 0)),
            "lost": lost,
            "gaps": places,
        }
