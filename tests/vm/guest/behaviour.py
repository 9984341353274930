"""Run in a guest: what the module refuses, and how it behaves where nothing may be silent.

Each function here, and in the lists of the files beside, is one behaviour; it
asserts, and an assertion ends the guest with a failure.  Arguments: the names
of some, instead of all.  Needs the modules dm-snapshot, brd and zram.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import commands
import holding
import reading
import refusals
import states
import volumes
from fixtures import (
    IDLE,
    MIB,
    PLACE,
    REMAINDER,
    SYNC,
    P,
    events,
    linear,
    mapper,
    module,
    refused,
    tracked,
)

from cbtlab.record.device_mapper import Snapshots, Target
from cbtlab.record.kernel_module import State
from cbtlab.record.mounted import mount, unmount


def marks_clip_and_round_outward() -> None:
    with linear() as node, tracked(node, 65536) as coarse, tracked(node, 512) as fine:
        volumes.write(node, 65536 - 512, b"x" * 1024)
        volumes.write(node, 16 * MIB - 512, b"x" * 512)
        assert volumes.marked(coarse.changed()) == {0, 1, 255}
        assert volumes.marked(fine.changed()) == {127, 128, 32767}
        found = events()
        assert [(e["tracker"], e["offset"], e["length"]) for e in found] == [
            (t.id, *rest) for rest in ((65024, 1024), (16 * MIB - 512, 512)) for t in (coarse, fine)
        ]
        assert [e["seq"] for e in found] == list(range(found[0]["seq"], found[0]["seq"] + 4))
        assert all(e["op"] == 1 and e["pid"] == os.getpid() for e in found)
        assert all(e["comm"].startswith(b"python3.11") for e in found)
        assert all(e["flags"] & (SYNC | IDLE) for e in found)


def split_writes_are_marked_remainders() -> None:
    with linear("base") as base:
        node = mapper.create("disk", [Target(0, 32768, "snapshot-origin", base)]).node
        provider = Snapshots(mapper, "disk", "/dev/lab/store")
        provider.prepare()
        mapper.suspend("disk")
        provider.create("snapshot")
        mapper.resume("disk")
        with tracked(node) as tracker:
            volumes.write(node, MIB, b"x" * 65536)
            found = events()
            assert [e["offset"] for e in found] == list(range(MIB, MIB + 65536, 4096))
            assert [bool(e["flags"] & REMAINDER) for e in found] == [False] + [True] * 15
            status = tracker.status()
            assert (status.events, status.bytes, status.remainders) == (16, 65536, 15)
        provider.remove("snapshot")
        mapper.remove("disk")


def deferred_writes_belong_to_the_new_interval() -> None:
    with linear() as node, tracked(node, interval=7) as tracker:
        mapper.suspend("disk")
        child = os.fork()
        if not child:
            volumes.write(node, 0, b"x" * 4096)
            os._exit(0)
        time.sleep(0.3)
        module.switch([tracker])
        assert not any(tracker.changed())
        mapper.resume("disk")
        assert os.waitpid(child, 0)[1] == 0
        assert volumes.marked(tracker.changed()) == {0}
        assert [(e["interval"], e["flags"] & REMAINDER) for e in events()] == [(7, 0), (8, 0)]
        assert not tracker.status().faults


def discards_are_kept_apart() -> None:
    with linear() as node, tracked(node) as tracker:

        def blkdiscard(call: int, start: int, length: int) -> None:
            fd = os.open(node, os.O_RDWR)
            fcntl.ioctl(fd, call, struct.pack("=QQ", start, length))
            os.close(fd)

        blkdiscard(0x1277, 1024, 4 * 4096)  # BLKDISCARD
        assert volumes.marked(tracker.changed()) == {0, 1, 2, 3, 4}
        assert volumes.marked(tracker.discarded()) == {1, 2, 3}
        volumes.write(node, 2 * 4096, b"x" * 512)
        assert volumes.marked(tracker.discarded()) == {1, 3}
        blkdiscard(0x127F, 3 * 4096, 4096)  # BLKZEROOUT
        assert volumes.marked(tracker.discarded()) == {1}
        assert [e["op"] for e in events()] in ([3, 1, 2], [3, 1, 1])
        blkdiscard(0x1277, 0, 16 * MIB)
        assert len(volumes.marked(tracker.discarded())) == 4096
        assert tracker.status().discards >= 2


def inode_is_told_only_where_it_is_known() -> None:
    with linear(size=32 * MIB) as node:
        subprocess.run(["/sbin/mke2fs", "-q", "-F", "-t", "ext4", node], check=True)
        mount(node, PLACE, "ext4")
        with tracked(node):
            path = PLACE / "file"
            with path.open("wb") as out:
                out.write(b"x" * 40960)
                out.flush()
                os.fsync(out.fileno())
            number = path.stat().st_ino
            known = [e for e in events() if e["known"] & 1]
            assert known
            assert {e["inode"] for e in known} == {number}
            covered = sum(e["length"] for e in known)
            assert covered == 40960
            assert sorted(e["inode_offset"] for e in known)[0] == 0
            volumes.write(path, 0, b"y" * 4096)
            direct = [e for e in events() if e["length"] == 4096 and e["flags"] & IDLE]
            assert direct
            assert all(e["known"] == 4 for e in direct)
        unmount(PLACE)


def growth_and_shrinking_are_told() -> None:
    def resize(size: int) -> None:
        mapper.suspend("disk")
        mapper.load("disk", [Target(0, size // 512, "linear", "/dev/lab/volume 0")])
        mapper.resume("disk")

    with linear(size=8 * MIB) as node, tracked(node, tables=True) as tracker:
        resize(12 * MIB)
        assert tracker.status().states == State.GREW, "not told before it is written"
        assert "larger than it was" in tracker.status().faults[0]
        volumes.write(node, 8 * MIB - 4096, b"x" * 12288)
        assert volumes.marked(tracker.changed()) == {2047}
        status = tracker.status()
        assert status.states == State.GREW
        assert (status.grown_to, status.current_size) == (8 * MIB + 8192, 12 * MIB)
        assert status.faults
        resize(4 * MIB)
        assert tracker.status().states == State.GREW | State.SHRANK
        resize(8 * MIB)
        assert State.SHRANK in tracker.status().states, "not sticky"


def partitions_count_from_their_start() -> None:
    disk = os.open("/dev/ram0", os.O_RDWR)
    part = struct.pack("=qqi64s64s4x", MIB, 2 * MIB, 1, b"", b"")
    with contextlib.suppress(OSError):
        fcntl.ioctl(disk, 0x1269, blkpg(2, part))  # BLKPG_DEL_PARTITION
    fcntl.ioctl(disk, 0x1269, blkpg(1, part))  # BLKPG_ADD_PARTITION
    numbers = tuple(map(int, Path("/sys/block/ram0/ram0p1/dev").read_text().split(":")))
    with tracked(numbers) as tracker, tracked("/dev/ram0") as whole:
        assert tracker.status().volume_size == 2 * MIB
        assert tracker.status().name == "ram0p1"
        volumes.write("/dev/ram0", MIB - 4096, b"x" * 8192)  # into its first block
        volumes.write("/dev/ram0", 3 * MIB, b"x" * 4096)  # just past it
        os.mknod("/tmp/part", 0o60600, os.makedev(*numbers))
        volumes.write("/tmp/part", 8192, b"x" * 4096)
        assert volumes.marked(tracker.changed()) == {0, 2}
        assert volumes.marked(whole.changed()) == {255, 256, 258, 768}
        ranges = [(e["offset"], e["length"]) for e in events() if e["tracker"] == tracker.id]
        assert ranges == [(0, 4096), (8192, 4096)]
        with refused(errno.EOPNOTSUPP):  # no device-mapper: cannot be suspended
            module.switch([tracker])
        assert not module.switch([tracker, whole], running=True).suspended
        assert State.RUNNING in tracker.status().states
    os.close(disk)


def blkpg(operation: int, part: bytes) -> bytes:
    import ctypes

    blkpg.kept = ctypes.create_string_buffer(part)
    address = ctypes.addressof(blkpg.kept)
    return struct.pack("=iii4xQ", operation, 0, len(part), address)


def attach_and_detach_many_times() -> None:
    with linear() as node, volumes.writers(Path("/tmp"), lambda _, seed: hammer(node)):
        for count in range(40):
            trackers = [module.attach(node, role=P, granularity=4096) for _ in range(3)]
            volumes.write(node, 4096 * (1000 + count), b"x" * 4096)
            for tracker in trackers:
                assert 1000 + count in volumes.marked(tracker.changed())
                tracker.detach()
    events()


def hammer(node: str) -> Iterator[None]:
    while True:
        for block in range(100):
            volumes.write(node, block * 4096, b"y" * 4096)
        yield


BEHAVIOURS = (
    *refusals.BEHAVIOURS,
    marks_clip_and_round_outward,
    split_writes_are_marked_remainders,
    deferred_writes_belong_to_the_new_interval,
    discards_are_kept_apart,
    inode_is_told_only_where_it_is_known,
    growth_and_shrinking_are_told,
    partitions_count_from_their_start,
    *states.BEHAVIOURS,
    *holding.BEHAVIOURS,
    *reading.BEHAVIOURS,
    *commands.BEHAVIOURS,
    attach_and_detach_many_times,
    refusals.random_calls_do_no_harm,
)


def main(names: list[str]) -> None:
    for behaviour in BEHAVIOURS:
        if names and behaviour.__name__ not in names:
            continue
        print(f"cbtlab: {behaviour.__name__.replace('_', ' ')}", flush=True)
        behaviour()
        assert module.info().trackers == 0, "a tracker was left"
    module.close()
    subprocess.run(["/lab/busybox", "rmmod", "cbt"], check=True)


if __name__ == "__main__":
    main(sys.argv[1:])
