"""Writes the native stream: a header, the events as the rings gave them, an end record.

The layout stands in ``kernel_module/cbt_events.h`` under "a saved stream".
"""

from __future__ import annotations

import os
import shutil
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


class StreamWriter:
    """Writes a stream to ``path``, which comes into being whole, at ``end``.

    What is written is batches (``STREAM_BATCH``), each with higher numbers than
    the one before; within one the events are in any order.

    Until then the records lie beside it in ``path + ".part"``, a stream without
    its end that can be salvaged.  Trackers may be added at any time; the header
    must have room for them, so a stream that met new ones is copied at its end.
    """

    def __init__(self, path: Path, anchor_monotonic_ns: int, anchor_realtime_ns: int) -> None:
        self.path = path
        self.part = path.with_name(path.name + ".part")
        self.records = 0
        self._anchor = anchor_monotonic_ns, anchor_realtime_ns
        self._trackers: dict[int, Described] = {}
        self._in_header = 0
        self._crc = 0
        self._out = self.part.open("wb+", buffering=0)

    def add(self, tracker: Described) -> None:
        """Name a tracker whose events the stream holds."""
        self._trackers[tracker.id] = tracker

    def write(self, events: bytes | memoryview) -> None:
        """Append whole events."""
        if not self.records:
            self._write_header()
        self._crc = zlib.crc32(events, self._crc)
        self.records += len(events) // uapi.EVENT.size
        self._write(events)

    def end(self, next_seq: int, dropped: int) -> None:
        """Write the end record and give the stream its name."""
        if not self.records:
            self._write_header()
        begin = self._out.tell() - self.records * uapi.EVENT.size
        end = (next_seq, 0, dropped, self.records, self._crc, 0, 0, 0, 0, 0, uapi.Op.END, 0, b"")
        self._write(uapi.STREAM_EVENT.pack(*end))
        if self._in_header < len(self._trackers):
            self._copy(begin)
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

    def _write(self, data: bytes | memoryview) -> None:
        left = memoryview(data)
        while left:
            left = left[self._out.write(left) :]

    def _write_header(self) -> None:
        trackers = list(self._trackers.values())  # another thread may add one meanwhile
        self._in_header = len(trackers)
        size = uapi.STREAM_HEADER.size + self._in_header * uapi.STREAM_TRACKER.size
        self._write(
            uapi.STREAM_HEADER.pack(
                uapi.STREAM_MAGIC,
                uapi.STREAM_VERSION,
                size,
                uapi.EVENT.size,
                self._in_header,
                *self._anchor,
            )
        )
        for tracker in trackers:
            self._write(tracker.pack())

    def _copy(self, begin: int) -> None:
        """Copy the records behind a header with room for all trackers."""
        old = self._out
        old.seek(begin)
        whole = self.part.with_name(self.part.name + ".whole")
        self._out = whole.open("wb", buffering=0)
        self._write_header()
        shutil.copyfileobj(old, self._out, 1 << 20)
        old.close()
        whole.replace(self.part)
