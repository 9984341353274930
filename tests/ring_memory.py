"""Rings for tests, laid out and filled as the module does it, from the layout's description.

The memory is a file without a name that is mapped as the device is.
"""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

from streams import event

from cbtlab.record.stream import Described

ANCHOR = 1_000, 1_700_000_000_000_000_000
MAP_RINGS = 0x10000000
EVENT, PAGE = 80, 4096
SLOTS = PAGE  # where they begin


class Memory:
    """The module's side: ``rings`` rings of ``room`` events each.

    ``put`` are the events that went in, by number; ``dropped`` the other numbers.
    The events of ring r are of tracker 1 + r % 3.
    """

    def __init__(self, rings: int, room: int) -> None:
        self.count, self.room = rings, room
        self.size = -(-(SLOTS + rings * room * EVENT) // PAGE) * PAGE
        self.file = os.memfd_create("rings")
        os.truncate(self.file, MAP_RINGS + self.size)
        self.tails = mmap.mmap(self.file, PAGE)
        self.shared = mmap.mmap(self.file, self.size, offset=MAP_RINGS)
        self.put: dict[int, bytes] = {}
        self.dropped: set[int] = set()
        self.set(0, 1)

    @property
    def module(self) -> Any:
        """What a reader asks of a module; it has the trackers 1 (physical) and 2 (snapshot)."""
        return SimpleNamespace(
            path=f"/proc/self/fd/{self.file}", info=self.info, trackers=self.trackers, log=None
        )

    def info(self) -> Any:
        return SimpleNamespace(
            rings=self.count, ring_room=self.room, tails_bytes=PAGE, rings_bytes=self.size,
            slots_offset=SLOTS, next_seq=self.get(0), dropped=len(self.dropped),
            monotonic_ns=ANCHOR[0], realtime_ns=ANCHOR[1],
        )  # fmt: skip

    def trackers(self) -> list[Any]:
        named = [Described(n, n, 4096, 0, 1 << 30, f"dm-{n}") for n in (1, 2)]
        return [
            SimpleNamespace(
                tracker=one.id, role=one.role, major=0, minor=0, described=lambda one=one: one
            )
            for one in named
        ]

    def close(self) -> None:
        self.tails.close()
        self.shared.close()
        os.close(self.file)

    def set(self, offset: int, value: int) -> None:
        struct.pack_into("<Q", self.shared, offset, value)

    def get(self, offset: int) -> int:
        return struct.unpack_from("<Q", self.shared, offset)[0]

    def tail(self, ring: int) -> int:
        return struct.unpack_from("<Q", self.tails, 64 * ring)[0]

    def events(self, ring: int) -> Iterator[None]:
        """Put in one event after the other, as the module does; each ``next`` is one step."""
        own = 64 + 64 * ring
        while True:
            head = self.get(own)
            self.set(own + 8, self.get(0))  # pending
            yield
            seq = self.get(0)
            self.set(0, seq + 1)
            yield
            if head - self.tail(ring) >= self.room:
                self.dropped.add(seq)
            else:
                data = event(seq, 4096 * seq, 512, tracker=1 + ring % 3)
                at = SLOTS + (ring * self.room + head % self.room) * EVENT
                self.shared[at : at + EVENT] = data
                self.put[seq] = data
                yield
                self.set(own, head + 1)
            yield
            self.set(own + 8, 0)
            yield

    def fill(self, ring: int, count: int) -> None:
        """Put in ``count`` events at once."""
        producer = self.events(ring)
        before = self.get(0)
        while self.get(0) < before + count or self.get(64 + 64 * ring + 8):
            next(producer)
