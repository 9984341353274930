"""A small office's volume, the common part of the scenarios; stdlib only.

Files of excluded places are larger than what any of the file systems keeps inside its
metadata: what a delete leaves of those is another subject.
"""

from __future__ import annotations

import random
from pathlib import Path

from cbtlab.lab.workload import append, rewrite, write

__all__ = ["BASIC", "WITHOUT_TEMPORARY", "WITH_SCRATCH", "begin", "everyday", "moves"]

KIB = 1 << 10
LEDGER_PAGES, PAGEFILE_PAGES = 96, 128
_THUMBS = 10

BASIC = ("/pagefile.sys", "/cache/", "*.tmp")
WITH_SCRATCH = (*BASIC, "/scratch/")
WITHOUT_TEMPORARY = ("/pagefile.sys", "/cache/", "/scratch/")


def begin(root: Path) -> None:
    """What is there when the first, full backup is made."""
    for folder, count in (("reports", 8), ("letters", 8)):
        for number in range(count):
            size = random.Random(f"{folder}{number}").randint(1, 24 * KIB)
            write(root / "documents" / folder / f"{number:03d}.txt", f"{folder} {number}", size)
    for number in range(12):
        ending = "tmp" if number in (5, 9) else "txt"
        write(root / "archive" / f"{number:03d}.{ending}", f"archive {number}", 3 * KIB + number)
    write(root / "database" / "ledger.db", "ledger", LEDGER_PAGES * 4096)
    write(root / "pagefile.sys", "pagefile", PAGEFILE_PAGES * 4096)
    for number in range(_THUMBS):
        size = random.Random(f"thumb{number}").randint(6 * KIB, 24 * KIB)
        write(root / "cache" / "thumbs" / f"{number:03d}.bin", f"thumb {number}", size)
    write(root / "cache" / "web" / "page.html", "web page", 40 * KIB)
    write(root / "cache" / "web" / "logo.svg", "logo", 17 * KIB + 17)
    for number in range(2):
        write(root / "scratch" / f"{number}.dat", f"scratch {number}", 40 * KIB)
    write(root / "documents" / "draft.tmp", "draft", 20 * KIB)
    append(root / "logs" / "access.log", "access 0", 40 * KIB)


def everyday(root: Path, k: int) -> None:
    """What happens in every interval: logs grow, pages are rewritten, the cache turns over."""
    chance = random.Random(f"interval {k}")
    append(root / "logs" / "access.log", f"access {k}", 20 * KIB)
    rewrite(root / "database" / "ledger.db", f"ledger {k}", chance.sample(range(LEDGER_PAGES), 10))
    rewrite(root / "pagefile.sys", f"pagefile {k}", chance.sample(range(PAGEFILE_PAGES), 10))
    for number in chance.sample(range(_THUMBS), 2):
        thumb = root / "cache" / "thumbs" / f"{number:03d}.bin"
        thumb.unlink(missing_ok=True)
        write(thumb, f"thumb {number} of {k}", chance.randint(6 * KIB, 24 * KIB))


def moves(root: Path) -> None:
    """A file leaves the excluded place and one goes into it, and none of them is written."""
    (root / "cache" / "web" / "page.html").rename(root / "documents" / "saved-page.html")
    (root / "documents" / "letters" / "004.txt").rename(root / "cache" / "letter.txt")
