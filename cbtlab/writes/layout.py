"""The layout of the native stream (``kernel_module/cbt_events.h``) as numpy types."""

from __future__ import annotations

import numpy as np

MAGIC = b"CBTWRITE"
BATCH = 65536
#: Version to how many records make a batch, within which they are in any order.
BATCHES = {1: 1, 2: BATCH}
OP_END = 255
MAX_TRACKERS = 65_535

HEADER = np.dtype(
    [
        ("magic", "S8"),
        ("version", "<u4"),
        ("header_bytes", "<u4"),
        ("record_bytes", "<u4"),
        ("trackers", "<u4"),
        ("anchor_monotonic_ns", "<u8"),
        ("anchor_realtime_ns", "<u8"),
        ("first_seq", "<u8"),
        ("padding", "V16"),
    ]
)
TRACKER = np.dtype(
    [
        ("id", "<u4"),
        ("role", "u1"),
        ("padding", "V3"),
        ("granularity", "<u4"),
        ("interval", "<u4"),
        ("volume_size", "<u8"),
        ("name", "S40"),
    ]
)
EVENT = np.dtype(
    [
        ("seq", "<u8"),
        ("time_ns", "<u8"),
        ("offset", "<u8"),
        ("length", "<u8"),
        ("inode", "<u8"),
        ("inode_offset", "<u8"),
        ("interval", "<u4"),
        ("pid", "<u4"),
        ("flags", "<u4"),
        ("tracker", "<u2"),
        ("op", "u1"),
        ("known", "u1"),
        ("comm", "S16"),
    ]
)
KNOWN_INODE, KNOWN_INODE_OFFSET, KNOWN_TASK = 1, 2, 4
