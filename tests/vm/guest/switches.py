"""Run in a guest: switches intervals under parallel writers and compares with the content.

Argument: how many correct switches on the volume with snapshots.  Three parts:
``snapshots``  ext4 on a snapshot-origin; at each switch a snapshot is made and
               read while writing goes on; its content is the truth of T_k
``late``       the same in the wrong order: resumed first, switched after
``discards``   ext4 with discards on two linear volumes, one on top of the
               other, switched in one call; read while they are suspended
The result is /out/switches.json; intervals' bitmaps and the events go to /out.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import volumes

from cbtlab.record.device_mapper import DeviceMapper, Snapshots, Target, size_of
from cbtlab.record.kernel_module import FROZEN, EventWriter, Module, Role, Tracker
from cbtlab.record.mounted import mount, unmount

OUT = Path("/out")
PLACE = Path("/mnt")
PAUSE = 0.1
CHUNK = 16384  # larger than a block, so that a write is split, and faster to read than 4 KiB


def make_file_system(node: str, options: str = "") -> None:
    subprocess.run(["/sbin/mke2fs", "-q", "-F", "-E", "nodiscard", "-t", "ext4", node], check=True)
    mount(node, PLACE, "ext4", options=options)


def compare(name: str, before: bytearray, after: bytearray, bits: bytes) -> dict[str, int]:
    """Hold a bitmap against two contents; ``missed`` must be nothing."""
    (OUT / f"{name}.bits").write_bytes(bits)
    changed, marked = volumes.differing(before, after), volumes.marked(bits)
    return {
        "changed": len(changed),
        "marked": len(marked),
        "missed": len(changed - marked),
        "surplus": len(marked - changed),
    }


def snapshots(mapper: DeviceMapper, module: Module, count: int, late: bool) -> list[dict]:
    part = "late" if late else "snapshots"
    sectors = size_of("/dev/lab/volume") // 512
    base = mapper.create("base", [Target(0, sectors, "linear", "/dev/lab/volume 0")])
    node = mapper.create("origin", [Target(0, sectors, "snapshot-origin", base.node)]).node
    provider = Snapshots(mapper, "origin", "/dev/lab/store", chunk=CHUNK)
    make_file_system(node)
    tracker = module.attach(node, role=Role.PHYSICAL, granularity=volumes.BLOCK)
    results: list[dict] = []
    before: bytearray | None = None
    with volumes.writers(
        PLACE, volumes.rewrite_synced, volumes.rewrite_direct, volumes.make_and_delete
    ):
        for k in range(count + 1):
            time.sleep(PAUSE)
            provider.prepare()
            mapper.suspend("origin")
            snapshot = provider.create("snapshot").node
            if not late:
                switched = module.switch([tracker])
            mapper.resume("origin")
            if late:
                time.sleep(0.02)
                switched = module.switch([tracker], running=True)
            after = volumes.content(snapshot)
            assert provider.fill("snapshot").valid, "the snapshot's store is full"
            provider.remove("snapshot")
            if before is not None:
                bits = tracker.changed(FROZEN)
                results.append(compare(f"{part}-{tracker.id}-{k}", before, after, bits))
                results[-1] |= {"frozen_us": switched.frozen_ns // 1000}
                assert switched.suspended is not late
            tracker.clear()
            before = after
    unmount(PLACE)
    faults = tracker.status().faults
    assert bool(faults) is late, faults
    tracker.detach()
    mapper.remove("origin")
    mapper.remove("base")
    return results


def discards(mapper: DeviceMapper, module: Module, count: int) -> list[dict]:
    sectors = size_of("/dev/lab/volume") // 512
    lower = mapper.create("lower", [Target(0, sectors, "linear", "/dev/lab/volume 0")])
    # The upper volume is the lower one from its second MiB on.
    upper = mapper.create("upper", [Target(0, sectors - 2048, "linear", f"{lower.node} 2048")])
    make_file_system(upper.node, "discard")
    trackers = [
        module.attach(upper.node, role=Role.PHYSICAL, granularity=volumes.BLOCK),
        module.attach(lower.node, role=Role.PHYSICAL, granularity=16384),
    ]
    results: list[dict] = []
    before: bytearray | None = None
    with volumes.writers(
        PLACE, volumes.punch_and_trim, volumes.make_and_delete, volumes.rewrite_direct
    ):
        for k in range(count + 1):
            time.sleep(PAUSE)
            mapper.suspend("upper")
            mapper.suspend("lower")
            switched = module.switch(trackers)
            after = volumes.content("/dev/lab/volume")
            mapper.resume("lower")
            mapper.resume("upper")
            assert switched.suspended
            if before is not None:
                results.append(both(k, trackers, before, after))
            before = after
    unmount(PLACE)
    for tracker in trackers:
        assert not tracker.status().faults, tracker.status().faults
        assert tracker.status().discards, "no discard reached the tracker"
        tracker.detach()
    mapper.remove("upper")
    mapper.remove("lower")
    return results


def both(k: int, trackers: list[Tracker], before: bytearray, after: bytearray) -> dict[str, int]:
    upper, lower = trackers
    name = f"discards-{upper.id}-{k}"
    start = 1 << 20
    result = compare(name, before[start:], after[start:], upper.changed(FROZEN))
    (OUT / f"{name}.discarded").write_bytes(upper.discarded(FROZEN))
    result["discarded"] = len(volumes.marked(upper.discarded(FROZEN)))
    coarse = volumes.differing(before, after, 16384) - volumes.marked(lower.changed(FROZEN))
    result["missed"] += len(coarse)
    return result


def main() -> None:
    count = int(sys.argv[1])
    os.nice(-10)
    mapper, module = DeviceMapper(), Module()
    module.ring(1 << 18)
    with EventWriter(module, OUT / "events.native"):
        results = {
            "snapshots": snapshots(mapper, module, count, late=False),
            "late": snapshots(mapper, module, 3, late=True),
            "discards": discards(mapper, module, max(2, count // 3)),
        }
    info = module.info()
    results["dropped"] = info.dropped
    results["release"] = os.uname().release
    (OUT / "switches.json").write_text(json.dumps(results, indent=1))


main()
