"""Plays recorded events into bitmaps, in NumPy: what the module's own bitmaps are held against."""

from __future__ import annotations

from typing import Any

import numpy as np

from cbtlab.writes.native import EVENT

WRITE, WRITE_ZEROES, DISCARD, SECURE_ERASE = 1, 2, 3, 4
PREFLUSH, REMAINDER = 0x4, 0x10000

Events = np.ndarray[Any, Any]


def of(events: Events, tracker: int, interval: int) -> Events:
    """Return the events of one tracker and interval, in the order of their numbers."""
    assert events.dtype == EVENT
    mine = events[(events["tracker"] == tracker) & (events["interval"] == interval)]
    return mine[np.argsort(mine["seq"])]


def replay(events: Events, size: int, granularity: int) -> np.ndarray[Any, Any]:
    """Return the bitmap of ``size`` bytes that the events make."""
    edges = np.zeros(8 * size + 1, np.int64)
    first = events["offset"] // granularity
    last = (events["offset"] + events["length"] - 1) // granularity
    np.add.at(edges, first.astype(np.int64), 1)
    np.add.at(edges, last.astype(np.int64) + 1, -1)
    return np.packbits(np.cumsum(edges)[:-1] > 0, bitorder="little")


def discarded(events: Events, size: int, granularity: int) -> np.ndarray[Any, Any]:
    """Play the events one by one: whole blocks are taken in, touched ones out."""
    blocks = np.zeros(8 * size, bool)
    for offset, length, op in events[["offset", "length", "op"]].tolist():
        end = offset + length
        blocks[offset // granularity : -(-end // granularity)] = False
        if op in (DISCARD, SECURE_ERASE):
            blocks[-(-offset // granularity) : end // granularity] = True
    return np.packbits(blocks, bitorder="little")
