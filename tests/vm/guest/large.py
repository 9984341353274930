"""Run in a guest: a sparse volume of 16 TiB beside one of 16 MiB, attached and switched alike.

Both are snapshots over dm-zero: what is written goes to a small store.  What
was measured goes to /out/large.json.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fixtures import MIB, mapper, module, refused, suspended, tracked
from volumes import BLOCK, write

from cbtlab.record import uapi
from cbtlab.record.device_mapper import Target
from cbtlab.record.kernel_module import ACTIVE, FROZEN, Kind, Tracker

TIB = 1 << 40
LARGE, SMALL = 16 * TIB, 16 * MIB
STORE = 32 * MIB
SWITCHES = 5
# A bitmap's part that is read and compared: at its end, and around the other writes.
PART = 4096


@contextlib.contextmanager
def sparse(name: str, size: int, store: int) -> Iterator[str]:
    """Make a volume of zeros whose writes go to the store's ``store``-th part; yield its node."""
    zero = mapper.create(f"{name}-zero", [Target(0, size // 512, "zero", "")]).node
    part = [Target(0, STORE // 512, "linear", f"/dev/lab/store {store * STORE // 512}")]
    cow = mapper.create(f"{name}-store", part).node
    words = f"{zero} {cow} N {BLOCK // 512}"
    yield mapper.create(name, [Target(0, size // 512, "snapshot", words)]).node
    for each in (name, f"{name}-store", f"{name}-zero"):
        mapper.remove(each)


def bits(tracker: Tracker, offset: int, length: int, which: int) -> bytes:
    """Return a part of a tracker's bitmap of changed blocks, in bytes of it."""
    buffer = ctypes.create_string_buffer(length)
    place = ctypes.addressof(buffer)
    words = (place, offset, length, tracker.id, which, Kind.CHANGED, 0)
    fields = module.call(f"tracker {tracker.id}", uapi.IOC_BITS, uapi.BITS, *words)
    assert fields[2] == length
    return buffer.raw


def write_and_check(tracker: Tracker, node: str, size: int, blocks: list[int]) -> None:
    """Write these blocks; each has its bit, and what lies beside it in the bitmap has none."""
    for block in blocks:
        write(node, block * BLOCK, b"w" * BLOCK)
    check(tracker, size, blocks, ACTIVE)


def check(tracker: Tracker, size: int, blocks: list[int], which: int) -> None:
    """Compare the parts of a bitmap that hold ``blocks``."""
    for block in blocks:
        start = block // 8 // PART * PART
        length = min(PART, size // BLOCK // 8 - start)
        expected = bytearray(length)
        for each in blocks:
            if 0 <= each // 8 - start < length:
                expected[each // 8 - start] |= 1 << each % 8
        assert bits(tracker, start, length, which) == expected, (block, which)


def switch(tracker: Tracker, name: str, node: str, size: int, blocks: list[int]) -> tuple[int, int]:
    """Write, suspend, switch, resume, read a part, clear.

    Returns the nanoseconds frozen, and those that clearing took.
    """
    write_and_check(tracker, node, size, blocks)
    with suspended(name):
        frozen_ns = module.switch([tracker]).frozen_ns
    check(tracker, size, blocks, FROZEN)
    check(tracker, size, [], ACTIVE)
    begin = time.monotonic_ns()
    tracker.clear()
    return frozen_ns, time.monotonic_ns() - begin


def killed() -> int:
    """Return how many processes the kernel has killed for want of memory."""
    lines = (line.split() for line in Path("/proc/vmstat").read_text().splitlines())
    return int(dict(lines)["oom_kill"])


def available() -> int:
    """Return the bytes that can be had without swapping."""
    lines = (line.split() for line in Path("/proc/meminfo").read_text().splitlines())
    return 1024 * int({line[0]: line[1] for line in lines}["MemAvailable:"])


def too_much(node: str) -> None:
    """What cannot be had is refused with a sentence, and leaves everything as it was."""
    before = available()
    with (
        refused(errno.ENOMEM, saying="17179869184 bytes of memory, which cannot be had"),
        tracked(node, 512),
    ):
        pass
    assert killed() == 0
    assert available() > before - 64 * MIB


def main() -> None:
    last, far = LARGE // BLOCK - 1, 10 * TIB // BLOCK + 5
    large, small = [far, last], [7, SMALL // BLOCK - 1]
    found: dict[str, Any] = {"release": os.uname().release, "large": [], "small": []}
    found["clear_ns"] = []
    with sparse("large", LARGE, 0) as node, sparse("small", SMALL, 1) as other:
        too_much(node)
        begin = time.monotonic()
        with tracked(node) as tracker, tracked(other) as beside:
            found["attach_seconds"] = time.monotonic() - begin
            status = tracker.status()
            found["memory"], found["bitmap_bytes"] = status.memory, status.bitmap_bytes
            # Two such volumes are one too many for this machine; the first goes on.
            with refused(errno.ENOMEM, saying="cannot be had"), tracked(node):
                pass
            for _ in range(SWITCHES):
                frozen_ns, clear_ns = switch(tracker, "large", node, LARGE, large)
                found["large"].append(frozen_ns)
                found["clear_ns"].append(clear_ns)
                found["small"].append(switch(beside, "small", other, SMALL, small)[0])
            assert tracker.status().states == 0
            assert killed() == 0
    Path("/out/large.json").write_text(json.dumps(found))


main()
