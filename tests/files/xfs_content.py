"""Files in every form that XFS has for them, and what the kernel says of a mounted volume.

Runs in a bare guest, too: the standard library alone.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import stat
import struct
from pathlib import Path
from typing import Any

MIB = 1 << 20
Rows = list[tuple[int, int, int, int]]

# What the kernel says -------------------------------------------------------------------------

FIEMAP, GETFSMAP, GETBMAPX = 0xC020660B, 0xC0C0583B, 0xC0205838
_HEAD, _KEY = struct.Struct("=IIII48x"), struct.Struct("=IIQQQQ24x")
_BMAP, _FIEMAP = struct.Struct("=qqqllllll"), struct.Struct("=QQQQQLLLL")
#: Flags and owners of GETFSMAP.
ATTRIBUTES, EXTENT_MAP, SHARED, SPECIAL = 2, 4, 8, 16
OWNERS = {
    1: "free",
    2: "unknown",
    (ord("X") << 32) + 1: "headers",
    (ord("X") << 32) + 2: "log",
    (ord("X") << 32) + 3: "group",
    (ord("X") << 32) + 4: "inode trees",
    (ord("X") << 32) + 5: "inodes",
    (ord("X") << 32) + 6: "reference counts",
    (ord("X") << 32) + 7: "staged",
}


class Truth:
    """What the kernel says of every name of a mounted volume, and of its blocks.

    Maps are rows of logical place, physical place and length in bytes, and 1 for unwritten:
    ``fiemap`` by FIEMAP, ``bmap`` and ``attribute_map`` by the call that xfs_bmap makes.
    """

    def __init__(self, root: Path) -> None:
        self.stat: dict[bytes, os.stat_result] = {}
        self.content: dict[bytes, bytes] = {}
        self.xattrs: dict[bytes, dict[str, bytes]] = {}
        self.fiemap: dict[bytes, Rows] = {}
        self.bmap: dict[bytes, Rows] = {}
        self.attribute_map: dict[bytes, Rows] = {}
        self.fsmap = getfsmap(root)
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
        if stat.S_ISREG(info.st_mode) or stat.S_ISDIR(info.st_mode):
            self.bmap[name] = getbmapx(path)
            self.attribute_map[name] = getbmapx(path, attributes=True)
        if stat.S_ISREG(info.st_mode):
            self.fiemap[name] = fiemap(path)
            self.content[name] = path.read_bytes()
        elif stat.S_ISLNK(info.st_mode):
            self.content[name] = os.fsencode(path.readlink())


def _ask(path: Path, request: int, buffer: Any) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.ioctl(descriptor, request, buffer)
    finally:
        os.close(descriptor)


def fiemap(path: Path) -> Rows:
    count, head = 1 << 13, struct.Struct("=QQLLLL")
    buffer = ctypes.create_string_buffer(head.size + count * _FIEMAP.size)
    head.pack_into(buffer, 0, 0, 2**64 - 1, 1, 0, count, 0)
    _ask(path, FIEMAP, buffer)
    found = head.unpack_from(buffer, 0)[3]
    assert found < count
    rows = [_FIEMAP.unpack_from(buffer, head.size + n * _FIEMAP.size) for n in range(found)]
    return [(row[0], row[1], row[2], row[5] >> 11 & 1) for row in rows]


def getbmapx(path: Path, *, attributes: bool = False) -> Rows:
    count = 1 << 13
    buffer = ctypes.create_string_buffer((count + 1) * _BMAP.size)
    flags = 4 | 16 | (1 if attributes else 0)  # preallocated, no holes, the attribute fork
    _BMAP.pack_into(buffer, 0, 0, 0, -1, count + 1, 0, flags, 0, 0, 0)
    try:
        _ask(path, GETBMAPX, buffer)
    except FileNotFoundError:  # no attribute fork
        return []
    found = _BMAP.unpack_from(buffer, 0)[4]
    assert found < count
    rows = [_BMAP.unpack_from(buffer, (n + 1) * _BMAP.size) for n in range(found)]
    return [(row[0] * 512, row[1] * 512, row[2] * 512, row[6] & 1) for row in rows]


def getfsmap(root: Path) -> list[tuple[int, int, int, int, int]]:
    """Rows of flags, physical place, owner, offset in the owner, and length, in bytes."""
    count = 1 << 16
    buffer = ctypes.create_string_buffer(192 + count * _KEY.size)
    low = _KEY.pack(0, 0, 0, 0, 0, 0)
    high = _KEY.pack(*[2**32 - 1] * 2, *[2**64 - 1] * 3, 0)
    buffer[:192] = _HEAD.pack(0, 0, count, 0) + low + high
    _ask(root, GETFSMAP, buffer)
    found = _HEAD.unpack_from(buffer, 0)[3]
    assert found < count
    return [_KEY.unpack_from(buffer, 192 + n * _KEY.size)[1:] for n in range(found)]


# Content ------------------------------------------------------------------------------------

FICLONE = 0x40049409
KEEP_SIZE, PUNCH = 1, 2


def clone(source: Path, target: Path) -> None:
    with source.open("rb") as one, target.open("wb") as two:
        fcntl.ioctl(two, FICLONE, one.fileno())


def fallocate(path: Path, mode: int, ranges: list[tuple[int, int]]) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
    for offset, length in ranges:
        assert libc.fallocate(descriptor, mode, offset, length) == 0, ctypes.get_errno()
    os.close(descriptor)


def fill(root: Path, *, reflink: bool = True, many: int = 250) -> None:
    """Fill an empty volume; ``many`` extents has its most fragmented file."""
    block = os.statvfs(root).f_bsize
    _names(root)
    _sparse(root, block, many)
    _folders(root, many)
    _attributes(root)
    if reflink:
        clone(root / "many-extents", root / "clone")
        with (root / "clone").open("r+b") as file:
            file.seek(block)
            file.write(b"own" * 100)
        clone(root / "past-end", root / "clone-past-end")
        clone(root / "past-end", root / "shorter-clone")
        os.truncate(root / "shorter-clone", 1)


def fragment(root: Path) -> None:
    """Leave no more than 7 free blocks together: too few for a whole chunk of inodes."""
    path, block = root / "hog", os.statvfs(root).f_bsize
    free = os.statvfs(root).f_bavail
    fallocate(path, 0, [(0, (free - 64) * block)])
    holes = [(at * block, 7 * block) for at in range(0, free - 80, 12)]
    fallocate(path, KEEP_SIZE | PUNCH, holes)
    for number in range(20):
        rows = [row for row in getfsmap(root) if OWNERS.get(row[2]) == "free"]
        large = sum(length for *_, length in rows if length > 7 * block)
        if not large:
            break
        fallocate(root / f"hog-{number}", 0, [(0, large)])


def _names(root: Path) -> None:
    (root / "folder").mkdir()
    (root / "folder" / "text.txt").write_bytes(b"hello\n" * 3000)
    os.link(root / "folder" / "text.txt", root / "folder" / "link.txt")
    (root / "tiny").write_bytes(b"tiny")
    (root / "empty").touch()
    for name in (b"caf\xc3\xa9", b"bad\xff\xfe", b"back\\xff", b"two\nlines", b"a b"):
        Path(os.fsdecode(os.fsencode(root) + b"/" + name)).write_bytes(b"name" * 40)
    for length in (5, 150, 300, 470, 1000):
        (root / f"symlink-{length}").symlink_to("s" * length)
    os.mkfifo(root / "fifo")
    for kind, name in ((0o20600, "character"), (0o60600, "block")):
        os.mknod(root / name, kind, os.makedev(259, 70000))
    (root / "long").mkdir()
    (root / "long" / ("l" * 255)).write_bytes(b"long")
    Path(os.fsdecode(os.fsencode(root / "long") + b"/" + bytes([0xFF]) * 255)).touch()
    (root / "times").touch()
    os.utime(root / "times", ns=(2**32 * 10**9 + 7, -5 * 10**9 + 3))
    os.chown(root / "times", 70000, 80000)
    (root / "times").chmod(0o6751)


def _sparse(root: Path, block: int, many: int) -> None:
    with (root / "sparse").open("wb") as file:
        for at in (MIB, 3 * MIB, 3 * MIB + 8192):
            file.seek(at)
            file.write(b"sparse" * 100)
        file.truncate(5 * MIB + 1234)
    with (root / "only-hole").open("wb") as file:
        file.truncate((1 << 42) + 1)
    os.truncate(root / "only-hole", 10 * MIB + 1)
    (root / "preallocated").write_bytes(b"start" * 1000)
    fallocate(root / "preallocated", 0, [(0, 300000)])
    with (root / "preallocated").open("r+b") as file:
        file.seek(100000)
        file.write(b"middle" * 1000)
    (root / "past-end").write_bytes(b"kept" * 2000)
    fallocate(root / "past-end", KEEP_SIZE, [(0, MIB)])
    # Every second block is a hole, so that the extents need a B+tree.
    (root / "many-extents").write_bytes(os.urandom(2 * many * block))
    holes = [(2 * number * block, block) for number in range(many)]
    fallocate(root / "many-extents", KEEP_SIZE | PUNCH, holes)


def _folders(root: Path, many: int) -> None:
    """Folders in the inode, of one block, with leaves, with nodes; and with names taken out."""
    for name, count in (("in-inode", 3), ("one-block", 30), ("leaf", 150), ("node", 3 * many)):
        (root / name).mkdir()
        for number in range(count):
            stem = f"{number:05d}-" + "n" * (number * 7 % 200)
            os.mknod(root / name / stem, 0o100644)
            if number % 5 == 4:
                (root / name / stem).unlink()
    for child in sorted((root / "node").iterdir())[many : 2 * many]:
        child.unlink()


def _attributes(root: Path) -> None:
    """Attributes in the inode, in one block, in a tree, and with values in blocks of their own."""
    (root / "attributes").mkdir()
    for count, size in (
        (1, 0),
        (2, 20),
        (4, 250),
        (20, 200),
        (150, 120),
        (3, 3000),
        (9, 20000),
        (2, 65536),
    ):
        path = root / "attributes" / f"{count}-of-{size}"
        path.write_bytes(b"a")
        for number in range(count):
            space = ("user", "trusted", "security")[number % 3]
            os.setxattr(path, f"{space}.name-{number}", os.urandom(size))
    os.setxattr(root / "node", "user.of-a-folder", b"f" * 2000)
    os.setxattr(root / "symlink-5", "trusted.of-a-symlink", b"s" * 90, follow_symlinks=False)
    os.setxattr(root / "tiny", "trusted.\xe9", b"")
    entries = ((1, 7, ~0), (2, 6, 1234), (4, 5, ~0), (16, 7, ~0), (32, 4, ~0))
    value = struct.pack("<I", 2)
    value += b"".join(
        struct.pack("<HHI", tag, bits, who & 0xFFFFFFFF) for tag, bits, who in entries
    )
    os.setxattr(root / "folder", "system.posix_acl_access", value)
    os.setxattr(root / "folder", "system.posix_acl_default", value)
