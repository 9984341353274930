"""Files to extents as the kernel tells them: the FIEMAP ioctl on a mounted snapshot.

The one source that sees the journal replayed, on every file system that has the
ioctl.  btrfs has it and is refused: what it calls physical is an address of its
own, which a tree maps to the disk.  Nothing is written, and no border of a file
system is crossed.  Layout: the kernel's ``include/uapi/linux/fiemap.h``.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import stat
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cbtlab.errors import InputError
from cbtlab.exclude import match
from cbtlab.files.extents import DATA, INLINE, UNWRITTEN, Extents, holes
from cbtlab.files.listing import as_documents
from cbtlab.files.names import text

_FIEMAP = 0xC020660B
_HEAD = struct.Struct("=QQIIII")
_EXTENT = np.dtype(
    {
        "names": ["logical", "physical", "length", "flags"],
        "offsets": [0, 8, 16, 40],
        "formats": ["<u8", "<u8", "<u8", "<u4"],
        "itemsize": 56,
    }
)
_AT_ONCE = 512
_SYNC = 1  # write back first: what is not on the disk has no place
_LAST, _UNKNOWN, _DELAYED, _ENCODED, _INLINE, _UNWRITTEN = 0x1, 0x2, 0x4, 0x8, 0x200, 0x800
_BTRFS = 0x9123683E


def mounted_listing(root: Path, patterns: Sequence[str] = ()) -> dict[str, Any]:
    """List regular files and symlinks below a mount, as `listing` does for an image.

    ``physical`` counts from the start of the mounted device.  ``patterns`` select files.
    Raises InputError where the kernel does not tell where files lie.
    """
    _refuse_btrfs(root)
    device = root.stat().st_dev
    found = list(_walk(root, device))
    paths = ["/" + raw.decode(errors="surrogateescape") for raw, *_ in found]
    chosen = match(patterns, paths) if patterns else np.ones(len(found), np.bool_)
    files = [
        {"path": text(b"/" + raw), "inode": inode, "size": size, "extents": extents}
        for (raw, inode, size, extents), mine in zip(found, chosen.tolist(), strict=True)
        if mine
    ]
    return {"files": sorted(files, key=lambda file: str(file["path"])), "notes": []}


def _walk(root: Path, device: int) -> Iterator[tuple[bytes, int, int, list[dict[str, Any]]]]:
    """Every regular file and symlink: its path below the root, inode, size and extents."""

    def fail(error: OSError) -> None:
        raise InputError(root, f"cannot be read: {error}", "read it as root") from error

    for above, folders, names, fd in os.fwalk(os.fsencode(root), onerror=fail):
        if os.fstat(fd).st_dev != device:
            folders.clear()
            continue
        inside = os.path.relpath(above, os.fsencode(root))
        for name in sorted(names + folders):
            about = os.lstat(name, dir_fd=fd)
            path = name if inside == b"." else inside + b"/" + name
            if stat.S_ISREG(about.st_mode):
                yield path, about.st_ino, about.st_size, _extents_at(root, fd, name, about)
            elif stat.S_ISLNK(about.st_mode):
                yield path, about.st_ino, about.st_size, []  # nobody can ask for its place


def _extents_at(root: Path, folder: int, name: bytes, about: os.stat_result) -> list[Any]:
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        fd = os.open(name, flags, dir_fd=folder)
    except OSError as error:
        raise InputError(
            root, f"{text(name)} cannot be read: {error}", "read it as root"
        ) from error
    try:
        mapped = extents_of(fd, about.st_ino)
    except OSError as error:
        fault = f"the kernel does not tell where {text(name)} lies: {error.strerror}"
        raise InputError(root, fault, "map an image of the volume") from error
    finally:
        os.close(fd)
    number, size = np.array([about.st_ino], np.int64), np.array([about.st_size], np.int64)
    everything = Extents.join([mapped, holes(mapped, number, size)]).ordered()
    return as_documents(everything)


def extents_of(fd: int, inode: int) -> Extents:
    """The extents of an open file in bytes, without its holes; OSError."""
    parts, start = [], 0
    while True:
        asked = _HEAD.pack(start, (1 << 64) - 1 - start, _SYNC, 0, _AT_ONCE, 0)
        buffer = bytearray(asked + bytes(_AT_ONCE * _EXTENT.itemsize))
        fcntl.ioctl(fd, _FIEMAP, buffer)
        count = _HEAD.unpack_from(buffer)[3]
        rows = np.frombuffer(buffer, _EXTENT, count, _HEAD.size)
        flags = rows["flags"]
        if (flags & (_UNKNOWN | _DELAYED)).any():
            raise OSError(errno.EBUSY, "is not on the disk yet")
        inline = (flags & _INLINE) != 0
        kind = np.where(inline, INLINE, np.where(flags & _UNWRITTEN, UNWRITTEN, DATA))
        logical, physical, length = (
            rows[name].astype(np.int64) for name in ("logical", "physical", "length")
        )
        number = np.full(count, inode, np.int64)
        encoded = (flags & _ENCODED) != 0
        parts.append(Extents.of(number, kind, logical, physical, length, encoded=encoded))
        if not count or flags[-1] & _LAST:
            return Extents.join(parts).ordered().merged()
        start = int(logical[-1] + length[-1])


class _StatFs(ctypes.Structure):
    """The first field of ``struct statfs``, and room for the rest."""

    _fields_ = (("type", ctypes.c_long), ("rest", ctypes.c_char * 248))


def _refuse_btrfs(root: Path) -> None:
    found = _StatFs()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.statfs(os.fsencode(root), ctypes.byref(found)) != 0:
        raise InputError(root, os.strerror(ctypes.get_errno()))
    if found.type == _BTRFS:
        raise InputError(
            root,
            "is btrfs, whose FIEMAP tells addresses of its own and no places of the device",
            "map an image of the volume",
        )
