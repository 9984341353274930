"""The native stream: the kernel module's events as the recorder saves them.

All numbers are little-endian.  A header of 64 bytes, 64 bytes for each
tracker, then records of 80 bytes (``struct cbt_event`` of
``kernel_module/cbt_events.h``).  The last record is an end mark that holds the
next sequence number, the count of dropped events, the count of records and
their CRC-32; a stream without it was cut.  A dropped event has used its number,
so a gap in ``seq`` is a loss.  Trackers that came later than the header are
described by records between the events; one that was gone by then is not, and
the volume of its events is null.

In version 2 the records lie in batches of at most 65,536 numbers, in any order
within one; whoever reads gets them by number.  In version 1 they lie so.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cbtlab.errors import InputError
from cbtlab.writes.layout import (
    BATCHES,
    EVENT,
    HEADER,
    KNOWN_INODE,
    KNOWN_INODE_OFFSET,
    KNOWN_TASK,
    MAGIC,
    MAX_TRACKERS,
    OP_END,
    TRACKER,
)
from cbtlab.writes.order import by_number, events_only, in_order
from cbtlab.writes.schema import OP_TYPE, OPS, VOLUME_TYPE, normalize
from cbtlab.writes.trackers import check, notes, survey

__all__ = [
    "BATCHES",
    "EVENT",
    "HEADER",
    "MAGIC",
    "TRACKER",
    "Stream",
    "frame_of",
    "from_spans",
    "open_stream",
]


@dataclass(frozen=True)
class Stream:
    """An opened stream.

    ``raw`` is an array of EVENT over the file's own pages, in the file's order,
    without the end mark.  ``trackers`` are all that it describes, ``counts``
    the events of each id.  ``dropped`` is the end mark's count of what the
    module had dropped; it and ``next_seq`` are None for a stream that was cut.
    ``first_seq`` is the lowest number that it could hold, None where it does
    not say.
    """

    path: Path
    version: int
    trackers: np.ndarray[Any, Any]
    counts: dict[int, int]
    anchor_monotonic_ns: int
    anchor_realtime_ns: int
    first_seq: int | None
    raw: np.ndarray[Any, Any]
    dropped: int | None
    next_seq: int | None

    @cached_property
    def records(self) -> np.ndarray[Any, Any]:
        """All events in the file's order."""
        return events_only(self.raw)

    @cached_property
    def events(self) -> np.ndarray[Any, Any]:
        """All events by number, in memory; InputError when they are not where they belong."""
        parts = list(self.windows(max(len(self.raw), 1)))
        return parts[0] if len(parts) == 1 else np.concatenate([self.raw[:0], *parts])

    @property
    def notes(self) -> list[str]:
        """What a reader should know: events of unknown trackers, two of one role, a lost end."""
        cut = ["it is cut: what was lost after its last record is not known"]
        return [*notes(self.trackers, self.counts), *(cut if self.next_seq is None else [])]

    def windows(self, rows: int) -> Iterator[np.ndarray[Any, Any]]:
        """Yield the events by number as arrays of EVENT, at most ``rows`` at a time."""
        return in_order(self.raw, BATCHES[self.version], rows, self.path)

    def chunks(self, rows: int) -> Iterator[pd.DataFrame]:
        """Yield the events by number as write sequences of at most ``rows`` rows, at least one."""
        start = 0
        for events in self.windows(rows):
            yield self._frame(events, start)
            start += len(events)
        if not start:
            yield self._frame(self.raw[:0], 0)

    def frame(self) -> pd.DataFrame:
        """Return all events as a write sequence, by number."""
        return self._frame(self.events, 0)

    def _frame(self, events: np.ndarray[Any, Any], start: int) -> pd.DataFrame:
        bad = (events["op"] == 0) | (events["op"] > len(OPS))
        _refuse(self.path, bad, start, "an unknown operation")
        _refuse(self.path, events["time_ns"] >> np.uint64(62) != 0, start, "an impossible time")
        roles = dict(zip(self.trackers["id"].tolist(), self.trackers["role"].tolist(), strict=True))
        anchor = self.anchor_monotonic_ns, self.anchor_realtime_ns
        return frame_of(events, roles, anchor, self.path)


def frame_of(
    events: np.ndarray[Any, Any],
    roles: Mapping[int, int],
    anchor: tuple[int, int],
    source: object,
) -> pd.DataFrame:
    """Return events (EVENT) as a write sequence, in their order.

    ``roles`` says what each tracker follows, by its id (1 physical, 2
    snapshot); the volume of others is null.  ``anchor`` is one instant on the
    monotonic clock and since 1970 UTC, in nanoseconds.
    """
    volumes = np.full(MAX_TRACKERS + 1, -1, np.int8)
    volumes[list(roles.keys())] = np.fromiter(roles.values(), np.int8, len(roles)) - 1
    time = events["time_ns"].astype(np.int64) - np.int64(anchor[0])
    time += np.int64(anchor[1])
    known = events["known"]
    no_task = known & KNOWN_TASK == 0
    return normalize(
        pd.DataFrame(
            {
                "time": time.view("datetime64[ns]"),
                "seq": events["seq"],
                "volume": pd.Categorical.from_codes(volumes[events["tracker"]], dtype=VOLUME_TYPE),
                "interval": events["interval"],
                "op": pd.Categorical.from_codes(events["op"].astype(np.int8) - 1, dtype=OP_TYPE),
                "offset": events["offset"],
                "length": events["length"],
                "flags": events["flags"],
                "pid": _masked(events["pid"], no_task),
                "comm": _names(events["comm"], no_task),
                "inode": _masked(events["inode"], known & KNOWN_INODE == 0),
                "inode_offset": _masked(events["inode_offset"], known & KNOWN_INODE_OFFSET == 0),
            }
        ),
        sort=False,
        source=source,
    )


def from_spans(spans: Iterable[memoryview]) -> np.ndarray[Any, Any]:
    """Copy whole spans of events, as the rings give them, into one array of EVENT, by number."""
    parts = [np.frombuffer(span, EVENT) for span in spans]
    return by_number(np.concatenate([np.zeros(0, EVENT), *parts]))


def open_stream(path: str | os.PathLike[str], *, allow_cut: bool = False) -> Stream:
    """Open a native stream and check its header, its end mark and its CRC-32.

    Raises InputError, by name of the fault.  With ``allow_cut`` a stream that
    has lost its end is taken as far as it goes.
    """
    path = Path(path)
    try:
        size = path.stat().st_size
        raw = np.asarray(np.memmap(path, np.uint8, "r")) if size else np.zeros(0, np.uint8)
    except (OSError, ValueError) as error:
        raise InputError(path, f"cannot be opened: {error}") from error
    if size < HEADER.itemsize or raw[:8].tobytes() != MAGIC:
        raise InputError(path, "is not a native write stream, or its header is cut")
    header = raw[: HEADER.itemsize].view(HEADER)[0]
    version = int(header["version"])
    if version not in BATCHES:
        known = " and ".join(map(str, BATCHES))
        raise InputError(path, f"has version {version}", f"versions {known} can be read")
    count = int(header["trackers"])
    begin = HEADER.itemsize + count * TRACKER.itemsize
    if (
        count > MAX_TRACKERS
        or header["header_bytes"] != begin
        or header["record_bytes"] != EVENT.itemsize
    ):
        raise InputError(path, "has a header that contradicts itself; it is damaged")
    if size < begin:
        raise InputError(path, "is cut inside its header", "record or copy it again")
    anchors = int(header["anchor_monotonic_ns"]), int(header["anchor_realtime_ns"])
    if max(anchors) >= 1 << 62:
        raise InputError(path, "has an impossible clock anchor; it is damaged")
    whole = (size - begin) // EVENT.itemsize * EVENT.itemsize
    records = raw[begin : begin + whole].view(EVENT)
    ended = len(records) > 0 and records[-1]["op"] == OP_END
    events = records[:-1] if ended else records
    counts: tuple[int | None, int | None] = None, None
    if ended and whole == size - begin:
        end = records[-1]
        crc = zlib.crc32(raw[begin : begin + whole - EVENT.itemsize].data)
        if int(end["length"]) != len(events) or int(end["inode"]) != crc:
            raise InputError(path, "is damaged: its end mark does not fit its records")
        counts = int(end["offset"]), int(end["seq"])
    elif not allow_cut:
        raise InputError(
            path,
            "is cut: it has no end mark",
            "record or copy it again, or read what is left with --salvage",
        )
    later, of_each = survey(events)
    trackers = np.concatenate([raw[HEADER.itemsize : begin].view(TRACKER), later])
    check(trackers, path)
    first = int(header["first_seq"]) or None
    return Stream(path, version, trackers, of_each, *anchors, first, events, *counts)


def _refuse(path: Path, bad: np.ndarray[Any, Any], start: int, what: str) -> None:
    if bad.any():
        raise InputError(path, f"record {start + int(np.argmax(bad))} has {what}; it is damaged")


def _masked(values: np.ndarray[Any, Any], absent: np.ndarray[Any, Any]) -> Any:
    return pd.arrays.IntegerArray(np.ascontiguousarray(values), np.asarray(absent, bool))


def _names(comm: np.ndarray[Any, Any], absent: np.ndarray[Any, Any]) -> pd.Categorical[Any]:
    """Return task names as a category; two integer factorizations beat one over strings."""
    halves = np.ascontiguousarray(comm).view("<u8").reshape(-1, 2)
    first, _ = pd.factorize(halves[:, 0])
    second, uniques = pd.factorize(halves[:, 1])
    codes, pairs = pd.factorize(first * max(len(uniques), 1) + second)
    where = np.zeros(len(pairs), np.int64)
    where[codes[::-1]] = np.arange(len(codes))[::-1]
    raw = [bytes(name).split(b"\0")[0] for name in comm[where]]
    names = [name.decode("utf-8", "backslashreplace") for name in raw]
    distinct = list(dict.fromkeys(names))
    lookup = np.array([distinct.index(name) for name in names], np.int64)
    final = lookup[codes] if len(codes) else np.zeros(0, np.int64)
    final = np.where(absent, -1, final)
    return pd.Categorical.from_codes(final, dtype=pd.CategoricalDtype(distinct))
