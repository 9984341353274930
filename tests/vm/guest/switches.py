"""Run in a guest: switches intervals under writers that never rest, and judges by the content.

Argument: a plan as JSON: the names of file systems, each with how many
switches of each part.  The parts:
``snapshots``  on a snapshot-origin; at each switch a snapshot is made, and read
               while writing goes on; its content is the truth of T_k
``late``       the same in the wrong order: resumed first, switched after
``discards``   with discards, on two linear volumes, one on top of the other,
               switched in one call; read while they are suspended
The result is /out/switches.json; intervals' bitmaps and the events go to /out.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import volumes
from volumes import FileSystem, Truth

from cbtlab.record.device_mapper import DeviceMapper, Snapshots, Target, size_of
from cbtlab.record.kernel_module import FROZEN, EventWriter, Module, Role, Switched, Tracker

OUT = Path("/out")
PLACE = Path("/mnt/volume")
DISK, STORE = "/dev/lab/volume", "/dev/lab/store"
MIB = 1 << 20
CHUNK = 32768  # larger than a block, so that a write is split, and faster to read than 4 KiB

mapper, module = DeviceMapper(), Module()

Rows = list[dict[str, Any]]


def save(tracker: Tracker, part: str, interval: int, discarded: bool = False) -> bytes:
    """Keep the frozen bitmap for the host, let the module forget it, and return it."""
    name = f"{part}-{tracker.id}-{interval}"
    bits = tracker.changed(FROZEN)
    (OUT / f"{name}.bits").write_bytes(bits)
    if discarded:
        (OUT / f"{name}.discarded").write_bytes(tracker.discarded(FROZEN))
    tracker.clear()
    return bits


@contextlib.contextmanager
def origin(size: int) -> Any:
    """Make the volume that has snapshots; yield its node."""
    base = mapper.create("base", [Target(0, size // 512, "linear", f"{DISK} 0")])
    table = [Target(0, size // 512, "snapshot-origin", base.node)]
    yield mapper.create("origin", table).node
    mapper.remove("origin")
    mapper.remove("base")


def instant(provider: Snapshots, tracker: Tracker, late: bool) -> tuple[str, Switched]:
    """Make a snapshot and switch, in the right order or too late; return its node."""
    provider.prepare()
    mapper.suspend("origin")
    node = provider.create("snapshot").node
    if not late:
        switched = module.switch([tracker])
    mapper.resume("origin")
    if late:
        volumes.let_write(tracker, least=50)
        switched = module.switch([tracker], running=True)
    assert switched.suspended is not late
    return node, switched


def snapshots(fs: FileSystem, count: int, part: str) -> Rows:
    late = part == "late"
    kinds = volumes.WRITERS if fs.mkfs else ("raw", "raw")
    truth, rows = Truth(), []
    with origin(size_of(DISK)) as node:
        provider = Snapshots(mapper, "origin", STORE, chunk=CHUNK)
        with volumes.made(fs, node, PLACE) as place:
            tracker = module.attach(node, role=Role.PHYSICAL, granularity=volumes.BLOCK)
            with volumes.loaded(place, kinds):
                for k in range(count + 1):
                    volumes.let_write(tracker)
                    # Every other switch finds a file system that was not frozen before it; a late
                    # one waits for writes, which a frozen one would not let through.
                    freeze = fs.freeze and k % 2 and not late
                    frozen = volumes.frozen(place) if freeze else None
                    with frozen or contextlib.nullcontext():
                        snapshot, switched = instant(provider, tracker, late)
                    bits = save(tracker, part, k)
                    row = truth.judge(snapshot, bits)
                    fill = provider.fill("snapshot")
                    assert fill.valid, f"the snapshot's store is full: {fill}"
                    provider.remove("snapshot")
                    if k:
                        rows.append({**row, "frozen_us": switched.frozen_ns // 1000})
        assert bool(tracker.status().faults) is late, tracker.status().faults
        tracker.detach()
    truth.forget()
    return rows


def discards(fs: FileSystem, count: int, part: str) -> Rows:
    size = size_of(DISK)
    # The upper volume is the lower one from its second MiB on.
    lower = mapper.create("lower", [Target(0, size // 512, "linear", f"{DISK} 0")])
    table = [Target(0, (size - MIB) // 512, "linear", f"{lower.node} 2048")]
    upper = mapper.create("upper", table)
    fine = module.attach(upper.node, role=Role.PHYSICAL, granularity=volumes.BLOCK)
    coarse = module.attach(lower.node, role=Role.PHYSICAL, granularity=16384)
    truths = Truth(span=(MIB, size - MIB)), Truth(16384)
    rows = []
    kinds = ("trim", *volumes.WRITERS[1:]) if fs.mkfs else ("raw", "raw")
    with (
        volumes.made(fs, upper.node, PLACE, "discard") as place,
        volumes.loaded(place, kinds),
    ):
        for k in range(count + 1):
            volumes.let_write(fine, coarse)
            mapper.suspend("upper")
            mapper.suspend("lower")
            switched = module.switch([fine, coarse])
            # Nobody writes now: what lies on the disk is the volumes' content.
            (OUT / f"{part}-{fine.id}-{k}.discarded").write_bytes(fine.discarded(FROZEN))
            bits = [save(tracker, part, k) for tracker in (fine, coarse)]
            row, under = (t.judge(DISK, b) for t, b in zip(truths, bits, strict=True))
            mapper.resume("lower")
            mapper.resume("upper")
            assert switched.suspended
            if k:
                rows.append(row | {"under": under, "frozen_us": switched.frozen_ns // 1000})
    for tracker, truth in zip((fine, coarse), truths, strict=True):
        assert not tracker.status().faults, tracker.status().faults
        assert tracker.status().discards, "no discard reached the tracker"
        tracker.detach()
        truth.forget()
    mapper.remove("upper")
    mapper.remove("lower")
    return rows


PARTS = {"snapshots": snapshots, "late": snapshots, "discards": discards}


def main() -> None:
    plan = json.loads(sys.argv[1])
    os.nice(-10)
    results: dict[str, Any] = {"release": os.uname().release, "parts": []}
    with EventWriter(module, OUT / "events.native"):
        for name, counts in plan.items():
            for part, count in counts.items():
                print(f"cbtlab: {name} {part} {count}", flush=True)
                begin = time.monotonic()
                rows = PARTS[part](volumes.FILE_SYSTEMS[name], count, part)
                about = {"file_system": name, "part": part, "rows": rows}
                results["parts"].append({**about, "seconds": time.monotonic() - begin})
    info = module.info()
    results |= {"recorded": info.recorded, "dropped": info.dropped}
    (OUT / "switches.json").write_text(json.dumps(results, indent=1))


main()
