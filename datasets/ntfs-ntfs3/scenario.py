"""ntfs-ntfs3: NTFS as Linux' own driver writes it: records that hold small files, holes.

Runs in the laboratory's guest: ``cbtlab lab run ntfs-ntfs3 --kernel 6.12 --to CASE``.
"""

from __future__ import annotations

import os
from pathlib import Path

from cbtlab.lab import office
from cbtlab.lab.office import KIB
from cbtlab.lab.stage import Scenario, Step
from cbtlab.lab.workload import append, interleave, preallocate, rewrite, scatter, settle, write

MIB = 1 << 20


def begin(root: Path) -> None:
    """Files inside their record, long names, a folder with an index of its own, fragments."""
    office.begin(root)
    names = root / "documents" / "names"
    write(names / ("A long name, of as many letters as " + "fit " * 53 + "in.txt"), "long", 5000)
    write(names / "Überweisung für März.txt", "umlauts", 300)
    write(names / "議事録 📷.txt", "kanji", 600)
    (names / "empty.txt").touch()
    for number in range(60):
        write(names / "many" / f"a file among others, number {number}.txt", f"many {number}", 200)
    (root / "documents" / "latest").symlink_to("reports/007.txt")
    pair = [root / "database" / "left.db", root / "cache" / "right.bin"]
    interleave(pair, "pair", 16)


def first(root: Path) -> None:
    """Hard links, a sparse file, one longer than what was written, one cut short."""
    office.everyday(root, 1)
    os.link(root / "documents" / "letters" / "002.txt", root / "documents" / "minutes.txt")
    os.link(root / "cache" / "web" / "logo.svg", root / "documents" / "logo.svg")
    scatter(root / "documents" / "table.ods", "table", [0, 100 * KIB, 400 * KIB])
    preallocate(root / "database" / "archive.db", 128 * KIB)
    rewrite(root / "database" / "archive.db", "archive", [0, 1, 2])
    os.truncate(root / "documents" / "reports" / "003.txt", 400)
    append(root / "documents" / "names" / "empty.txt", "no more", 400)


def second(root: Path) -> None:
    """Files move in and out of the excluded place; thrown away, and a rule is added."""
    office.everyday(root, 2)
    office.moves(root)
    (root / "documents" / "reports" / "005.txt").unlink()
    # What its record held does not fit any more.
    append(root / "documents" / "names" / "empty.txt", "much more", 9 * KIB)


def third(root: Path) -> None:
    """A rule is dropped; a kept file takes the clusters of one that was excluded."""
    office.everyday(root, 3)
    (root / "cache" / "right.bin").unlink()
    settle(root)
    write(root / "documents" / "scan.pdf", "scan", 50 * KIB)
    for number in range(0, 60, 4):
        (root / "documents/names/many" / f"a file among others, number {number}.txt").unlink()


SCENARIO = Scenario(
    name="ntfs-ntfs3",
    title="NTFS by Linux' ntfs3: records that hold files, holes, fragments",
    volume_size=32 * MIB,
    granularity=4096,
    file_system="ntfs3",
    steps=(
        Step(begin, office.BASIC),
        Step(first, office.BASIC),
        Step(second, office.WITH_SCRATCH, keep=False),
        Step(third, office.WITHOUT_TEMPORARY),
    ),
)
