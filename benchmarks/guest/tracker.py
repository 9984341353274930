"""Run in a guest whose clock counts instructions: what a 4 KiB write takes, tracked or not.

    python3.11 tracker.py PLAN

PLAN is JSON: bases, ways and rows to measure (names), cpus, rounds, count and
repeats.  The rounds go through all rows before they begin anew, each with fresh
volumes.  Samples go to /out/samples.json as a list of objects.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from cbtlab.record.device_mapper import DeviceMapper, Target
from cbtlab.record.kernel_module import Module, Role, Tracker

DISKS = {"virtio-blk": "/dev/lab/null", "null_blk": "/dev/nullb0"}
SIZE = 256 << 20
BLOCK = 4096
SECTOR = 512
ROOM = 1 << 16
WARM_UP, IN_FLIGHT = 512, 32  # as in writes.c
CPU_1 = Path("/sys/devices/system/cpu/cpu1/online")
# Early on the kernel checks keys and signatures in the background: let it come to rest.
SETTLING_S = 3

mapper = DeviceMapper()
module = Module()
# How many writes one run of ``writes`` submits, all threads together.
Writes = int


@contextlib.contextmanager
def volume(target: str, words: str) -> Iterator[str]:
    """Make a volume with one target for the length of a ``with``; yield its node."""
    yield mapper.create("volume", [Target(0, SIZE // SECTOR, target, words)]).node
    mapper.remove("volume")


@contextlib.contextmanager
def bare(disk: str, written: Writes) -> Iterator[str]:
    """The base of every ratio."""
    with volume("linear", f"{disk} 0") as node:
        yield node


@contextlib.contextmanager
def tracked(node: str, room: int = ROOM, **how: Any) -> Iterator[Tracker]:
    """Attach a tracker; the rings are empty, with room for so many events."""
    module.ring(room)
    tracker = module.attach(node, role=Role.PHYSICAL, granularity=BLOCK, **how)
    yield tracker
    tracker.detach()


def check_bits(tracker: Tracker, written: Writes) -> None:
    """It was not measured how cheap it is to record nothing."""
    assert tracker.status().events == written
    assert sum(map(int.bit_count, tracker.changed())) > WARM_UP


@contextlib.contextmanager
def bitmap(disk: str, written: Writes) -> Iterator[str]:
    """Our hook and the bitmap."""
    with bare(disk, written) as node, tracked(node, events=False) as tracker:
        yield node
        check_bits(tracker, written)
        assert module.info().next_seq == 1


@contextlib.contextmanager
def events(disk: str, written: Writes) -> Iterator[str]:
    """Our hook, the bitmap and events, all of which find room in the rings."""
    with bare(disk, written) as node, tracked(node) as tracker:
        yield node
        check_bits(tracker, written)
        assert (module.info().recorded, module.info().dropped) == (written, 0)


@contextlib.contextmanager
def no_reader(disk: str, written: Writes) -> Iterator[str]:
    """The same with full rings: events are counted and dropped."""
    with bare(disk, written) as node, tracked(node, room=16) as tracker:
        yield node
        check_bits(tracker, written)
        assert module.info().dropped >= written - 64


@contextlib.contextmanager
def saved(disk: str, written: Writes) -> Iterator[str]:
    """The same with a reader that saves all events meanwhile; its work counts too."""
    file = Path("/tmp/events")
    with bare(disk, written) as node, tracked(node) as tracker:
        reader = subprocess.Popen(["cbtctl", "events", file, "--follow"])
        time.sleep(0.3)
        yield node
        check_bits(tracker, written)
        reader.terminate()
        assert reader.wait() == 0
        assert module.info().dropped == 0
        assert file.stat().st_size > 80 * written
        file.unlink()


@contextlib.contextmanager
def era(disk: str, written: Writes) -> Iterator[str]:
    """dm-era in place of dm-linear, in a new era."""
    with Path("/dev/lab/meta").open("r+b", buffering=0) as meta:
        meta.write(bytes(BLOCK))
    with volume("era", f"/dev/lab/meta {disk} {BLOCK // SECTOR}") as node:
        subprocess.run(["dmsetup", "message", "volume", "0", "checkpoint"], check=True)
        yield node


@contextlib.contextmanager
def log_writes(disk: str, written: Writes) -> Iterator[str]:
    """dm-log-writes in place of dm-linear."""
    with volume("log-writes", f"{disk} /dev/lab/log") as node:
        yield node


ALL, FEW = SIZE // BLOCK, WARM_UP
# How the volume is made, how many of its blocks are written to, and how long (ms) what is done
# after the writes still counts: cbtctl takes events in batches.
Row = tuple[Callable[[str, Writes], AbstractContextManager[str]], int, int]
ROWS: dict[str, Row] = {
    "bare": (bare, ALL, 0),
    "bitmap": (bitmap, ALL, 0),
    "events": (events, ALL, 0),
    "events, no reader": (no_reader, ALL, 0),
    "events, saved": (saved, ALL, 50),
    "dm-era, new": (era, ALL, 0),
    "dm-era, rewritten": (era, FEW, 0),
    "dm-log-writes": (log_writes, ALL, 0),
}


def measure(base: str, way: str, row: str, cpus: int, count: int, repeats: int) -> list[float]:
    """Return instructions a write, one number for each repeat."""
    make, span, rest = ROWS[row]
    written = cpus * (WARM_UP + IN_FLIGHT + repeats * count)
    with make(DISKS[base], written) as node:
        words = [node, way, cpus, count, repeats, span, rest]
        done = subprocess.run(
            ["/tests/writes", *map(str, words)], check=True, stdout=subprocess.PIPE, text=True
        )
    return [float(number) for number in done.stdout.split()]


def main() -> None:
    plan = json.loads(sys.argv[1])
    time.sleep(SETTLING_S)
    samples = []
    for cpus in plan["cpus"]:
        if cpus == 2:
            CPU_1.write_text("1")
        assert os.cpu_count() == cpus
        for _ in range(plan["rounds"]):
            for base, way, row in itertools.product(plan["bases"], plan["ways"], plan["rows"]):
                numbers = measure(base, way, row, cpus, plan["count"], plan["repeats"])
                samples.append(
                    {"cpus": cpus, "base": base, "way": way, "row": row, "instructions": numbers}
                )
            print(f"cbtlab: a round on {cpus} CPU is done", flush=True)
    found = {"release": os.uname().release, "samples": samples}
    Path("/out/samples.json").write_text(json.dumps(found))


main()
