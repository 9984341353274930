"""The module under hostile calls, with failing memory, and on a kernel that looks for faults.

On the debug kernel (``make faults``; skipped without that):
the programs of the ordinary tests, all allocations failing one after the
other, and ``CBTLAB_HOSTILE_CALLS`` hostile calls, with no report and no leak.
On the cloud kernels: a short form of the hostile calls.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from programs import FILE_SYSTEM_PACKAGES, GUEST, tools

from cbtlab.lab import debug_kernel, guest, kernels
from cbtlab.lab.cache import cache_dir, filled
from cbtlab.lab.initramfs import MODULES

HOSTILE_CALLS = int(os.environ.get("CBTLAB_HOSTILE_CALLS", "20000"))
PLAN = {"ext4": {"snapshots": 2, "discards": 1}, "xfs": {"snapshots": 2}, "raw": {"snapshots": 2}}
DISKS = {"volume": 64 << 20, "store": 96 << 20}

# Nothing may be left: neither the module nor memory.
WATCHED = """
mount -t debugfs none /sys/kernel/debug
export PYTHONPATH=/lab/python:/tests
python3.11 -B /tests/leaks.py forget
{command}
status=$?
[ ! -e /sys/module/cbt ] || rmmod cbt || exit 90
python3.11 -B /tests/leaks.py || exit 91
exit $status
"""

pytestmark = [pytest.mark.vm, pytest.mark.timeout(6 * 3600)]
on_debug_kernel = pytest.mark.skipif(
    bool(debug_kernel.absence()), reason=debug_kernel.absence() or "there"
)


def watched(command: str, work: Path, **options: Any) -> guest.GuestResult:
    """Run a command on the debug kernel; GuestError for any report or leak."""
    settings = {"timeout": 3600, "memory": 2048, "disks": DISKS, **options}
    files = {"tests": GUEST, "tests/bin": tools(), **settings.pop("files", {})}
    return guest.boot(
        debug_kernel.VERSION, WATCHED.format(command=command), files=files, work=work, **settings
    ).check()


def hostile() -> Path:
    """Return the hostile program, compiled against the module's header."""
    header = kernels.module_sources()
    sources = sorted(GUEST.glob("hostile*.[ch]"))
    content = [path.read_bytes() for path in [*sources, *sorted(header.glob("cbt*.h"))]]
    digest = hashlib.sha256(b"\0".join(content)).hexdigest()

    def compiled(draft: Path) -> None:
        # Position-independent: small numbers, taken for addresses, must not hit its own memory.
        words = ["gcc", "-std=gnu11", "-O2", "-static-pie", "-pthread"]
        words += ["-Wall", "-Wextra", "-Werror"]
        words += ["-I", str(header), "-o", str(draft / "hostile")]
        words += [str(path) for path in sources if path.suffix == ".c"]
        subprocess.run(words, check=True)

    return filled(cache_dir() / "tools" / f"hostile-pie-{digest[:16]}", compiled) / "hostile"


def call_counts(result: guest.GuestResult) -> dict[str, tuple[int, int]]:
    """Return how many calls of each kind were made, and how many of them succeeded."""
    lines = (result.output / "hostile.txt").read_text().splitlines()
    rows = (line.split() for line in lines)
    return {name: (int(made), int(succeeded)) for name, made, succeeded in rows}


def check_counts(counts: dict[str, tuple[int, int]], calls: int) -> None:
    """Expect that all kinds of calls were made, and that they did not only bounce off."""
    assert sum(made for made, _ in counts.values()) > 0.8 * calls
    for name in "attach", "detach", "switch", "clear", "bits", "load", "info", "status", "mmap":
        made, succeeded = counts[name]
        assert made > succeeded > 0, (name, counts)
    for name in "random", "unknown", "poll", "read", "mremap", "madvise", "munmap", "seal":
        assert counts[name][0] > 0, (name, counts)
    assert counts["garbage"][1] > 0, "nothing could be written through a mapping"


@pytest.mark.parametrize("kernel", ["6.1", "6.12"])
def test_hostile_calls_do_no_harm(kernel: str, tmp_path: Path) -> None:
    calls = 8000
    result = guest.boot(
        kernel,
        f"insmod /lab/cbt.ko && PYTHONPATH=/lab/python:/tests "
        f"python3.11 -B /tests/hostile.py 1 {calls} 3",
        files={"tests": GUEST, "tests/hostile": hostile()},
        disks=DISKS,
        modules=[*MODULES, "brd"],
        work=tmp_path,
        timeout=200,
    ).check()
    check_counts(call_counts(result), calls)


@on_debug_kernel
def test_hostile_calls_leave_no_report_and_no_leak(tmp_path: Path) -> None:
    result = watched(
        f"insmod /lab/cbt.ko && python3.11 -B /tests/hostile.py 2 {HOSTILE_CALLS} 4",
        tmp_path,
        files={"tests/hostile": hostile()},
        timeout=600 + HOSTILE_CALLS * 0.02,
    )
    counts = call_counts(result)
    print(f"{result.seconds:.0f} s: {counts}")
    check_counts(counts, HOSTILE_CALLS)


@on_debug_kernel
def test_behaviour_on_the_debug_kernel(tmp_path: Path) -> None:
    told: list[str] = []
    watched(
        "insmod /lab/cbt.ko && python3.11 -B /tests/behaviour.py",
        tmp_path,
        on_phase=told.append,
        memory=1024,  # the largest ring must not fit
    )
    assert len(told) > 10


@on_debug_kernel
def test_switches_on_the_debug_kernel(tmp_path: Path) -> None:
    result = watched(
        f"insmod /lab/cbt.ko && python3.11 -B /tests/switches.py '{json.dumps(PLAN)}'",
        tmp_path,
        packages=FILE_SYSTEM_PACKAGES,
    )
    results = json.loads((result.output / "switches.json").read_text())
    rows = [row for part in results["parts"] for row in part["rows"]]
    assert len(rows) == sum(sum(parts.values()) for parts in PLAN.values())
    assert [row["missed"] for row in rows] == [0] * len(rows)


@on_debug_kernel
def test_failing_memory_refuses_and_leaves_nothing(tmp_path: Path) -> None:
    result = watched("python3.11 -B /tests/faults.py", tmp_path)
    counts = json.loads((result.output / "injected.json").read_text())
    print(f"{result.seconds:.0f} s: {counts}")
    for call in "insmod", "attach", "switch", "bits", "ring":
        assert counts[call]["refused"] > 0, (call, "no place of it can fail?")
    assert sum(part["sites"] for part in counts.values()) > 100
