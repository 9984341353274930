"""An ext4 volume with traces of an excluded file planted where a delete can leave them."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass, field
from pathlib import Path

import factory

SECRET = "/cache/ledger-of-secrets.bin"
SMALL = "/cache/launch-codes-kept-inline"
LABELLED, RESERVED = "/docs/labelled.txt", "/docs/reserved.dat"
BLOCK = 1024
OUTSIDE = 64 << 10  # bytes behind the file system
CODES = b"#the launch code is 4711-0815, and 2342 on sundays"


@dataclass
class Planted:
    """A recording with one backup, and what was planted: place, class, owner."""

    recording: factory.Recording
    traces: dict[int, tuple[str, str]] = field(default_factory=dict)

    def plant(self, at: int, kind: str, owner: str, length: int = 512) -> None:
        """Put a part of the secret, another one each time, at byte ``at`` of S_0*."""
        volume = self.recording.backups[0].snapshot
        part = 2 * len(self.traces)
        data = volume.read(volume.blocks(SECRET)[part] * BLOCK, length)
        self.recording.backups[0].stored.poke(at, data)
        self.traces[at] = (kind, owner)


def make(folder: Path, options: str = "") -> factory.Recording:
    """A volume with a secret, some kept files, and a tail that the file system does not manage."""
    tree = folder / "tree"
    files = {
        SECRET: factory.text(1, 48 * BLOCK),
        "/docs/report.txt": factory.text(2, 100),
        "/docs/database.db": factory.text(3, 30_000),
        LABELLED: factory.text(4, 5_000),
        "/cache/of-notes-and-more.tmp": factory.text(5, 700),
    }
    for name, data in files.items():
        path = tree / name[1:]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    size = 8 << 20
    volume = factory.Volume.make(folder / "volume.img", tree, size, BLOCK, options)
    volume.preallocate(RESERVED, 8)
    value = factory.text(6, 300).decode().replace("\n", " ").replace(" ", "_")
    volume.debugfs(f"ea_set {LABELLED} user.label {value}")  # too long for the inode
    volume.debugfs(f"symlink {SMALL} {CODES.decode().replace(' ', '_')}")
    with volume.path.open("r+b") as file:
        file.truncate(size + OUTSIDE)
    made = factory.Recording(folder, volume, 4096)
    made.backup(["/cache/"], [SECRET, SMALL, "/cache/of-notes-and-more.tmp"])
    return made


def planted(folder: Path) -> Planted:
    """The volume with traces in eight places, each sound for the file system's own checker."""
    made = Planted(make(folder))
    stored = made.recording.backups[0].stored
    journal, docs, report, reserved = (
        stored.blocks(name)[at] * BLOCK
        for name, at in (("<8>", 100), ("/docs", 0), ("/docs/report.txt", 0), (RESERVED, 2))
    )
    label = attribute_block(stored, LABELLED)
    inode, unused = inode_place(stored, 200), free_block(stored) * BLOCK
    made.plant(journal + 300, "journal", "<journal>")
    made.plant(report + 400, "slack", "/docs/report.txt")
    made.plant(docs + 460, "directory slack", "/docs")
    made.plant(label + 200, "attribute block", LABELLED)
    made.plant(inode, "inode table", "<free inode 200>")
    made.plant((8 << 20) + 4096 + 77, "outside the file system", "<behind the file system>")
    made.plant(reserved, "unwritten extent", RESERVED)
    made.plant(unused, "free space", "<free>")
    done = subprocess.run(
        ["e2fsck", "-fy", str(stored.path)], capture_output=True, text=True, check=False
    )
    assert done.returncode in (0, 1), done.stdout  # it mends the checksums of what was planted in
    stored.check()
    made.recording.trace()
    return made


def inode_place(volume: factory.Volume, number: int) -> int:
    """Where an inode lies, in bytes of the volume, as debugfs tells."""
    told = volume.debugfs(f"imap <{number}>")
    block, offset = told.split("located at block")[1].split(", offset")
    return int(block) * BLOCK + int(offset.split()[0], 16)


def attribute_block(volume: factory.Volume, name: str) -> int:
    """Where the attribute block of a file lies, in bytes."""
    told = volume.debugfs(f"stat {name}")
    return int(told.split("File ACL:")[1].split()[0]) * BLOCK


def free_block(volume: factory.Volume) -> int:
    """A block that nobody uses, as debugfs tells."""
    return int(volume.debugfs("ffb 1 7000").split("found:")[1].split()[0])
