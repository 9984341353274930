"""exfat: a camera's card, with contiguous files, gaps past the valid length, long names.

Runs in the laboratory's guest: ``cbtlab lab run exfat --to CASE``.
"""

from __future__ import annotations

import os
from pathlib import Path

from cbtlab.lab import office
from cbtlab.lab.office import KIB
from cbtlab.lab.stage import Scenario, Step
from cbtlab.lab.workload import append, interleave, scatter, settle, write

MIB = 1 << 20


def begin(root: Path) -> None:
    """Long names, names that are not ASCII, fragments, an empty file, one of one byte."""
    office.begin(root)
    names = root / "documents" / "names"
    write(names / ("A long name, of as many letters as " + "fit " * 53 + "in.txt"), "long", 5000)
    write(names / "Überweisung für März.txt", "umlauts", 3000)
    write(names / "議事録 📷.txt", "kanji", 700)
    write(names / "one.txt", "one", 1)
    (names / "empty.txt").touch()
    for number in range(40):  # a folder of more than one cluster
        write(names / "many" / f"a file among others, number {number}.txt", f"many {number}", 300)
    pair = [root / "database" / "left.db", root / "cache" / "right.bin"]
    interleave(pair, "pair", 12, 3 * KIB)


def first(root: Path) -> None:
    """A contiguous file gets fragments, a gap is left, a file is cut, one is made longer."""
    office.everyday(root, 1)
    interleave([root / "database" / "left.db", root / "logs" / "access.log"], "more", 6, 2 * KIB)
    scatter(root / "documents" / "table.ods", "table", [0, 90 * KIB])
    os.truncate(root / "documents" / "reports" / "003.txt", 500)
    os.truncate(root / "documents" / "reports" / "004.txt", 60 * KIB)
    write(root / "database" / "archive.db", "archive", 9000)
    os.truncate(root / "database" / "archive.db", 64 * KIB)


def second(root: Path) -> None:
    """Files move in and out of the excluded place; thrown away, and a rule is added."""
    office.everyday(root, 2)
    office.moves(root)
    (root / "documents" / "names" / "one.txt").rename(root / "documents" / "One again.txt")
    (root / "documents" / "reports" / "005.txt").unlink()


def third(root: Path) -> None:
    """A rule is dropped; a kept file takes the clusters of one that was excluded."""
    office.everyday(root, 3)
    (root / "cache" / "right.bin").unlink()
    settle(root)
    write(root / "documents" / "scan.pdf", "scan", 50 * KIB)
    append(root / "documents" / "names" / "empty.txt", "no more", 900)


SCENARIO = Scenario(
    name="exfat",
    title="A camera's exFAT card: contiguous files, gaps past the valid length",
    volume_size=32 * MIB,
    granularity=4096,
    file_system="exfat",
    mkfs=("-c", "4K"),
    steps=(
        Step(begin, office.BASIC),
        Step(first, office.BASIC),
        Step(second, office.WITH_SCRATCH, keep=False),
        Step(third, office.WITHOUT_TEMPORARY),
    ),
)
