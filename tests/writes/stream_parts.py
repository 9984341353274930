"""Parts of a native stream that ``streams`` does not write: late descriptions, the first number."""

from __future__ import annotations

import struct

from streams import OPS, event

OPS.setdefault("tracker", 254)
FIRST_SEQ = 40  # where it is in the header


def described(number: int, *, role: int = 1, name: bytes = b"dm-9", size: int = 1 << 20) -> bytes:
    """Return the record that describes a tracker between the events."""
    return event(
        7, 0, size, op="tracker", tracker=number, time_ns=0, pid=0, known=0, comm=name,
        inode=4096, interval=5, flags=role,
    )  # fmt: skip


def beginning(data: bytes, first_seq: int) -> bytes:
    """Return a stream whose header says the lowest number that it could hold."""
    return data[:FIRST_SEQ] + struct.pack("<Q", first_seq) + data[FIRST_SEQ + 8 :]
