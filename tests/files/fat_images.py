"""Small FAT and exFAT images for the tests, and what other tools say about them.

FAT is written by mtools, exFAT by exfat-fuse (with root) and by the small writer of
``exfat_images.py``.  Truth comes from mtools, fsck.fat, dump.exfat, fsck.exfat and pytsk3.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytsk3

from cbtlab.files import VolumeMap, map_volume, tsk
from cbtlab.files.volume import Volume

MIB = 1 << 20
ROUNDS = int(os.environ.get("CBTLAB_MUTATIONS", "60"))


def needs(*tools: str) -> pytest.MarkDecorator:
    missing = [tool for tool in tools if not shutil.which(tool)]
    return pytest.mark.skipif(bool(missing), reason=f"needs {', '.join(missing)}")


needs_mtools = needs("mkfs.fat", "fsck.fat", "mcopy", "mshowfat")
needs_exfatprogs = needs("mkfs.exfat", "fsck.exfat", "dump.exfat")


class Memory:
    """An image in memory."""

    name = "memory"

    def __init__(self, data: bytes | bytearray) -> None:
        self.data, self.size = data, len(data)

    def read(self, offset: int, length: int) -> bytes:
        return bytes(self.data[offset : offset + length])


def run(*command: str | Path, status: int = 0) -> str:
    environment = {**os.environ, "MTOOLS_SKIP_CHECK": "1", "TZ": "UTC", "LC_ALL": "C.UTF-8"}
    done = subprocess.run(
        [str(word) for word in command],
        capture_output=True,
        text=True,
        errors="surrogateescape",
        check=False,
        env=environment,
    )
    assert done.returncode == status, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


def make(path: Path, size: int, *options: str, program: str = "mkfs.fat") -> Path:
    """A new file system of ``size`` bytes."""
    path.unlink(missing_ok=True)
    with path.open("wb") as file:
        file.truncate(size)
    run(program, *options, path)
    return path


LONG = "a long name that takes more than one record, " * 4 + "up to its end"


def tree(root: Path, cluster: int) -> None:
    """Files of every kind: empty, of one byte, at the border of a cluster, with odd names."""
    rng = random.Random(cluster)
    for folder in ("folder", "folder/below", "many", "a long folder name"):
        (root / folder).mkdir(parents=True)
    for number, size in enumerate((0, 1, cluster - 1, cluster, cluster + 1, 3 * cluster + 7)):
        (root / f"SIZE{number}.BIN").write_bytes(rng.randbytes(size))
    for name in ("lower.txt", "UPPER.txt", "small.TXT", "Mixed.Txt", "noext", "a.b.c", ".hidden"):
        (root / "folder" / name).write_bytes(rng.randbytes(700))
    for name in ("Ünïcødé.text", "漢字かな", "🙂 beyond the plane", LONG, "thirteen char"):
        (root / "a long folder name" / name).write_bytes(rng.randbytes(1234))
    (root / "folder" / "below" / "deep.bin").write_bytes(rng.randbytes(2 * cluster + 1))
    for number in range(150):
        (root / "many" / f"file number {number:03d}").write_bytes(rng.randbytes(number * 5))


def fill(path: Path, source: Path, cluster: int) -> None:
    """Copy a tree into a FAT image, and leave gaps, into which a last file falls in fragments."""
    run("mcopy", "-i", path, "-s", "-Q", "-m", *sorted(source.iterdir()), "::/")
    names = [f"::/many/file number {number:03d}" for number in range(0, 150, 2)]
    run("mdel", "-i", path, *names)
    with path.open("r+b") as file:  # FAT32 says where to look for a free cluster: not there
        sector = int.from_bytes(file.read(64)[11:13], "little")
        file.seek(sector)
        if file.read(4) == b"RRaA":
            file.seek(sector + 492)
            file.write(b"\xff" * 4)
    last = source / "fragments"
    last.write_bytes(random.Random(1).randbytes(60 * cluster + 5))
    run("mcopy", "-i", path, "-Q", last, "::/fragments")


def shown(path: Path, names: list[str]) -> dict[str, list[int]]:
    """The clusters of files and folders in order, by mshowfat."""
    found: dict[str, list[int]] = {name: [] for name in names}
    for name in names:
        text = run("mshowfat", "-i", path, "::" + name)
        for first, last in re.findall(r"<(\d+)(?:-(\d+))?>", text[len(name) :]):
            found[name] += range(int(first), int(last or first) + 1)
    return found


def clusters_of(volume: VolumeMap, inode: int, heap: int) -> list[int]:
    """The clusters of an inode in order, as this package maps them."""
    rows = volume.rows(inode)
    size = volume.block_size
    return [
        place // size + 2 + number
        for place, length in zip(
            (rows.physical - volume.offset - heap).tolist(), rows.length.tolist(), strict=True
        )
        for number in range(length // size)
    ]


def by_tsk(image: Any, sector: int, offset: int = 0) -> dict[bytes, tuple[int, list[int], bytes]]:
    """Of every path its size, its sectors in order, and its content, by pytsk3."""
    opened = tsk.open_file_system(Volume(image, offset))
    walked = tsk.walk(Volume(image, offset), 10000)
    found = {}
    for path, inode in zip(walked.paths, walked.inodes.tolist(), strict=True):
        if path.startswith((b"/$MBR", b"/$FAT", b"/$ALLOC", b"/$UPCASE", b"/$VOLUME", b"/$TEXFAT")):
            continue
        file = opened.open_meta(inode=inode)
        size, sectors = int(file.info.meta.size), []
        for attribute in file:
            for part in attribute:
                if int(part.flags) & 3 == 0:
                    sectors += range(part.addr, part.addr + part.len)
        folder = int(file.info.meta.type) == int(pytsk3.TSK_FS_META_TYPE_DIR)
        content = b"" if folder or not size else file.read_random(0, size)
        found[path] = size, sectors, content
    return found


def check_owners(volume: VolumeMap) -> None:
    """Every block in use has an owner, and what has none is free, on a sound volume."""
    step = 512 if volume.size < 32 * MIB else volume.in_use.granularity
    end = volume.offset + min(volume.size, 100_000 * step)
    place = np.arange(volume.offset, end, step)
    owner = volume.owners(place)
    assert not (owner == "<allocated, no owner>").any()
    assert not (owner == "<lost clusters>").any()
    bits = volume._marked(place)
    assert bits[owner == "<free>"].sum() == 0
    own = np.char.startswith(owner.astype(str), "<")
    assert bits[own & (owner != "<free>") & (owner != "<bad clusters>")].all()
    regions = volume.pieces[volume.pieces["kind"] == "system"]
    start = regions["physical"].to_numpy().astype(np.int64)
    end = start + regions["length"].to_numpy().astype(np.int64)
    assert (np.diff(start) > 0).all() and (start[1:] >= end[:-1]).all()


def used_bytes(volume: VolumeMap) -> int:
    """How many bytes of the file system are in use, without what lies behind it in the image."""
    assert volume.offset == 0
    grain = volume.in_use.granularity
    count = -(-volume.size // grain)
    over = count * grain - volume.size if volume.in_use.bits[count - 1] else 0
    return int(volume.in_use.bits.count(1, 0, count)) * grain - over


def look_at(data: bytearray) -> VolumeMap:
    """Map it, and use every part of the map."""
    volume = map_volume(Memory(data))
    assert len(volume.extents) == len(volume.arrays)
    assert len(volume.pieces) >= len(volume.names) - 1 - (volume.inodes["size"] == 0).sum()
    volume.owners(np.arange(0, volume.size, 5_000))
    for inode, size in volume.inodes["size"].items():
        if inode in volume.damaged:
            with pytest.raises(ValueError, match=r"."):
                volume.read_file(inode)
        elif size < MIB:
            assert len(volume.read_file(inode)) == size
    return volume


@contextmanager
def exfat_mounted(path: Path) -> Iterator[Path]:
    """Mount an exFAT image with exfat-fuse; skips without root, or without it."""
    if os.geteuid() != 0 or not Path("/dev/fuse").exists() or not shutil.which("mount.exfat-fuse"):
        pytest.skip("needs root, FUSE and exfat-fuse")
    folder = path.with_suffix(".mount")
    folder.mkdir(exist_ok=True)
    device = run("losetup", "-f", "--show", path).strip()
    try:
        run("mount.exfat-fuse", device, folder)
        try:
            yield folder
        finally:
            run("umount", folder)
    finally:
        run("losetup", "-d", device)
