"""Run in a guest: volumes upon volumes, each with writers that never rest, switched and judged.

Each function is one stack; it yields what was judged at every switch, and its
truth is always a way to the content that does not pass the tracker: the disk
below while all is suspended, a second table on that disk, or a snapshot.
The result is /out/stacks.json, with the events beside it.  LVM is in
``stacks_lvm.py``.  Needs dm-snapshot, dm-thin-pool, brd.  Arguments: the names
of the stacks to run; none for all.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import struct
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import stacks_lvm
import volumes
from fixtures import MIB, mapper, module
from volumes import Truth

from cbtlab.record.device_mapper import Snapshots, Target
from cbtlab.record.kernel_module import FROZEN, EventWriter, Role, Tracker

OUT = Path("/out")
DISK, STORE = "/dev/lab/volume", "/dev/lab/store"
SIZE = 32 * MIB
SWITCHES = 2
EXT4 = volumes.FILE_SYSTEMS["ext4"]
KINDS = ("direct", "mapped", "uring", "names")

Rows = Iterator[dict[str, Any]]


@dataclass
class Watched:
    """A tracked volume, and the device that shows its content while it is suspended."""

    name: str
    tracker: Tracker
    truth: Truth
    shown: str


def sectors(size: int) -> int:
    return size // 512


def create(name: str, *targets: Target) -> str:
    return mapper.create(name, list(targets)).node


def linear(name: str, below: str, size: int, start: int = 0) -> str:
    return create(name, Target(0, sectors(size), "linear", f"{below} {sectors(start)}"))


def watch(
    name: str,
    node: str,
    shown: str = DISK,
    span: tuple[int, int] | None = None,
    granularity: int = 4096,
) -> Watched:
    """Track a volume, whose content is that of ``span`` (offset, length) of ``shown``."""
    tracker = module.attach(node, role=Role.PHYSICAL, granularity=granularity)
    return Watched(name, tracker, Truth(granularity, span), shown)


def judged(watched: Watched, bits: bytes | None) -> dict[str, Any]:
    """Judge a volume's frozen bitmap, or what another kind of bitmap says of it."""
    row = watched.truth.judge(watched.shown, bits)
    return {"volume": watched.name, "tracker": watched.tracker.id, **row}


def switched(watched: Sequence[Watched], **options: Any) -> list[bytes]:
    """Switch all at one instant; note the instant, and return the frozen bitmaps."""
    done = module.switch([one.tracker for one in watched], **options)
    assert done.suspended is not bool(options.get("running"))
    about = {"trackers": [one.tracker.id for one in watched], "seq": done.seq}
    with (OUT / "instants.jsonl").open("a") as out:
        out.write(json.dumps(about) + "\n")
    bits = [one.tracker.changed(FROZEN) for one in watched]
    for one in watched:
        one.tracker.clear()
    return bits


def at_rest(suspended: Sequence[str], watched: Sequence[Watched]) -> Rows:
    """Switch while all of the stack, from the top down, is suspended, and judge there."""
    for name in suspended:
        mapper.suspend(name)
    rows = [judged(*pair) for pair in zip(watched, switched(watched), strict=True)]
    for name in reversed(suspended):
        mapper.resume(name)
    yield from rows


def rounds(suspended: Sequence[str], watched: Sequence[Watched]) -> Rows:
    """Switch again and again under writers; the first time only takes the content."""
    for k in range(SWITCHES + 1):
        volumes.let_write(*(one.tracker for one in watched))
        rows = list(at_rest(suspended, watched))
        if k:
            yield from rows


def finish(watched: Sequence[Watched], *names: str, faults: bool = False) -> None:
    """Detach, and remove the volumes, from the top of the stack down."""
    for one in watched:
        assert bool(one.tracker.status().faults) is faults, one.tracker.status().faults
        one.tracker.detach()
        one.truth.forget()
    for name in names:
        mapper.remove(name)


def linear_on_linear_with_partitions() -> Rows:
    """A disk, two partitions on it as device-mapper makes them, a volume on the first."""
    disk = linear("disk", DISK, 2 * SIZE + MIB)
    first = linear("part1", disk, SIZE, MIB)
    second = linear("part2", disk, SIZE, MIB + SIZE)
    top = linear("top", first, SIZE)
    all_of = [
        watch("top", top, span=(MIB, SIZE)),
        watch("part1", first, span=(MIB, SIZE), granularity=65536),
        watch("part2", second, span=(MIB + SIZE, SIZE), granularity=512),
        watch("disk", disk, span=(0, 2 * SIZE + MIB)),
    ]
    with (
        volumes.made(EXT4, top, Path("/mnt/top")) as place,
        volumes.loaded(place, KINDS),
        volumes.loaded(second, ["raw"]),
    ):
        yield from rounds(["top", "part1", "part2", "disk"], all_of)
    finish(all_of, "top", "part2", "part1", "disk")


def striped() -> Rows:
    """Stripes of 16 KiB over two tracked legs: one write reaches both."""
    legs = [linear(f"leg{n}", DISK, SIZE // 2, n * SIZE // 2) for n in (0, 1)]

    def stripes(name: str, *places: str) -> str:
        words = f"2 32 {' '.join(places)}"
        return create(name, Target(0, sectors(SIZE), "striped", words))

    top = stripes("stripes", f"{legs[0]} 0", f"{legs[1]} 0")
    shown = stripes("shown", f"{DISK} 0", f"{DISK} {sectors(SIZE // 2)}")
    all_of = [watch("stripes", top, shown)]
    all_of += [watch(f"leg{n}", legs[n], span=(n * SIZE // 2, SIZE // 2)) for n in (0, 1)]
    with volumes.made(EXT4, top, Path("/mnt/top")) as place, volumes.loaded(place, KINDS):
        yield from rounds(["stripes", "leg0", "leg1"], all_of)
    finish(all_of, "shown", "stripes", "leg0", "leg1")


def message(name: str, words: str) -> None:
    """Send a message to the target of a device-mapper volume."""
    mapper._call(14, name, data=struct.pack("=Q", 0) + words.encode() + b"\0")


def thin() -> Rows:
    """A thin volume with a file system, and a thin snapshot of it that is written too."""
    pool_data = linear("pool-data", DISK, 96 * MIB)
    meta = linear("pool-meta", STORE, 4 * MIB)
    volumes.write(meta, 0, bytes(4096))  # an empty superblock: a new pool
    words = f"{meta} {pool_data} 128 0"
    pool = create("pool", Target(0, sectors(96 * MIB), "thin-pool", words))
    message("pool", "create_thin 0")

    def activate(name: str, number: int) -> str:
        return create(name, Target(0, sectors(SIZE), "thin", f"{pool} {number}"))

    node = activate("thin", 0)
    with volumes.made(EXT4, node, Path("/mnt/top"), "discard") as place:
        mapper.suspend("thin")
        message("pool", "create_snap 1 0")
        mapper.resume("thin")
        copy = activate("thin-snapshot", 1)
        both = [watch("thin", node), watch("thin snapshot", copy)]
        with volumes.loaded(place, (*KINDS, "trim")), volumes.loaded(copy, ["raw"]):
            for k in range(SWITCHES + 1):
                volumes.let_write(*(one.tracker for one in both))
                mapper.suspend("thin")
                mapper.suspend("thin-snapshot")
                for number in (0, 1):
                    message("pool", f"create_snap {10 + number} {number}")
                bits = switched(both)
                mapper.resume("thin-snapshot")
                mapper.resume("thin")
                for number, one in enumerate(both):
                    one.shown = activate("truth", 10 + number)
                    row = judged(one, bits[number])
                    mapper.remove("truth")
                    message("pool", f"delete {10 + number}")
                    if k:
                        yield row
        assert both[0].tracker.status().discards, "no discard reached the thin volume"
    finish(both, "thin", "thin-snapshot", "pool", "pool-data", "pool-meta")


def two_snapshots() -> Rows:
    """An origin with two snapshots at once, each of another instant, and each written."""
    base = linear("base", DISK, SIZE)
    node = create("origin", Target(0, sectors(SIZE), "snapshot-origin", base))
    origin = watch("origin", node)
    stores = [linear(f"store{n}", STORE, SIZE + 8 * MIB, n * (SIZE + 8 * MIB)) for n in (0, 1)]
    with contextlib.ExitStack() as stack:
        place = stack.enter_context(volumes.made(EXT4, node, Path("/mnt/top")))
        stack.enter_context(volumes.loaded(place, KINDS))
        living: list[tuple[str, contextlib.ExitStack, Watched]] = []
        for k in range(SWITCHES + 2):
            volumes.let_write(origin.tracker, *(snapshot.tracker for *_, snapshot in living))
            if len(living) == 2:
                yield end_snapshot(*living.pop(0))
            provider = Snapshots(mapper, "origin", stores[k % 2], chunk=32768)
            provider.prepare()
            mapper.suspend("origin")
            name = f"snapshot{k % 2}"
            origin.shown = provider.create(name).node
            (bits,) = switched([origin])
            mapper.resume("origin")
            row = judged(origin, bits)
            if k:
                yield row
            snapshot = watch(name, origin.shown, origin.shown)
            judged(snapshot, None)  # as it is before anybody has written to it
            writers = contextlib.ExitStack()
            writers.enter_context(volumes.loaded(origin.shown, ["raw"]))
            living.append((name, writers, snapshot))
        for rest in living:
            volumes.let_write(rest[2].tracker)
            yield end_snapshot(*rest)
    finish([origin], "origin", "base", "store0", "store1")


def end_snapshot(name: str, writers: contextlib.ExitStack, snapshot: Watched) -> dict[str, Any]:
    """Judge what was written to a snapshot, which is never switched, and remove it."""
    writers.close()
    volumes.settle(snapshot.shown)
    words = mapper.status(name)[0].words
    assert "/" in words, f"the snapshot's store is full: {words}"
    row = judged(snapshot, snapshot.tracker.changed())
    finish([snapshot], name)
    return row


def several_volumes() -> Rows:
    """Three volumes that do not know of each other, switched in one call."""
    names = [f"volume{n}" for n in range(3)]
    nodes = [linear(name, DISK, SIZE, n * SIZE) for n, name in enumerate(names)]
    all_of = [watch(names[n], nodes[n], span=(n * SIZE, SIZE)) for n in range(3)]
    with (
        volumes.made(EXT4, nodes[0], Path("/mnt/top")) as place,
        volumes.loaded(place, KINDS),
        volumes.loaded(nodes[1], ["raw"]),
        volumes.loaded(nodes[2], ["raw"]),
    ):
        yield from rounds(names, all_of)
    finish(all_of, *names)


def several_products() -> Rows:
    """Trackers of three products on one volume, each with a granularity and a rhythm of its own."""
    node = linear("disk", DISK, SIZE)
    products = [
        (1, watch("every switch, 4 KiB", node, span=(0, SIZE))),
        (2, watch("every second, 64 KiB", node, span=(0, SIZE), granularity=65536)),
        (3, watch("every third, 512 bytes", node, span=(0, SIZE), granularity=512)),
    ]
    with volumes.made(EXT4, node, Path("/mnt/top")) as place, volumes.loaded(place, KINDS):
        for k in range(7):
            volumes.let_write(*(one.tracker for _, one in products))
            rows = list(at_rest(["disk"], [one for rhythm, one in products if k % rhythm == 0]))
            if k:
                yield from rows
    for rhythm, one in products:
        assert one.tracker.status().interval == 1 + 6 // rhythm
    finish([one for _, one in products], "disk")


def partitions_of_a_ram_disk() -> Rows:
    """Partitions of a disk that nobody can suspend: switched while the writers have ended."""
    disk = os.open("/dev/ram0", os.O_RDWR)
    numbers = []
    for part in (1, 2):
        data = struct.pack("=qqi64s64s4x", part * 4 * MIB, 4 * MIB, part, b"", b"")
        with contextlib.suppress(OSError):
            fcntl.ioctl(disk, 0x1269, stacks_lvm.blkpg(2, data))  # BLKPG_DEL_PARTITION
        fcntl.ioctl(disk, 0x1269, stacks_lvm.blkpg(1, data))  # BLKPG_ADD_PARTITION
        major, minor = Path(f"/sys/block/ram0/ram0p{part}/dev").read_text().split(":")
        numbers.append(f"/tmp/part{part}")
        os.mknod(numbers[-1], 0o60600, os.makedev(int(major), int(minor)))
    all_of = [
        watch("part1", numbers[0], "/dev/ram0", (4 * MIB, 4 * MIB)),
        watch("part2", numbers[1], "/dev/ram0", (8 * MIB, 4 * MIB), granularity=16384),
        watch("ram0", "/dev/ram0", "/dev/ram0", (0, 16 * MIB)),
    ]
    for k in range(SWITCHES + 1):
        with volumes.loaded(numbers[0], ["raw"]), volumes.loaded(numbers[1], ["raw"]):
            volumes.let_write(*(one.tracker for one in all_of))
        for number in numbers:
            volumes.settle(number)
        bits = switched(all_of, running=True)
        rows = [judged(*pair) for pair in zip(all_of, bits, strict=True)]
        if k:
            yield from rows
    finish(all_of, faults=True)
    os.close(disk)


def main() -> None:
    os.nice(-10)
    stacks = (
        linear_on_linear_with_partitions,
        striped,
        thin,
        two_snapshots,
        several_volumes,
        several_products,
        partitions_of_a_ram_disk,
        stacks_lvm.lvm,
    )
    results = {}
    with EventWriter(module, OUT / "events.native"):
        for stack in stacks:
            name = stack.__name__
            if sys.argv[1:] and name not in sys.argv[1:]:
                continue
            print(f"cbtlab: {name.replace('_', ' ')}", flush=True)
            begin = time.monotonic()
            rows = list(stack())
            results[name] = {"rows": rows, "seconds": time.monotonic() - begin}
    info = module.info()
    about = {"release": os.uname().release, "dropped": info.dropped, "stacks": results}
    (OUT / "stacks.json").write_text(json.dumps(about, indent=1))


if __name__ == "__main__":
    main()
