"""btrfs: compressed and inline files, subvolumes, shared and unwritten extents.

Runs in the laboratory's guest: ``cbtlab lab run btrfs --kernel 6.12 --to CASE``.
"""

from __future__ import annotations

import fcntl
import os
import struct
from pathlib import Path

from cbtlab.lab import office
from cbtlab.lab.office import KIB
from cbtlab.lab.stage import Scenario, Step
from cbtlab.lab.workload import append, interleave, preallocate, rewrite, scatter, settle, write

MIB = 1 << 20
FICLONE, SUBVOL_CREATE = 0x40049409, 0x5000940E
FOREIGN = os.fsdecode(b"caf\xe9 \xff.txt")  # not UTF-8


def clone(source: Path, target: Path) -> None:
    """Make a file of another one's extents."""
    with source.open("rb") as old, target.open("wb") as new:
        fcntl.ioctl(new.fileno(), FICLONE, old.fileno())


def compressed(folder: Path, kind: bytes) -> Path:
    """Make a folder whose files are compressed from now on."""
    folder.mkdir(parents=True)
    os.setxattr(folder, "btrfs.compression", kind)
    return folder


def subvolume(place: Path) -> None:
    """Make a subvolume."""
    fd = os.open(place.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        name = bytearray(struct.pack("=q4088s", 0, os.fsencode(place.name)))
        fcntl.ioctl(fd, SUBVOL_CREATE, name)
    finally:
        os.close(fd)


def begin(root: Path) -> None:
    """Each kind of compression, inline files, holes, attributes, fragments, a subvolume."""
    office.begin(root)
    for kind in (b"zlib", b"lzo", b"zstd"):
        folder = compressed(root / "archive" / kind.decode(), kind)
        write(folder / "minutes.txt", f"minutes {kind!r}", 150 * KIB)
        write(folder / "short.txt", f"short {kind!r}", 3000)  # inline, when it is compressed
    write(compressed(root / "cache" / "packed", b"zstd") / "site.bin", "site", 60 * KIB)
    names = root / "documents" / "names"
    write(names / ("a long name " + "of letters " * 22)[:255].strip(), "long", 5000)
    write(names / "Überweisung für März.txt", "umlauts", 300)
    write(names / FOREIGN, "foreign", 2000)
    (names / "empty.txt").touch()
    (root / "documents" / "latest").symlink_to("reports/007.txt")
    for number in range(60):
        write(names / "many" / f"a file among others, number {number}.txt", f"many {number}", 90)
    scatter(root / "documents" / "table.ods", "table", [0, 100 * KIB, 400 * KIB, 900 * KIB])
    pair = [root / "database" / "left.db", root / "cache" / "right.bin"]
    interleave(pair, "pair", 12)
    subvolume(root / "home")
    write(root / "home" / "notes.txt", "notes", 30 * KIB)
    write(root / "home" / "cache.tmp", "temporary", 30 * KIB)
    report = root / "documents" / "reports" / "000.txt"
    os.setxattr(report, "user.author", b"accounting")
    report.chmod(0o640)
    os.chown(report, 1000, 1000)


def first(root: Path) -> None:
    """Hard links, shared extents, unwritten ones, one that is written in its middle."""
    office.everyday(root, 1)
    os.link(root / "documents" / "letters" / "002.txt", root / "documents" / "minutes.txt")
    os.link(root / "cache" / "web" / "logo.svg", root / "documents" / "logo.svg")
    preallocate(root / "database" / "archive.db", 256 * KIB)
    rewrite(root / "database" / "archive.db", "archive", list(range(3, 9)))
    preallocate(root / "cache" / "web" / "ahead.part", 64 * KIB)
    clone(root / "database" / "ledger.db", root / "database" / "ledger.copy")
    clone(root / "cache" / "right.bin", root / "documents" / "shared.bin")
    rewrite(root / "archive" / "zlib" / "minutes.txt", "again", [7, 8])
    os.truncate(root / "documents" / "reports" / "003.txt", 500)


def second(root: Path) -> None:
    """Files move in and out of the excluded place; thrown away, and a rule is added."""
    office.everyday(root, 2)
    office.moves(root)
    (root / "documents" / "reports" / "005.txt").unlink()
    append(root / "home" / "notes.txt", "more notes", 9 * KIB)


def third(root: Path) -> None:
    """A rule is dropped; shared extents are parted by a write."""
    office.everyday(root, 3)
    rewrite(root / "database" / "ledger.copy", "parted", [1, 2, 50])
    (root / "cache" / "right.bin").unlink()
    settle(root)
    write(root / "documents" / "scan.pdf", "scan", 50 * KIB)
    append(root / "documents" / "names" / "empty.txt", "no more", 900)


SCENARIO = Scenario(
    name="btrfs",
    title="A btrfs volume: compressed and inline files, a subvolume, shared extents",
    volume_size=128 * MIB,
    granularity=4096,
    file_system="btrfs",
    writer_pause=0.25,  # every fsync leaves tree blocks behind
    steps=(
        Step(begin, office.BASIC),
        Step(first, office.BASIC),
        Step(second, office.WITH_SCRATCH, keep=False),
        Step(third, office.WITHOUT_TEMPORARY),
    ),
)
