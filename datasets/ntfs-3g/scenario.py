"""ntfs-3g: NTFS as the FUSE program writes it: streams, compressed files, long lists.

Runs in the laboratory's guest: ``cbtlab lab run ntfs-3g --to CASE``.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path

from cbtlab.lab import office
from cbtlab.lab.content import text
from cbtlab.lab.office import KIB
from cbtlab.lab.stage import Scenario, Step
from cbtlab.lab.workload import append, interleave, preallocate, rewrite, scatter, settle, write

MIB = 1 << 20
COMPRESSED = 0x800  # of a file's attributes


def compressed(folder: Path) -> Path:
    """Make a folder whose new files are compressed."""
    folder.mkdir(parents=True)
    (flags,) = struct.unpack("<I", os.getxattr(folder, "system.ntfs_attrib"))
    os.setxattr(folder, "system.ntfs_attrib", struct.pack("<I", flags | COMPRESSED))
    return folder


def begin(root: Path) -> None:
    """Streams small and large, compressed files, files in their record, names, fragments."""
    office.begin(root)
    names = root / "documents" / "names"
    write(names / ("A long name, of as many letters as " + "fit " * 53 + "in.txt"), "long", 5000)
    write(names / "Überweisung für März.txt", "umlauts", 300)
    write(names / "議事録 📷.txt", "kanji", 600)
    (names / "empty.txt").touch()
    for number in range(60):
        write(names / "many" / f"a file among others, number {number}.txt", f"many {number}", 200)
    (root / "documents" / "latest").symlink_to("reports/007.txt")
    packed = compressed(root / "archive" / "packed")
    write(packed / "minutes.txt", "minutes", 150 * KIB)
    write(packed / "short.txt", "short", 400)
    write(compressed(root / "cache" / "packed") / "site.bin", "site", 60 * KIB)
    report = root / "documents" / "reports" / "000.txt"
    os.setxattr(report, "user.Zone.Identifier", b"[ZoneTransfer]\r\nZoneId=3\r\n")
    os.setxattr(report, "user.summary", text("summary", 30 * KIB))
    os.setxattr(root / "cache" / "web" / "logo.svg", "user.thumbnail", text("thumbnail", 9 * KIB))
    pair = [root / "database" / "left.db", root / "cache" / "right.bin"]
    interleave(pair, "pair", 40)


def first(root: Path) -> None:
    """Hard links, holes, a compressed file that is written in its middle, a longer stream."""
    office.everyday(root, 1)
    os.link(root / "documents" / "letters" / "002.txt", root / "documents" / "minutes.txt")
    os.link(root / "cache" / "web" / "logo.svg", root / "documents" / "logo.svg")
    scatter(root / "documents" / "table.ods", "table", [0, 100 * KIB, 400 * KIB])
    preallocate(root / "database" / "archive.db", 128 * KIB)
    rewrite(root / "database" / "archive.db", "archive", [0, 1, 2])
    append(root / "archive" / "packed" / "minutes.txt", "more minutes", 30 * KIB)
    report = root / "documents" / "reports" / "000.txt"
    os.setxattr(report, "user.summary", text("another summary", 40 * KIB))
    os.truncate(root / "documents" / "reports" / "003.txt", 400)
    append(root / "documents" / "names" / "empty.txt", "no more", 400)


def second(root: Path) -> None:
    """Files move in and out of the excluded place; thrown away, and rules are added."""
    office.everyday(root, 2)
    office.moves(root)
    (root / "documents" / "reports" / "005.txt").unlink()
    append(root / "documents" / "names" / "empty.txt", "much more", 9 * KIB)


def third(root: Path) -> None:
    """A rule is dropped; a kept file takes the clusters of one that was excluded."""
    office.everyday(root, 3)
    (root / "cache" / "right.bin").unlink()
    settle(root)
    write(root / "documents" / "scan.pdf", "scan", 50 * KIB)
    for number in range(0, 60, 4):
        (root / "documents/names/many" / f"a file among others, number {number}.txt").unlink()


SUMMARIES = "*:summary"  # a stream of whatever file

SCENARIO = Scenario(
    name="ntfs-3g",
    title="NTFS by ntfs-3g: streams, compressed files, fragments",
    volume_size=32 * MIB,
    granularity=4096,
    file_system="ntfs-3g",
    options="compression",
    steps=(
        Step(begin, office.BASIC),
        Step(first, office.BASIC),
        Step(second, (*office.WITH_SCRATCH, SUMMARIES), keep=False),
        Step(third, (*office.WITHOUT_TEMPORARY, SUMMARIES)),
    ),
)
