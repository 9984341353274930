"""Writes native streams for tests, from the layout's description, with ``struct`` alone."""

from __future__ import annotations

import struct
import zlib
from typing import Any

HEADER = struct.Struct("<8sIIIIQQ24x")
TRACKER = struct.Struct("<IB3xIIQ40s")
EVENT = struct.Struct("<QQQQQQIIIHBB16s")
OPS = {"write": 1, "write_zeroes": 2, "discard": 3, "secure_erase": 4, "end": 255}


def event(seq: int, offset: int, length: int, **more: Any) -> bytes:
    """Return one record; times are nanoseconds of the monotonic clock."""
    return EVENT.pack(
        seq,
        more.get("time_ns", 1_000 + seq),
        offset,
        length,
        more.get("inode", 0),
        more.get("inode_offset", 0),
        more.get("interval", 0),
        more.get("pid", 77),
        more.get("flags", 0),
        more.get("tracker", 1),
        OPS[more.get("op", "write")],
        more.get("known", 4),
        more.get("comm", b"writer"),
    )


def stream(
    events: list[bytes],
    *,
    next_seq: int,
    dropped: int = 0,
    size: int = 1 << 20,
    end: bool = True,
    version: int = 2,
    anchor: tuple[int, int] = (1_000, 1_700_000_000_000_000_000),
) -> bytes:
    """Return a stream of a physical tracker (1) and a snapshot's (2)."""
    trackers = [
        TRACKER.pack(1, 1, 4096, 0, size, b"origin"),
        TRACKER.pack(2, 2, 4096, 0, size, b"snapshot"),
    ]
    header = HEADER.pack(b"CBTWRITE", version, 64 + 64 * len(trackers), 80, len(trackers), *anchor)
    body = b"".join(events)
    mark = EVENT.pack(
        next_seq, 0, dropped, len(events), zlib.crc32(body), 0, 0, 0, 0, 0, 255, 0, b""
    )
    return header + b"".join(trackers) + body + (mark if end else b"")
