"""ext4-office: an office's volume, backed up six times while it is being written.

Runs in the laboratory's guest: ``cbtlab lab run ext4-office --to CASE``.
"""

from __future__ import annotations

import os
import random
from pathlib import Path

from cbtlab.lab.stage import Scenario, Step
from cbtlab.lab.workload import append, fill_up, preallocate, rewrite, settle, write

KIB, MIB = 1 << 10, 1 << 20
LEDGER_PAGES, PAGEFILE_PAGES = 512, 640

BASIC = ("/pagefile.sys", "/cache/", "*.tmp")
WITH_SCRATCH = ("/pagefile.sys", "/cache/", "*.tmp", "/scratch/")
WITHOUT_TEMPORARY = ("/pagefile.sys", "/cache/", "/scratch/")


def begin(root: Path) -> None:
    """What is there when the first, full backup is made."""
    for folder, count in (("reports", 14), ("letters", 18), ("minutes", 12)):
        for number in range(count):
            size = random.Random(f"{folder}{number}").randint(1, 44 * KIB)
            write(root / "documents" / folder / f"{number:03d}.txt", f"{folder} {number}", size)
    # Nobody touches the archive again: when the rule for *.tmp is dropped, only the
    # carry-over tells that the backup before had deleted two files here.
    for number in range(40):
        ending = "tmp" if number in (18, 22) else "txt"
        write(root / "archive" / f"{number:03d}.{ending}", f"archive {number}", 3 * KIB + number)
    write(root / "database" / "ledger.db", "ledger", LEDGER_PAGES * 4096)
    write(root / "pagefile.sys", "pagefile", PAGEFILE_PAGES * 4096)
    for number in range(24):
        size = random.Random(f"thumb{number}").randint(6 * KIB, 44 * KIB)
        write(root / "cache" / "thumbs" / f"{number:03d}.bin", f"thumb {number}", size)
    write(root / "cache" / "web" / "page.html", "web page", 90 * KIB)
    write(root / "cache" / "web" / "logo.svg", "logo", 33 * KIB + 17)
    write(root / "cache" / "web" / "download.part", "download", 3 * MIB // 2)
    for number in range(4):
        write(root / "scratch" / f"{number}.dat", f"scratch {number}", 70 * KIB)
    write(root / "documents" / "draft.tmp", "draft", 40 * KIB)
    append(root / "logs" / "access.log", "access 0", 120 * KIB)
    append(root / "logs" / "mail.log", "mail log 0", 60 * KIB)
    (root / "documents" / "latest").symlink_to("reports/013.txt")
    report = root / "documents" / "reports" / "000.txt"
    report.chmod(0o640)
    os.chown(report, 1000, 1000)
    os.setxattr(report, "user.author", b"accounting")


def everyday(root: Path, k: int) -> None:
    """What happens in every interval: logs grow, pages are rewritten, the cache turns over."""
    chance = random.Random(f"interval {k}")
    append(root / "logs" / "access.log", f"access {k}", 50 * KIB)
    append(root / "logs" / "mail.log", f"mail log {k}", 20 * KIB)
    rewrite(root / "database" / "ledger.db", f"ledger {k}", chance.sample(range(LEDGER_PAGES), 40))
    rewrite(root / "pagefile.sys", f"pagefile {k}", chance.sample(range(PAGEFILE_PAGES), 30))
    for number in chance.sample(range(24), 4):
        thumb = root / "cache" / "thumbs" / f"{number:03d}.bin"
        thumb.unlink(missing_ok=True)
        write(thumb, f"thumb {number} of {k}", chance.randint(6 * KIB, 44 * KIB))


def first(root: Path) -> None:
    """Files are created, renamed, truncated, hard-linked and preallocated."""
    everyday(root, 1)
    documents = root / "documents"
    write(documents / "reports" / "100.txt", "report 100", 70 * KIB)
    (documents / "letters" / "001.txt").rename(documents / "letters" / "to-the-bank.txt")
    os.link(documents / "minutes" / "002.txt", documents / "minutes" / "of-the-board.txt")
    os.truncate(documents / "reports" / "003.txt", 5000)
    preallocate(root / "database" / "archive.db", 2 * MIB)
    rewrite(root / "database" / "archive.db", "archive", list(range(24)))
    preallocate(root / "cache" / "web" / "ahead.part", 512 * KIB)


def second(root: Path) -> None:
    """A file moves out of the excluded folder and one moves in, without being written."""
    everyday(root, 2)
    (root / "cache" / "web" / "page.html").rename(root / "documents" / "saved-page.html")
    (root / "documents" / "letters" / "004.txt").rename(root / "cache" / "letter.txt")
    # Two names, one excluded: the blocks are still in use after the delete.
    os.link(root / "cache" / "web" / "logo.svg", root / "documents" / "logo.svg")
    (root / "logs" / "access.log").rename(root / "logs" / "access.log.1")
    append(root / "logs" / "access.log", "access anew", 10 * KIB)


def third(root: Path) -> None:
    """A rule is added from here on; this backup is thrown away at its end."""
    everyday(root, 3)
    write(root / "documents" / "reports" / "101.txt", "report 101", 48 * KIB)
    (root / "documents" / "minutes" / "005.txt").unlink()


def fourth(root: Path) -> None:
    """A rule is dropped, and a kept file takes the blocks of an excluded one."""
    everyday(root, 4)
    settle(root)
    filler = root / "filler"
    fill_up(filler)
    (root / "cache" / "web" / "download.part").unlink()
    settle(root)
    # The only free blocks are those of the download.
    write(root / "documents" / "scan.pdf", "scan", MIB)
    settle(root)
    filler.unlink()


def fifth(root: Path) -> None:
    """An ordinary day, with a sparse file and a changed attribute."""
    everyday(root, 5)
    sparse = root / "documents" / "table.ods"
    write(sparse, "table", 20 * KIB)
    os.truncate(sparse, 900 * KIB)
    append(sparse, "table's end", 6000)
    report = root / "documents" / "reports" / "000.txt"
    os.setxattr(report, "user.author", b"accounting and audit")
    (root / "documents" / "reports" / "100.txt").unlink()


SCENARIO = Scenario(
    name="ext4-office",
    title="An office's volume: documents, a database, logs, a cache and a page file",
    volume_size=128 * MIB,
    granularity=4096,
    mkfs=("-J", "size=4"),
    steps=(
        Step(begin, BASIC),
        Step(first, BASIC),
        Step(second, BASIC),
        Step(third, WITH_SCRATCH, keep=False),
        Step(fourth, WITHOUT_TEMPORARY),
        Step(fifth, WITHOUT_TEMPORARY),
    ),
)
