"""Writes the native stream: a header, the events as the rings gave them, an end record.

Trackers that are there at the start are described in the header, later ones
between the events.

The layout stands in ``kernel_module/cbt_events.h`` under "a saved stream".
"""

from __future__ import annotations

import os
import zlib
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from cbtlab.record import uapi


@dataclass(frozen=True)
class Described:
    """A tracker as the stream's header names it; ``interval`` is the one at attach."""

    id: int
    role: int
    granularity: int
    interval: int
    volume_size: int
    name: str

    def pack(self) -> bytes:
        """Return the descriptor's 64 bytes."""
        return uapi.STREAM_TRACKER.pack(
            self.id,
            self.role,
            self.granularity,
            self.interval,
            self.volume_size,
            os.fsencode(self.name),
        )

    def record(self) -> bytes:
        """Return the record of 80 bytes that describes it between the events."""
        told = (0, 0, 0, self.volume_size, self.granularity, 0, self.interval, 0, self.role)
        return uapi.STREAM_EVENT.pack(*told, self.id, uapi.Op.TRACKER, 0, os.fsencode(self.name))


class StreamWriter:
    """Writes a stream to ``path``, which comes into being whole, at ``end``.

    What is written is batches (``STREAM_BATCH``), each with higher numbers than
    the one before; within one the events are in any order.

    Until then the records lie beside it in ``path + ".part"``, a stream without
    its end that can be salvaged.  ``first_seq`` is the lowest number that the
    events can have.  Trackers may be added at any time, by any thread.
    """

    def __init__(
        self, path: Path, anchor_monotonic_ns: int, anchor_realtime_ns: int, first_seq: int
    ) -> None:
        self.path = path
        self.part = path.with_name(path.name + ".part")
        self.records = 0
        self._start = anchor_monotonic_ns, anchor_realtime_ns, first_seq
        self._ids: set[int] = set()
        self._new: list[Described] = []  # to be written before the next events
        self._begun = False
        self._crc = 0
        self._out = self.part.open("wb", buffering=0)

    def add(self, tracker: Described) -> None:
        """Describe a tracker whose events the stream holds."""
        if tracker.id not in self._ids:
            self._ids.add(tracker.id)
            self._new.append(tracker)

    def write(self, events: bytes | memoryview) -> None:
        """Append whole events."""
        self._describe()
        self._append(events)

    def end(self, next_seq: int, dropped: int) -> None:
        """Write the end record and give the stream its name."""
        self._describe()
        end = (next_seq, 0, dropped, self.records, self._crc, 0, 0, 0, 0, 0, uapi.Op.END, 0, b"")
        self._write(uapi.STREAM_EVENT.pack(*end))
        os.fsync(self._out.fileno())
        self._out.close()
        self.part.replace(self.path)

    def fileno(self) -> int:
        """Return the descriptor of the file that is being written."""
        return self._out.fileno()

    def close(self) -> None:
        """Give up: what was written stays in ``part``."""
        self._out.close()

    def __enter__(self) -> StreamWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _describe(self) -> None:
        new = [self._new.pop(0) for _ in range(len(self._new))]  # another thread may add one
        if self._begun:
            for tracker in new:
                self._append(tracker.record())
            return
        self._begun = True
        size = uapi.STREAM_HEADER.size + len(new) * uapi.STREAM_TRACKER.size
        sizes = size, uapi.EVENT.size, len(new)
        header = (uapi.STREAM_MAGIC, uapi.STREAM_VERSION, *sizes, *self._start)
        self._write(uapi.STREAM_HEADER.pack(*header))
        for tracker in new:
            self._write(tracker.pack())

    def _append(self, records: bytes | memoryview) -> None:
        self._crc = zlib.crc32(records, self._crc)
        self.records += len(records) // uapi.EVENT.size
        self._write(records)

    def _write(self, data: bytes | memoryview) -> None:
        left = memoryview(data)
        while left:
            left = left[self._out.write(left) :]
