"""vfat: FAT32 as a memory stick has it, marked dirty for as long as it is mounted.

Runs in the laboratory's guest: ``cbtlab lab run vfat --to CASE``.
"""

from __future__ import annotations

import os
from pathlib import Path

from cbtlab.lab import office
from cbtlab.lab.office import KIB
from cbtlab.lab.stage import Scenario, Step
from cbtlab.lab.workload import append, interleave, preallocate, scatter, settle, write

MIB = 1 << 20


def begin(root: Path) -> None:
    """Long names, names that are not ASCII, fragments, an empty file, one of one byte."""
    office.begin(root)
    names = root / "documents" / "names"
    write(names / ("A long name, of as many letters as " + "fit " * 54 + ".txt"), "long", 5000)
    write(names / "Überweisung für März.txt", "umlauts", 3000)
    write(names / "議事録.txt", "kanji", 700)
    write(names / "Mixed.Case.Name.TXT", "mixed", 600)
    write(names / "SHORT.TXT", "short", 1)
    (names / "empty.txt").touch()
    for number in range(40):  # a folder of more than one cluster
        write(names / "many" / f"a file among others, number {number}.txt", f"many {number}", 300)
    pair = [root / "database" / "left.db", root / "cache" / "right.bin"]
    interleave(pair, "pair", 12, 3 * KIB)


def first(root: Path) -> None:
    """Fragments grow, a gap is filled with zeros, a file is cut, one is preallocated."""
    office.everyday(root, 1)
    interleave([root / "database" / "left.db", root / "logs" / "mail.log"], "more", 6, 2 * KIB)
    scatter(root / "documents" / "table.ods", "table", [0, 90 * KIB])
    os.truncate(root / "documents" / "reports" / "003.txt", 500)
    preallocate(root / "database" / "archive.db", 64 * KIB)


def second(root: Path) -> None:
    """Files move in and out of the excluded place; thrown away, and a rule is added."""
    office.everyday(root, 2)
    office.moves(root)
    (root / "documents" / "names" / "SHORT.TXT").rename(root / "documents" / "Short again.txt")
    (root / "documents" / "reports" / "005.txt").unlink()


def third(root: Path) -> None:
    """A rule is dropped; a kept file takes the clusters of one that was excluded."""
    office.everyday(root, 3)
    (root / "cache" / "right.bin").unlink()
    settle(root)
    write(root / "documents" / "scan.pdf", "scan", 50 * KIB)
    append(root / "documents" / "names" / "empty.txt", "no more", 900)


SCENARIO = Scenario(
    name="vfat",
    title="A FAT32 memory stick: long names, fragments, the dirty bit",
    volume_size=40 * MIB,
    granularity=4096,
    file_system="vfat",
    mkfs=("-F", "32", "-s", "1"),
    steps=(
        Step(begin, office.BASIC),
        Step(first, office.BASIC),
        Step(second, office.WITH_SCRATCH, keep=False),
        Step(third, office.WITHOUT_TEMPORARY),
    ),
)
