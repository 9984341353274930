"""What the tracker costs a 4 KiB write in instructions, beside dm-era and dm-log-writes.

    python benchmarks/tracker.py [--kernel 6.1]… [--cpus 1]… [--rounds 2] [--json]

Real kernels run in QEMU's emulation, whose clock counts the instructions that
the guest executes: ``guest/writes.c`` writes and counts, ``guest/tracker.py``
makes the volumes.  A ratio is the bare volume's instructions over those of the
row, medians of all repeats.  The bar is for bitmap and events on the yardstick,
a volume on a real disk driver; every row says whether it would meet it.  The
exit status is 0 whatever the figures are.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from statistics import median
from typing import Any

from cbtlab.errors import CbtlabError
from cbtlab.lab import guest
from cbtlab.lab.kernels import VERSIONS

GUEST = Path(__file__).parent / "guest"
BAR = 0.97
MODULES = ("virtio_pci", "virtio_blk", "dm-mod", "null_blk", "dm-era", "dm-log-writes")
BASES = {
    "virtio-blk": "dm-linear over a disk with a driver that sends and waits: the yardstick",
    "null_blk": "dm-linear over a driver that does nothing: the leanest base there is",
}
WAYS = {"pwrite": "one after the other", "uring": "io_uring, 32 in flight"}
ROWS = {
    "bare": "dm-linear alone",
    "bitmap": "our hook and the bitmap of changed blocks",
    "events": "bitmap and events, which find room in the rings",
    "events, no reader": "bitmap and events with full rings: each is counted and dropped",
    "events, saved": "bitmap and events with cbtctl, which saves them as a file with a checksum, "
    "on the same CPUs: its own instructions count",
    "dm-era, new": "first write to a block in an era: it waits until that is on disk, in "
    "dm-era's metadata; ours does not survive a crash, and says so (unclean)",
    "dm-era, rewritten": "later writes to such a block: only a look at the bitmap; one bit an "
    "era and block like ours, no events, no discards told apart, no switch of several volumes",
    "dm-log-writes": "writes all data a second time, to a log on a disk of its own, in order; "
    "ours keeps no data",
}
LIMITS = (
    "Instruction counts show no cache misses, no contention for a cache line or a lock, and not "
    "what an atomic or a barrier costs; with 2 CPUs they show what is executed, spinning "
    "included, and not what is waited for.",
    "io_uring hands a write to a worker where the target cannot promise not to wait: dm-era and "
    "dm-log-writes cannot, dm-linear can, tracked or not.",
    "The disk answers after 1 ms and its own work is not counted; what waits meanwhile costs "
    "the switch to another task and back, as on a busy machine.",
)
# QEMU's disks that keep nothing and take 1 ms for it; the log's is as large as it may get.
_NOTHING = "driver=null-co,node-name={name},size={size},read-zeroes=on,latency-ns=1000000"
_DISKS = {"null": 256 << 20, "log": 16 << 30}

Key = tuple[str, int, str, str, str]


def compiled(folder: Path) -> Path:
    """Return the static program that writes and counts."""
    program = folder / "writes"
    words = ["gcc", "-static", "-pthread", "-O2", "-Wall", "-o", str(program)]
    subprocess.run([*words, str(GUEST / "writes.c")], check=True)
    return program


def run(kernel: str, plan: dict[str, Any], folder: Path) -> list[dict[str, Any]]:
    """Measure on one kernel; return the samples that ``guest/tracker.py`` took."""
    options = []
    for name, size in _DISKS.items():
        options += ["-blockdev", _NOTHING.format(name=name, size=size)]
        options += ["-device", f"virtio-blk-pci,drive={name},serial={name}"]
    done = guest.boot(
        kernel,
        "insmod /lab/cbt.ko && "
        f"PYTHONPATH=/lab/python python3.11 -B /tests/tracker.py '{json.dumps(plan)}'",
        files={"tests/tracker.py": GUEST / "tracker.py", "tests/writes": compiled(folder)},
        disks={"meta": 64 << 20},
        modules=MODULES,
        cpus=max(plan["cpus"]),
        work=folder / kernel,
        options=options,
        count_instructions=True,
        timeout=3600,
        on_phase=lambda words: print(f"{kernel}: {words}", file=sys.stderr),
    ).check()
    samples = json.loads((done.output / "samples.json").read_text())["samples"]
    return [{"kernel": kernel, **sample} for sample in samples]


def gathered(samples: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return one object a row: least, median and spread of all repeats, and the ratio."""
    numbers: dict[Key, list[float]] = defaultdict(list)
    for one in samples:
        key = (one["kernel"], one["cpus"], one["base"], one["way"], one["row"])
        # The first repeat still warms up caches of the kernel's.
        numbers[key] += one["instructions"][1:]
    found = []
    for (kernel, cpus, base, way, row), each in numbers.items():
        middle = median(each)
        ratio = median(numbers[kernel, cpus, base, way, "bare"]) / middle
        found.append(
            {
                "kernel": kernel,
                "cpus": cpus,
                "base": base,
                "way": way,
                "row": row,
                "repeats": len(each),
                "least": min(each),
                "median": middle,
                "spread": (max(each) - min(each)) / middle,
                "ratio": ratio,
                "meets": ratio >= BAR,
            }
        )
    return found


def table(rows: list[dict[str, Any]]) -> Iterable[str]:
    """Yield the lines of the tables, one table for each base, kernel and number of CPUs."""
    at = None
    for row in rows:
        here = (row["base"], row["kernel"], row["cpus"], row["way"])
        if here != at:
            at = here
            yield ""
            yield f"{row['base']} ({BASES[row['base']]})"
            yield f"kernel {row['kernel']}, {row['cpus']} CPU, {WAYS[row['way']]}"
            yield f"  {'instructions a write':24} {'least':>9} {'median':>9} {'spread':>7}    ratio"
        verdict = "" if row["row"] == "bare" else f"{'meets' if row['meets'] else 'below'} {BAR}"
        yield (
            f"  {row['row']:24} {row['least']:9.0f} {row['median']:9.0f} {row['spread']:7.1%}"
            f"  {row['ratio']:7.4f}  {verdict}"
        ).rstrip()


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kernel", action="append", choices=VERSIONS, dest="kernels")
    parser.add_argument("--cpus", action="append", type=int, choices=(1, 2))
    parser.add_argument("--base", action="append", choices=BASES, dest="bases")
    parser.add_argument("--way", action="append", choices=WAYS, dest="ways")
    parser.add_argument("--rounds", type=int, default=2, help="times through all rows")
    parser.add_argument("--count", type=int, default=200, help="writes a repeat and CPU")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


def main() -> None:
    given = options()
    plan = {
        "cpus": sorted(set(given.cpus or (1, 2))),
        "bases": given.bases or list(BASES),
        "ways": given.ways or list(WAYS),
        "rows": list(ROWS),
        "rounds": given.rounds,
        "count": given.count,
        "repeats": 4,
    }
    samples = []
    try:
        folder = Path(tempfile.mkdtemp(prefix="cbtlab-cost-"))
        for kernel in given.kernels or VERSIONS:
            samples += run(kernel, plan, folder)
        shutil.rmtree(folder)  # after a fault it stays: the console is in it
    except (CbtlabError, OSError, subprocess.CalledProcessError) as error:
        print(f"tracker: {error}", file=sys.stderr)
        sys.exit(2)
    rows = sorted(
        gathered(samples),
        key=lambda r: (
            *(list(BASES).index(r["base"]), r["kernel"] != VERSIONS[0], r["cpus"], r["way"]),
            list(ROWS).index(r["row"]),
        ),
    )
    if given.json:
        document = {"bar": BAR, "bases": BASES, "about": ROWS, "limits": LIMITS, "rows": rows}
        json.dump(document, sys.stdout, indent=1)
        return
    print(*table(rows), "", sep="\n")
    for name, words in ROWS.items():
        print(f"{name}: {words}.")
    print(*LIMITS, sep="\n")


if __name__ == "__main__":
    main()
