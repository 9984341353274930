"""Run in a guest with the debug kernel: memory that nobody points to any more.

``leaks.py forget`` before a test leaves out what the boot has lost; ``leaks.py``
after it tells what was lost since: to the kernel's log, and by status 1.

On 6.1 kmemleak does not tell what is per CPU: those allocations are counted,
and other parts of the kernel may have kept a few of them.

Source: ``Documentation/dev-tools/kmemleak.rst``.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

KMEMLEAK = Path("/sys/kernel/debug/kmemleak")
PERCPU = Path("/sys/kernel/debug/percpu_stats")
BEFORE = Path("/tmp/percpu-before")
OLD_ENOUGH = 6  # seconds; kmemleak leaves out what is younger than five
PERCPU_KEPT = 16


def percpu() -> int:
    """Return how many allocations per CPU there are."""
    lines = (line.split() for line in PERCPU.read_text().splitlines())
    return next(int(words[-1]) for words in lines if words[:1] == ["nr_cur_alloc"])


def main() -> int:
    if sys.argv[1:] == ["forget"]:
        BEFORE.write_text(str(percpu()))
        KMEMLEAK.write_text("scan")
        KMEMLEAK.write_text("clear")
        return 0
    time.sleep(OLD_ENOUGH)
    for _ in range(2):  # a stale pointer on some stack hides an object from one look
        KMEMLEAK.write_text("scan")
    found = KMEMLEAK.read_text().splitlines()
    more = percpu() - int(BEFORE.read_text())
    print(f"leaks: {len(found)} lines, {more} more allocations per CPU")
    if more > PERCPU_KEPT:
        found.append(f"{more} allocations per CPU are left, unreferenced object or not")
    log = os.open("/dev/kmsg", os.O_WRONLY)
    for line in found:
        os.write(log, f"<3>kmemleak: {line}\n".encode())
    return bool(found)


sys.exit(main())
