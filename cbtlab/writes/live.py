"""The events of the running kernel module, as they come: arrays and DataFrames, and every loss.

For notebooks and tests; to keep the events, save them with ``EventWriter``.
"""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from cbtlab.record.rings import Rings
from cbtlab.writes.native import frame_of, from_spans
from cbtlab.writes.order import missing, rising

if TYPE_CHECKING:
    from cbtlab.record.kernel_module import Module

__all__ = ["Live"]


class Live:
    """Takes the events out of the module's rings, for the length of a ``with``.

    There is one reader at a time: Refused with EBUSY while there is another.
    ``gaps`` are the numbers that were dropped, exactly: an array of [first,
    last], uint64, one row a gap.  It begins with the first number that is met.
    """

    def __init__(self, module: Module) -> None:
        self._module = module
        self._rings = Rings(module)
        self._next: int | None = None
        self._time = 0
        self._roles: dict[int, int] = {}
        self.gaps = np.zeros((0, 2), np.uint64)

    def __enter__(self) -> Live:
        self._rings.__enter__()
        info = self._module.info()
        self._anchor = info.monotonic_ns, info.realtime_ns
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._rings.close()

    @property
    def dropped(self) -> int:
        """How many events were dropped, as far as has been read."""
        return int((self.gaps[:, 1] - self.gaps[:, 0] + np.uint64(1)).sum())

    def wait(self, seconds: float) -> bool:
        """Wait until there is an event; return whether there is."""
        return self._rings.wait(seconds)

    def take(self) -> np.ndarray[Any, Any]:
        """Return the next events by number, an array of ``native.EVENT``; empty: none are there.

        At most 65,536; what was dropped between them, and before them, is in
        ``gaps`` then.
        """
        with self._rings.take() as batch:
            events = from_spans(batch.spans)
        first = batch.first if self._next is None else self._next
        self._add(missing(events["seq"], first, batch.below))
        self._next = batch.below
        self._time = rising(events, self._time)
        return events

    def frame(self) -> pd.DataFrame:
        """Return the next events as a write sequence; see ``take``.

        The volume of a tracker that was detached before it was met is null.
        """
        events = self.take()
        if not set(np.unique(events["tracker"]).tolist()) <= set(self._roles):
            self._roles |= {status.tracker: status.role for status in self._module.trackers()}
        return frame_of(events, self._roles, self._anchor, self._module.path)

    def _add(self, gaps: np.ndarray[Any, Any]) -> None:
        """Append gaps; one that goes on where the last one ended is no other gap."""
        if len(gaps) and len(self.gaps) and self.gaps[-1, 1] + np.uint64(1) == gaps[0, 0]:
            self.gaps[-1, 1] = gaps[0, 1]
            gaps = gaps[1:]
        self.gaps = np.concatenate([self.gaps, gaps])
