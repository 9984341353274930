"""Run in a guest: what the module recorded beside what an independent witness saw.

The witness is the kernel's tracepoint ``block:block_bio_queue``, read through
tracefs: one line for each bio that somebody submits to a volume.  Two parts:
``whole``    a reader that keeps up, on a volume whose driver splits writes (a
             snapshot-origin), on one that discards (linear), and on one that is
             suspended and switched meanwhile
``starved``  small rings, and a reader that is not there, slow, stopped or killed
For each: PART.trace, the events, and what the module says of itself, in /out.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import volumes
from fixtures import MIB, linear, mapper, module
from volumes import Truth

from cbtlab.record.device_mapper import Snapshots, Target
from cbtlab.record.kernel_module import FROZEN, EventWriter, Role, Tracker
from cbtlab.record.rings import Rings

OUT = Path("/out")
TRACING = Path("/sys/kernel/tracing")
POINT = TRACING / "events/block/block_bio_queue"
SIZE = 32 * MIB
EXT4 = volumes.FILE_SYSTEMS["ext4"]
ROOM = 256  # events, in all rings together: far fewer than are written
LEAST = 2000  # writes that are no remainders, where the reader keeps up


@contextlib.contextmanager
def witnessed(part: str, nodes: Sequence[str]) -> Iterator[None]:
    """Let the tracepoint see every bio to these volumes; keep what it saw as PART.trace."""
    numbers = [Path(node).stat().st_rdev for node in nodes]
    # The kernel's own dev_t: twenty bits for the minor number.
    devices = " || ".join(f"dev == {os.major(n) << 20 | os.minor(n)}" for n in numbers)
    (TRACING / "trace_clock").write_text("mono")
    (TRACING / "buffer_size_kb").write_text("32768")
    (TRACING / "trace").write_text("")
    (POINT / "filter").write_text(devices)
    (POINT / "enable").write_text("1")
    yield
    (POINT / "enable").write_text("0")
    for stats in TRACING.glob("per_cpu/cpu*/stats"):
        lines = dict(line.split(": ") for line in stats.read_text().splitlines())
        assert lines["overrun"] == lines["dropped events"] == "0", f"the witness lost: {lines}"
    with (OUT / f"{part}.trace").open("wb") as out:
        out.write((TRACING / "trace").read_bytes())


def describe(part: str, trackers: Sequence[tuple[Tracker, str]], **more: Any) -> None:
    """Keep what the module says, and which device is which tracker's."""
    info = module.info()
    about = {
        "next_seq": info.next_seq,
        "recorded": info.recorded,
        "dropped": info.dropped,
        "first_dropped": info.first_dropped,
        "last_dropped": info.last_dropped,
        "trackers": {
            tracker.id: {
                "device": f"{os.major(number)},{os.minor(number)}",
                "events": tracker.status().events,
                "remainders": tracker.status().remainders,
            }
            for tracker, node in trackers
            for number in [Path(node).stat().st_rdev]
        },
    }
    (OUT / f"{part}.json").write_text(json.dumps(about | more, indent=1))


def attach(node: str) -> tuple[Tracker, str]:
    return module.attach(node, role=Role.PHYSICAL, granularity=volumes.BLOCK), node


def whole() -> None:
    """Writers of every kind, and a reader that keeps up."""
    with (
        linear("base", SIZE) as base,
        linear("plain", SIZE, SIZE) as plain,
        linear("switched", SIZE, 2 * SIZE) as switched,
    ):
        split = mapper.create("split", [Target(0, SIZE // 512, "snapshot-origin", base)]).node
        provider = Snapshots(mapper, "split", "/dev/lab/store", chunk=4096)
        provider.prepare()
        mapper.suspend("split")
        provider.create("snapshot")
        mapper.resume("split")
        nodes = [split, plain, switched]
        with EventWriter(module, OUT / "whole.native"):
            with witnessed("whole", nodes):
                trackers = [attach(node) for node in nodes]
                count = write_all(nodes, [tracker for tracker, _ in trackers])
                volumes.settle(switched)
            describe("whole", trackers, switches=count)
            for tracker, _ in trackers:
                tracker.detach()
        mapper.remove("snapshot")
        mapper.remove("split")


def write_all(nodes: Sequence[str], trackers: Sequence[Tracker]) -> int:
    """Write until enough was seen, and switch the last volume meanwhile; return how often."""
    split, plain, last = nodes
    small = ("direct", "uring", "names")
    with (
        volumes.made(EXT4, split, Path("/mnt/split")) as first,
        volumes.made(EXT4, plain, Path("/mnt/plain"), "discard") as second,
        volumes.loaded(first, ("buffered", "direct")),
        volumes.loaded(second, (*small, "trim")),
        volumes.loaded(last, ["raw"]),
    ):
        seen, count = 0, 0
        while seen < LEAST:
            time.sleep(0.2)
            mapper.suspend("switched")
            time.sleep(0.05)  # writes gather that must wait
            module.switch(trackers[2:])
            mapper.resume("switched")
            trackers[2].clear()
            count += 1
            seen = sum(s.events - s.remainders for s in (t.status() for t in trackers))
    return count


def written(events: int) -> None:
    """Wait until so many more events were written, whether there was room for them or not."""
    goal, end = module.info().next_seq + events, time.monotonic() + 60
    while module.info().next_seq < goal:
        assert time.monotonic() < end, "the writers wrote too little"
        time.sleep(0.005)


def nobody() -> None:
    """Read nothing."""
    time.sleep(3600)


def steady() -> None:
    """Save events as they come, each span before the module may use its room again."""
    with Rings(module) as rings, (OUT / f"read-{os.getpid()}.events").open("wb", 0) as out:
        while True:
            rings.wait(1)
            with rings.take() as batch:
                for span in batch.spans:
                    out.write(span)


def slow() -> None:
    """The same, but not before so much was written that not all of it has room."""
    with Rings(module) as rings, (OUT / f"read-{os.getpid()}.events").open("wb", 0) as out:
        while True:
            written(2 * ROOM)
            with rings.take() as batch:
                for span in batch.spans:
                    out.write(span)


@contextlib.contextmanager
def child(work: Callable[[], None]) -> Iterator[int]:
    """Run ``work`` in a process until the block is left; yield its id."""
    process = os.fork()
    if not process:
        try:
            work()
        finally:
            os._exit(1)
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGCONT)
            os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)


def starved(part: str, reader: Callable[[], None], stop: int | None) -> None:
    """Write while a reader fails; then a second reader takes what is left."""
    module.ring(ROOM)
    truth = Truth(span=(SIZE, 16 * MIB))
    with linear("plain", start=SIZE) as node:
        truth.judge("/dev/lab/volume", None)
        with witnessed(part, [node]):
            tracker, _ = attach(node)
            with child(reader) as process, volumes.loaded(node, ["raw", "raw"]):
                written(ROOM)
                if stop is not None:
                    os.kill(process, stop)
                written(3 * ROOM)
                if stop == signal.SIGSTOP:
                    os.kill(process, signal.SIGCONT)
                    written(ROOM)
                # The volume goes still before its reader ends: all is counted.
            volumes.settle(node)
        mapper.suspend("plain")
        module.switch([tracker])
        row = truth.judge("/dev/lab/volume", tracker.changed(FROZEN))
        mapper.resume("plain")
        saved = sorted(OUT.glob("read-*.events"))
        with Rings(module) as rings, (OUT / "read-rest.events").open("wb") as out:
            known = module.info().next_seq
            below = 0
            while below < known:
                with rings.take(known) as batch:
                    for span in batch.spans:
                        out.write(span)
                    below = batch.below
        with (OUT / f"{part}.events").open("wb") as out:
            for path in [*saved, OUT / "read-rest.events"]:
                out.write(path.read_bytes())
                path.unlink()
        describe(part, [(tracker, node)], judged=row)
        tracker.detach()
    truth.forget()


def main() -> None:
    os.nice(-10)
    assert asdict(module.info())["rings"] >= 2, "one CPU only"
    TRACING.mkdir(exist_ok=True)
    volumes.mount("tracefs", TRACING, "tracefs")
    print("cbtlab: a reader that keeps up", flush=True)
    whole()
    for part, reader, stop in (
        ("nobody", nobody, None),
        ("slow", slow, None),
        ("stopped", steady, signal.SIGSTOP),
        ("killed", steady, signal.SIGKILL),
    ):
        print(f"cbtlab: a reader that is {part}", flush=True)
        starved(part, reader, stop)


main()
