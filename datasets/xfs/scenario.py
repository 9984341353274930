"""xfs: a server's volume, with shared blocks, holes and what an inode holds itself.

Runs in the laboratory's guest: ``cbtlab lab run xfs --to CASE``.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from cbtlab.lab import office
from cbtlab.lab.office import KIB
from cbtlab.lab.stage import Scenario, Step
from cbtlab.lab.workload import append, interleave, preallocate, rewrite, scatter, settle, write

MIB = 1 << 20
FICLONE = 0x40049409
FOREIGN = os.fsdecode(b"caf\xe9 \xff.txt")  # not UTF-8


def clone(source: Path, target: Path) -> None:
    """Make a file of another one's blocks."""
    with source.open("rb") as old, target.open("wb") as new:
        fcntl.ioctl(new.fileno(), FICLONE, old.fileno())


def begin(root: Path) -> None:
    """Every kind of folder, symlinks in and out of the inode, holes, attributes, fragments."""
    office.begin(root)
    names = root / "documents" / "names"
    write(names / ("a long name " + "of letters " * 22)[:255].strip(), "long", 5000)
    write(names / "Überweisung für März.txt", "umlauts", 3000)
    write(names / FOREIGN, "foreign", 2000)
    (names / "empty.txt").touch()
    (root / "documents" / "latest").symlink_to("reports/007.txt")
    (root / "documents" / "far").symlink_to("reports/" * 60 + "007.txt")
    for number in range(60):  # one block of folder; those above stay in their inode
        write(names / "some" / f"{number} of some.txt", f"some {number}", 100)
    for number in range(260):  # leaves of their own
        (names / "many").mkdir(exist_ok=True)
        (names / "many" / f"file number {number} among very many others").touch()
    scatter(root / "documents" / "table.ods", "table", [0, 100 * KIB, 400 * KIB, 900 * KIB])
    pair = [root / "database" / "left.db", root / "cache" / "right.bin"]
    interleave(pair, "pair", 16)
    report = root / "documents" / "reports" / "000.txt"
    os.setxattr(report, "user.author", b"accounting")
    os.setxattr(report, "user.history", b"seen by everybody, " * 60)
    report.chmod(0o640)
    os.chown(report, 1000, 1000)


def first(root: Path) -> None:
    """Hard links, shared blocks, blocks that are not written yet."""
    office.everyday(root, 1)
    os.link(root / "documents" / "letters" / "002.txt", root / "documents" / "minutes.txt")
    os.link(root / "cache" / "web" / "logo.svg", root / "documents" / "logo.svg")
    preallocate(root / "database" / "archive.db", 256 * KIB)
    rewrite(root / "database" / "archive.db", "archive", list(range(3, 9)))
    preallocate(root / "cache" / "web" / "ahead.part", 64 * KIB)
    clone(root / "database" / "ledger.db", root / "database" / "ledger.copy")
    clone(root / "cache" / "right.bin", root / "documents" / "shared.bin")
    os.truncate(root / "documents" / "reports" / "003.txt", 500)


def second(root: Path) -> None:
    """Files move in and out of the excluded place; thrown away, and a rule is added."""
    office.everyday(root, 2)
    office.moves(root)
    (root / "documents" / "reports" / "005.txt").unlink()
    for number in range(0, 260, 3):
        (root / "documents/names/many" / f"file number {number} among very many others").unlink()


def third(root: Path) -> None:
    """A rule is dropped; shared blocks are parted by a write."""
    office.everyday(root, 3)
    rewrite(root / "database" / "ledger.copy", "parted", [1, 2, 50])
    (root / "cache" / "right.bin").unlink()
    settle(root)
    write(root / "documents" / "scan.pdf", "scan", 50 * KIB)
    append(root / "documents" / "names" / "empty.txt", "no more", 900)


SCENARIO = Scenario(
    name="xfs",
    title="An XFS volume: shared blocks, holes, many names, a log that a freeze leaves",
    volume_size=64 * MIB,
    granularity=4096,
    file_system="xfs",
    # xfsprogs makes none below 300 MB otherwise; the kernel mounts it.
    mkfs=("--unsupported",),
    steps=(
        Step(begin, office.BASIC),
        Step(first, office.BASIC),
        Step(second, office.WITH_SCRATCH, keep=False),
        Step(third, office.WITHOUT_TEMPORARY),
    ),
)
