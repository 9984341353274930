"""Power cuts: what a disk may hold afterwards, and whether the state on it is right.

QEMU's block driver ``blklogwrites`` notes what the guest writes to its disk and
when it flushes, in the order in which that was done.  A cut at an entry of that
log is the disk with everything before the last flush, and a random half of what
came since.  (A write that ended while a flush was under way counts as flushed;
no guest relies on that.)

All that matters is on one disk (``guest/crash_disk.py``), so that the log has
one order: the state, the volume, and the reference that is the truth.
"""

from __future__ import annotations

import json
import struct
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from crash_lives import DISK_SIZE, Step, run

STATE_SIZE, LABEL, VOLUME = 8 << 20, 40 << 20, 41 << 20  # guest/crash_disk.py
_CUTS_A_BOOT = 8
# Linux, drivers/md/dm-log-writes.c; QEMU, block/blklogwrites.c
_SECTOR = 512
_SUPER = struct.Struct("<QQQI")
_ENTRY = struct.Struct("<QQQQ")
_MAGIC = 0x6A736677736872
_FLUSH, _DISCARD = 1, 4


@dataclass(frozen=True)
class Entry:
    """One write of the log: where it went, and where its data lies; or a flush."""

    offset: int
    length: int
    data: int
    flush: bool


def entries(log: Path) -> list[Entry]:
    """Return what QEMU logged, in the order in which it was done."""
    found = []
    with log.open("rb") as source:
        magic, version, count, sector = _SUPER.unpack(source.read(_SUPER.size))
        assert (magic, version, sector) == (_MAGIC, 1, _SECTOR), "no log of writes"
        at = _SECTOR
        for _ in range(count):
            source.seek(at)
            first, sectors, flags, _ = _ENTRY.unpack(source.read(_ENTRY.size))
            assert not flags & _DISCARD, "the guest's disk has no discard"
            at += _SECTOR
            found.append(Entry(first * _SECTOR, sectors * _SECTOR, at, bool(flags & _FLUSH)))
            at += sectors * _SECTOR
    return found


def moments(found: Sequence[Entry], count: int, rng: Random) -> list[int]:
    """Return where to cut: once at the end, after a stop; else anywhere, or in certain writes.

    Those are the ones to the state, and the ones to the volume: a third each.
    """
    made = next(n for n, entry in enumerate(found) if entry.offset == LABEL and entry.length)
    written = [n for n, entry in enumerate(found) if n > made + 1 and entry.length]
    state = [n for n in written if found[n].offset < STATE_SIZE]
    volume = [n for n in written if found[n].offset >= VOLUME]
    return [len(found)] + [
        min(rng.choice((written, state, volume)[number % 3]) + rng.randrange(4), len(found))
        for number in range(count - 1)
    ]


def cut(log: Path, found: Sequence[Entry], end: int, rng: Random, to: Path) -> None:
    """Write the disk as a power cut at entry ``end`` may have left it."""
    flushed = max((n for n in range(end) if found[n].flush), default=0)
    with log.open("rb") as source, to.open("wb") as out:
        out.truncate(DISK_SIZE)
        for number, entry in enumerate(found[:end]):
            if entry.length and (number < flushed or rng.random() < 0.5):
                source.seek(entry.data)
                out.seek(entry.offset)
                out.write(source.read(entry.length))


def record(kernel: str, rounds: int, rng: Random, work: Path) -> Path:
    """Let a guest go round ``rounds`` times, and return the log of what it wrote."""
    disk, log = work / "logged", work / "log"
    for path, size in (disk, DISK_SIZE), (log, 0):
        with path.open("wb") as out:
            out.truncate(size)
    # The host's own flushes mean nothing here.
    files = {
        name: {"driver": "file", "filename": str(path), "cache": {"no-flush": True}}
        for name, path in (("file", disk), ("log", log))
    }
    drive = {"driver": "blklogwrites", "node-name": "logged", **files}
    options = ["-blockdev", json.dumps(drive), "-device", "virtio-blk-pci,drive=logged,serial=disk"]
    program = f"crash_rounds.py {rng.randrange(1 << 30)} {rounds}"
    timeout = 30 * rounds + 240
    run(kernel, program, work, lambda _: None, options=options, timeout=timeout).check()
    return log


def cuts(kernel: str, rounds: int, count: int, rng: Random, work: Path) -> Iterator[Step]:
    """Record some rounds, cut the power ``count`` times, and yield what each cut left."""
    log = record(kernel, rounds, rng, work)
    found = entries(log)
    ends = moments(found, count, rng)
    while ends:
        now = {f"cut{number}": ends.pop() for number in range(min(len(ends), _CUTS_A_BOOT))}
        for name, end in now.items():
            cut(log, found, end, rng, work / name)
        told: list[Step] = []
        run(
            kernel,
            f"crash_cuts.py {' '.join(now)}",
            work,
            told.append,
            disks={name: work / name for name in now},
            timeout=30 * len(now) + 240,
        ).check()
        assert len(told) == len(now)
        for step, end in zip(told, now.values(), strict=True):
            yield Step(step.name, {"entry": f"{end}/{len(found)}", **step.figures})


def faults(told: Sequence[Step]) -> list[str]:
    """Return a sentence for each cut that left a clean state which misses a block."""
    return [
        f"cut at {step.figures['entry']}: clean, {wrong}"
        for step in told
        if (wrong := step.wrong())
    ]


def figures(told: Sequence[Step]) -> dict[str, Any]:
    """Return what was seen over all cuts."""
    judged = [step.figures for step in told if step.figures["state"] == "clean"]
    return {
        "cuts": len(told),
        "states": dict(sorted(Counter(step.figures["state"] for step in told).items())),
        **{name: sum(int(f[name]) for f in judged) for name in ("changed", "marked", "missed")},
    }
