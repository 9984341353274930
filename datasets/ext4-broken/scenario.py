"""ext4-broken: a recording whose third interval is switched after the volume was resumed.

Runs in the laboratory's guest: ``cbtlab lab run ext4-broken --to RECORDING``.
``break.py`` breaks two of its good intervals too; that makes the case beside it.
"""

from __future__ import annotations

import random
from pathlib import Path

from cbtlab.lab.stage import Scenario, Step
from cbtlab.lab.workload import append, rewrite, write

KIB, MIB = 1 << 10, 1 << 20
LEDGER_PAGES, PAGEFILE_PAGES = 192, 160
RULES = ("/pagefile.sys", "/cache/")


def begin(root: Path) -> None:
    """What is there when the first, full backup is made."""
    for number in range(16):
        size = random.Random(f"report {number}").randint(1, 30 * KIB)
        write(root / "documents" / f"{number:03d}.txt", f"report {number}", size)
    write(root / "database" / "ledger.db", "ledger", LEDGER_PAGES * 4096)
    write(root / "pagefile.sys", "pagefile", PAGEFILE_PAGES * 4096)
    for number in range(8):
        write(root / "cache" / f"{number:03d}.bin", f"thumb {number}", 20 * KIB + number)
    append(root / "logs" / "access.log", "access 0", 60 * KIB)


def everyday(k: int) -> Step:
    """Return an interval in which the log grows, pages are rewritten and a document is made."""

    def work(root: Path) -> None:
        chance = random.Random(f"interval {k}")
        append(root / "logs" / "access.log", f"access {k}", 30 * KIB)
        pages = chance.sample(range(LEDGER_PAGES), 30)
        rewrite(root / "database" / "ledger.db", f"ledger {k}", pages)
        pages = chance.sample(range(PAGEFILE_PAGES), 20)
        rewrite(root / "pagefile.sys", f"pagefile {k}", pages)
        write(root / "documents" / f"of-{k}.txt", f"document of {k}", 25 * KIB)
        (root / "documents" / f"{k:03d}.txt").unlink()

    return Step(work, RULES, late_switch=1.5 if k == 3 else None)


SCENARIO = Scenario(
    name="ext4-broken",
    title="A recording with faults: lost events, cleared bits, an interval switched too late",
    volume_size=48 * MIB,
    granularity=4096,
    mkfs=("-J", "size=4"),
    steps=(Step(begin, RULES), *(everyday(k) for k in range(1, 6))),
    # Every page is written once, so that a lost one stays lost.
    writer_pause=0.02,
    writer_pages=4096,
)
