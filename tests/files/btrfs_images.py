"""Small btrfs images for the tests, and what the kernel and btrfs-progs say about them."""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import re
import shutil
import stat
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import ext_images as ext
import numpy as np
import pytest

from cbtlab.files import VolumeMap
from cbtlab.files.btrfs.checksum import sealed

MIB = 1 << 20

needs_btrfs = pytest.mark.skipif(
    not all(map(shutil.which, ("mkfs.btrfs", "btrfs"))), reason="needs btrfs-progs"
)
ENCODED = 0x8  # FIEMAP_EXTENT_ENCODED
INODE = (1 << 48) - 1  # the number of an inode within its subvolume


def make(path: Path, size: int, *options: str) -> Path:
    """A new file system of ``size`` bytes with mkfs.btrfs options."""
    path.unlink(missing_ok=True)
    with path.open("wb") as file:
        file.truncate(size)
    ext.run("mkfs.btrfs", "-q", "-f", *options, str(path))
    return path


def knows(feature: str) -> bool:
    """Whether mkfs.btrfs can make file systems with a feature."""
    done = subprocess.run(
        ["mkfs.btrfs", "-O", "list-all"], capture_output=True, text=True, check=False
    )
    return feature in done.stderr + done.stdout


@contextmanager
def mounted(path: Path, *options: str) -> Iterator[Path]:
    """Mount an image, and unmount it durably; skips without root."""
    with ext.mounted(path, *options) as root:
        yield root


FICLONERANGE = 0x4020940D


def clone(source: Path, target: Path, *, start: int = 0, length: int = 0, to: int = 0) -> None:
    """Share a part of a file's extents with another file."""

    class Range(ctypes.Structure):
        _fields_ = (
            ("fd", ctypes.c_int64),
            ("start", ctypes.c_uint64),
            ("length", ctypes.c_uint64),
            ("to", ctypes.c_uint64),
        )

    with source.open("rb") as one, target.open("r+b" if target.exists() else "w+b") as two:
        fcntl.ioctl(two, FICLONERANGE, Range(one.fileno(), start, length, to))


def fill(root: Path) -> None:
    """Files, subvolumes and snapshots of every kind."""
    ext.fill(root)
    ext.preallocate(root)
    _shared(root)
    _compressed(root)
    _subvolumes(root)


def _shared(root: Path) -> None:
    block = os.urandom(256 * 1024)
    (root / "whole").write_bytes(block)
    with (root / "whole").open("rb") as file:
        os.fsync(file.fileno())
    clone(root / "whole", root / "reflink")
    clone(root / "whole", root / "middle", start=65536, length=32768)
    (root / "bookend").write_bytes(os.urandom(256 * 1024))
    with (root / "bookend").open("r+b") as file:
        os.fsync(file.fileno())
        file.seek(65536)
        file.write(os.urandom(65536))
    clone(root / "bookend", root / "part", start=16384, length=8192, to=40960)
    (root / "long-name").mkdir()
    (root / "long-name" / ("n" * 255)).write_bytes(b"long")
    for number in range(40):  # more than fit into one item of references
        os.link(root / "whole", root / "long-name" / f"{'l' * 200}-{number}")


def _compressed(root: Path) -> None:
    text = b"".join(b"line %d of a file that compresses well\n" % n for n in range(20000))
    for kind in ("zlib", "lzo", "zstd"):
        folder = root / kind
        folder.mkdir()
        ext.run("btrfs", "property", "set", str(folder), "compression", kind)
        (folder / "text").write_bytes(text)
        (folder / "mixed").write_bytes(text[:300000] + os.urandom(200000) + text[:100000])
        (folder / "inline").write_bytes(b"short and short and short and short " * 40)
        (folder / "odd-size").write_bytes(text[: 131072 + 77])
        with (folder / "text").open("r+b") as file:
            os.fsync(file.fileno())
            file.seek(200000)
            file.write(b"overwritten")
        clone(folder / "text", folder / "part", start=8192, length=16384)
        with (folder / "cut").open("wb") as file:
            file.write(text[:100000])
            os.fsync(file.fileno())
            file.truncate(50001)


def _subvolumes(root: Path) -> None:
    def subvolume(*command: str) -> None:
        ext.run("btrfs", "subvolume", *command)

    subvolume("create", str(root / "sub"))
    (root / "sub" / "file").write_bytes(b"in a subvolume\n" * 5000)
    (root / "sub" / "folder").mkdir()
    (root / "sub" / "folder" / "small").write_bytes(b"small")
    subvolume("create", str(root / "sub" / "folder" / "nested"))
    (root / "sub" / "folder" / "nested" / "deep").write_bytes(os.urandom(30000))
    subvolume("snapshot", "-r", str(root / "sub"), str(root / "snapshot"))
    subvolume("snapshot", str(root / "sub"), str(root / "folder" / "writable"))
    with (root / "folder" / "writable" / "file").open("r+b") as file:
        file.seek(20000)
        file.write(b"changed in the snapshot")
    (root / "sub" / "later").write_bytes(b"after the snapshot\n" * 1000)


class Truth:
    """What the kernel says of every name of a mounted image, subvolumes included."""

    def __init__(self, root: Path) -> None:
        self.stat: dict[bytes, os.stat_result] = {}
        self.content: dict[bytes, bytes] = {}
        self.fiemap: dict[bytes, list[tuple[int, int, int, int]]] = {}
        self.xattrs: dict[bytes, dict[str, bytes]] = {}
        base = os.fsencode(root)
        self._look(root, b"/")
        for folder, folders, files in os.walk(base):
            for name in folders + files:
                path = folder + b"/" + name
                self._look(Path(os.fsdecode(path)), path[len(base) :])

    def _look(self, path: Path, name: bytes) -> None:
        info = os.lstat(path)
        self.stat[name] = info
        listed = os.listxattr(path, follow_symlinks=False)
        self.xattrs[name] = {
            attribute: os.getxattr(path, attribute, follow_symlinks=False) for attribute in listed
        }
        if stat.S_ISREG(info.st_mode):
            self.fiemap[name] = ext.fiemap(path)
            self.content[name] = path.read_bytes()
        elif stat.S_ISLNK(info.st_mode):
            self.content[name] = os.fsencode(path.readlink())


def inode_of(volume: VolumeMap, raw: bytes) -> int:
    names = volume.names
    return int(names.loc[names["raw"] == raw, "inode"].iloc[0])


# What btrfs-progs say -----------------------------------------------------------------------


def dump(path: Path, tree: str) -> str:
    """One tree, as btrfs-progs print it."""
    return ext.run("btrfs", "inspect-internal", "dump-tree", "-t", tree, str(path))


class DumpedChunks:
    """The chunk tree as btrfs-progs print it: logical addresses to places."""

    def __init__(self, path: Path) -> None:
        self.chunks: list[tuple[int, int, list[int]]] = []
        for part in dump(path, "chunk").split("CHUNK_ITEM ")[1:]:
            start, length = re.match(r"(\d+)\)[^\n]*\n\s+length (\d+)", part).groups()  # type: ignore[union-attr]
            places = re.findall(r"stripe \d+ devid 1 offset (\d+)", part)
            self.chunks.append((int(start), int(length), [*map(int, places)]))

    def places(self, logical: int) -> list[int]:
        for start, length, places in self.chunks:
            if start <= logical < start + length:
                return [place + logical - start for place in places]
        raise AssertionError(f"{logical} lies in no chunk")


def dumped_allocated(path: Path, nodesize: int) -> dict[int, tuple[int, bool]]:
    """The extent tree as btrfs-progs print it: address to length and whether a tree block."""
    found: dict[int, tuple[int, bool]] = {}
    for line in dump(path, "extent").splitlines():
        match = re.search(r"key \((\d+) (EXTENT_ITEM|METADATA_ITEM) (\d+)\)", line)
        if match:
            start, kind, offset = int(match[1]), match[2], int(match[3])
            tree = kind == "METADATA_ITEM"
            found[start] = (nodesize if tree else offset, tree)
            last = start
        elif "flags TREE_BLOCK" in line and not found[last][1]:
            found[last] = (found[last][0], True)
    return found


def dumped_free_space(path: Path) -> list[tuple[int, int]] | None:
    """What the free space tree lists as free; None where there is no such tree.

    Nor where it has bitmaps, whose bits are not printed.
    """
    if "FREE_SPACE_TREE" not in dump(path, "root"):
        return None
    text = dump(path, "10")
    if "FREE_SPACE_BITMAP" in text:
        return None
    rows = re.findall(r"key \((\d+) FREE_SPACE_EXTENT (\d+)\)", text)
    return [(int(start), int(length)) for start, length in rows]


def dumped_cache_extents(path: Path) -> list[tuple[int, int]]:
    """The extents of the free space caches, which are files in the root tree."""
    rows = re.findall(r"extent data disk byte (\d+) nr (\d+)", dump(path, "root"))
    return [(int(start), int(length)) for start, length in rows if int(start)]


def dumped_tree_blocks(path: Path) -> dict[int, str]:
    """The address and tree of every node that btrfs-progs print."""
    found: dict[int, str] = {}
    for block, owner in re.findall(
        r"^(?:leaf|node) (\d+) .* owner (\S+)",
        ext.run("btrfs", "inspect-internal", "dump-tree", str(path)),
        re.M,
    ):
        found[int(block)] = owner
    return found


# Changing an image --------------------------------------------------------------------------


def private(path: Path) -> mmap.mmap:
    """The bytes of an image, to be changed in memory alone."""
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)


class Memory:
    """An image in memory, or its first bytes."""

    name = "memory.img"

    def __init__(self, data: mmap.mmap, size: int | None = None) -> None:
        self.data, self.size = data, len(data) if size is None else size

    def read(self, offset: int, length: int) -> bytes:
        return bytes(self.data[offset : offset + length])


def covered(ranges: list[tuple[int, int]], size: int, block: int) -> np.ndarray:
    """One bool a block that any of the ranges touches."""
    mask = np.zeros(-(-size // block), np.bool_)
    for start, length in ranges:
        mask[start // block : -(-(start + length) // block)] = True
    return mask


class Blocks:
    """The superblock and the tree blocks of an image, to be changed with right checksums."""

    def __init__(self, path: Path, nodesize: int, kind: int = 0) -> None:
        chunks = DumpedChunks(path)
        self.nodesize, self.kind = nodesize, kind
        self.trees = dumped_tree_blocks(path)
        self.places = {block: chunks.places(block) for block in self.trees}

    def of(self, tree: str) -> list[int]:
        return [block for block, name in self.trees.items() if name == tree]

    def change(
        self, data: mmap.mmap, block: int, change: dict[int, bytes], copies: int = 2
    ) -> None:
        """Write bytes by their place within a tree block, in so many copies of it."""
        for place in self.places[block][:copies]:
            reseal(data, place, self.nodesize, change, self.kind)


def reseal(data: mmap.mmap, place: int, size: int, change: dict[int, bytes], kind: int = 0) -> None:
    """Write bytes by their place within a structure, and its checksum anew."""
    row = bytearray(data[place : place + size])
    for at, value in change.items():
        row[at : at + len(value)] = value
    data[place : place + size] = sealed(bytes(row[:size]), kind)


def items(data: mmap.mmap, place: int) -> list[tuple[int, int, int, int, int]]:
    """Of a leaf its items: object, type, offset, and place and size within the leaf."""
    found = []
    for number in range(int.from_bytes(data[place + 96 : place + 100], "little")):
        head = struct.unpack_from("<QBQII", data, place + 101 + 25 * number)
        found.append((*head[:3], head[3] + 101, head[4]))
    return found
