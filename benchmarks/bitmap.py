"""10^7 events in memory become a bitmap of 1 TiB at 4 KiB: time and memory.

    python benchmarks/bitmap.py [--events N] [--json]

Two figures stand beside it, from the same run, because a time alone says as much of
the machine as of the code: the time of reading a file of the events' size (from
the page cache, after one reading to fill it), and a plain numpy version with one
byte a block.  Each is measured in a process of its own, so that its peak memory is its
own; the best of a few runs counts.  Where the processor's time is well below the
clock's, the machine was busy with something else.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cbtlab.bitmap import Bitmap

VOLUME = 1 << 40
GRANULARITY = 4096
RUNS = 5

Columns = tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint64]]


def events(number: int, largest: int) -> Columns:
    """Offsets and lengths of writes at random places, of 1 to ``largest`` blocks."""
    random = np.random.default_rng(20)
    length = random.integers(1, largest + 1, number, dtype=np.uint64)
    offset = random.integers(0, VOLUME // GRANULARITY - largest, number, dtype=np.uint64)
    offset *= np.uint64(GRANULARITY)
    length *= np.uint64(GRANULARITY)
    return offset, length


def ours(columns: Columns) -> bytes:
    offset, length = columns
    made = Bitmap.from_ranges(offset, length, volume_size=VOLUME, granularity=GRANULARITY)
    return bytes(made.to_bytes()[:8])


def plain(columns: Columns) -> bytes:
    """One byte a block, for events of one block; a running sum of one, for longer ones."""
    offset, length = columns
    first = (offset // GRANULARITY).astype(np.int64)
    last = ((offset + length - 1) // GRANULARITY).astype(np.int64)
    blocks = VOLUME // GRANULARITY
    if (first == last).all():
        mask = np.zeros(blocks, dtype=np.uint8)
        mask[first] = 1
    else:
        step = np.zeros(blocks + 1, dtype=np.int32)
        np.add.at(step, first, 1)
        np.add.at(step, last + 1, -1)
        np.cumsum(step, out=step)
        mask = (step[:-1] > 0).view(np.uint8)
    return bytes(np.packbits(mask, bitorder="little")[:8])


def reading(columns: Columns) -> bytes:
    """A file of the events' two columns, read into memory once the cache holds it."""
    with Path(reading_path).open("rb", buffering=0) as file:
        data = np.empty(sum(column.nbytes for column in columns), dtype=np.uint8)
        file.readinto(data)  # type: ignore[arg-type]
    return bytes(data[:8])


reading_path = ""


def measured(work: Callable[[Columns], bytes], number: int, largest: int) -> dict[str, float]:
    """Best seconds of clock and processor, and the peak memory beyond the events, in bytes."""
    columns = events(number, largest)
    before = _peak()
    clock, processor = [], []
    for _ in range(RUNS):
        begin = time.perf_counter(), time.process_time()
        work(columns)
        clock.append(time.perf_counter() - begin[0])
        processor.append(time.process_time() - begin[1])
    return {
        "seconds": min(clock),
        "processor_seconds": min(processor),
        "peak_bytes": _peak() - before,
    }


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _child(pipe: Any, name: str, number: int, largest: int) -> None:
    pipe.send(measured(globals()[name], number, largest))


def alone(name: str, number: int, largest: int) -> dict[str, float]:
    """Measure in a process of its own: a peak never falls again."""
    fork = multiprocessing.get_context("fork")
    here, there = fork.Pipe()
    process = fork.Process(target=_child, args=(there, name, number, largest))
    process.start()
    there.close()
    try:
        result: dict[str, float] = here.recv()
    finally:
        process.join()
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--events", type=int, default=10**7)
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    asked = parser.parse_args()
    global reading_path
    document: dict[str, Any] = {
        "events": asked.events,
        "volume_size": VOLUME,
        "granularity": GRANULARITY,
        "bitmap_bytes": VOLUME // GRANULARITY // 8,
        "workloads": {},
    }
    with tempfile.TemporaryDirectory() as folder:
        for label, largest in (("one block", 1), ("1 to 32 blocks", 32)):
            path = Path(folder) / "events"
            with path.open("wb") as file:
                for column in events(asked.events, largest):
                    file.write(column.data)
            reading_path = str(path)
            document["file_bytes"] = path.stat().st_size
            names = {"bitmap": "ours", "numpy": "plain", "read": "reading"}
            document["workloads"][label] = {
                key: alone(name, asked.events, largest) for key, name in names.items()
            }
    if asked.json:
        print(json.dumps(document, indent=1))
        return
    size = document["file_bytes"] / 2**20
    print(f"{asked.events:,} events ({size:.0f} MiB) into 1 TiB at 4 KiB (a bitmap of 32 MiB)")
    for label, figures in document["workloads"].items():
        print(f"\n{label} an event")
        mine = figures["bitmap"]["seconds"]
        titles = {
            "bitmap": "Bitmap.from_ranges",
            "numpy": "plain numpy, one byte a block",
            "read": "reading a file of the events' size",
        }
        for key, title in titles.items():
            found = figures[key]
            print(
                f"  {title:36}{found['seconds']:7.3f} s"
                f" (processor {found['processor_seconds']:6.3f} s)"
                f" {found['peak_bytes'] / 2**20:6.0f} MiB"
                f"   bitmap : this = {mine / found['seconds']:.2f}"
            )


if __name__ == "__main__":
    main()
