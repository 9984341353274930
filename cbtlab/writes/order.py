"""Events in the order of their numbers, from batches that were saved as the rings gave them.

All functions take arrays of ``native.EVENT``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from cbtlab.errors import InputError

Events = np.ndarray[Any, Any]

#: The operation of a record that is no event: it describes a tracker.
OP_TRACKER = 254


def events_only(records: Events) -> Events:
    """Return the records without descriptions of trackers; themselves when there are none."""
    told = records["op"] == OP_TRACKER
    return records[~told] if told.any() else records


def by_number(events: Events) -> Events:
    """Return the events by rising number; themselves when they lie so."""
    seq = events["seq"]
    if (seq[1:] > seq[:-1]).all():
        return events
    # Stable: numpy's merge of runs, and each ring's part of a batch is a run.
    return events[np.argsort(seq, kind="stable")]


def in_order(records: Events, batch: int, rows: int, source: object) -> Iterator[Events]:
    """Yield the events among ``records`` by rising number, at most ``rows`` at a time.

    They lie in batches of up to ``batch`` records (1: in order), with any order
    within one; else they are damaged: InputError.  Never more than ``rows`` and
    two batches are in memory.  Times are made to rise with the numbers: two CPUs
    may have read the clock in the other order.
    """
    rest, number, time = records[:0], 0, 0
    step = rows + batch
    for start in range(0, len(records), step):
        window = np.concatenate([rest, events_only(records[start : start + step])])
        if batch > 1:
            window = by_number(window)
        # What is unread is only lower than what is read of its batch, all but one at most.
        final = max(len(window) - (batch - 1 if start + step < len(records) else 0), 0)
        whole, rest = window[:final], window[final:].copy()
        if not final:
            continue
        _check(whole, number, source)
        number, time = int(whole["seq"][-1]), rising(whole, time)
        for at in range(0, final, rows):
            yield whole[at : at + rows]


def rising(events: Events, time: int = 0) -> int:
    """Make the times of events, in the order of their numbers, rise from ``time`` on, in place.

    Returns the last one.
    """
    if len(events):
        times = events["time_ns"]
        times[0] = max(int(times[0]), time)
        np.maximum.accumulate(times, out=times)
        time = int(times[-1])
    return time


def missing(seq: np.ndarray[Any, Any], first: int, below: int) -> np.ndarray[Any, Any]:
    """Return the numbers in ``first <= n < below`` that are not in ``seq`` (rising).

    An array of [first, last], one row a gap, uint64.
    """
    edges = np.concatenate([[np.uint64(first)], seq + np.uint64(1)]).astype(np.uint64)
    ends = np.concatenate([seq, [np.uint64(below)]]).astype(np.uint64)
    at = np.flatnonzero(ends > edges)
    return np.column_stack([edges[at], ends[at] - np.uint64(1)])


def _check(events: Events, number: int, source: object) -> None:
    seq = events["seq"]
    if int(seq[0]) <= number or (seq[1:] <= seq[:-1]).any():
        raise InputError(source, "has records out of their order, or twice; it is damaged")
