"""The last recorded write that touched a block: when, by whom, and in which interval."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from cbtlab.case import Case
from cbtlab.checks.streams import Ints
from cbtlab.units import format_time


class LastWrites:
    """For some blocks, the last recorded write that touches each, up to an interval.

    Interval ``k`` is looked at first, then those before it: a write that was
    counted too early is found where it was counted.
    """

    def __init__(self, case: Case, volume: str, k: int, blocks: Ints) -> None:
        self.time: dict[int, np.datetime64] = {}
        self.interval: dict[int, int] = {}
        self.row: dict[int, dict[str, object]] = {}
        self._grain = case.granularity
        wanted = np.unique(blocks)
        for i in range(k, -1 if volume == "physical" else k - 1, -1):
            if not len(wanted):
                return
            for chunk in case.interval(i).iter_writes(volume):
                self._take(chunk, wanted, i)
            wanted = wanted[[block not in self.interval for block in wanted.tolist()]]

    def times(self) -> Mapping[int, str]:
        """Return the instants in ISO 8601, by block."""
        return {block: str(format_time(time)) for block, time in self.time.items()}

    def _take(self, chunk: pd.DataFrame, wanted: Ints, interval: int) -> None:
        """Look at the rows that touch one of the ``wanted`` blocks, which rise."""
        offset = chunk["offset"].to_numpy(np.int64)
        first = offset // self._grain
        last = (offset + chunk["length"].to_numpy(np.int64) - 1) // self._grain
        low = np.searchsorted(wanted, first, side="left")
        high = np.searchsorted(wanted, last, side="right")
        hit = np.flatnonzero(high > low)
        span = (high - low)[hit]
        row = np.repeat(hit, span)
        within = np.arange(len(row)) - np.repeat(np.cumsum(span) - span, span)
        found = pd.DataFrame(
            {
                "block": wanted[low[row] + within],
                "time": chunk["time"].to_numpy()[row],
                "comm": chunk["comm"].astype(object).to_numpy()[row],
                "op": chunk["op"].astype(object).to_numpy()[row],
            }
        )
        newest = found.sort_values("time", kind="stable").drop_duplicates("block", keep="last")
        for entry in newest.to_dict("records"):
            block = int(entry["block"])
            time = entry["time"].to_datetime64()  # numpy itself would cut it to microseconds
            if block not in self.time or time >= self.time[block]:
                self.time[block], self.interval[block] = time, interval
                self.row[block] = {"op": entry["op"], "comm": entry["comm"]}
