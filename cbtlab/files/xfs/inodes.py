"""The inodes of XFS, read in bulk from the chunks that the groups' inode trees name.

Chunks stream through in parts of some MiB, and of each only the inodes in use
are kept.  Nothing loops over inodes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cbtlab.files.volume import structure
from cbtlab.files.xfs import layout as on_disk
from cbtlab.files.xfs.checksum import right
from cbtlab.files.xfs.superblock import Xfs

_SECOND = 1_000_000_000
_LATEST = np.iinfo(np.int64).max // _SECOND - 1
Array = npt.NDArray[np.int64]
Bytes = npt.NDArray[np.uint8]

TYPES = ("file", "directory", "symlink", "other")


@dataclass(frozen=True)
class Inodes:
    """Some inodes in use: numbers, raw rows, decoded fields, and places in bytes from the start.

    ``sound`` marks those that are what they are taken for, ``right`` those of them whose
    checksum is right.
    """

    number: Array
    raw: Bytes
    fields: Any
    place: Array
    sound: npt.NDArray[np.bool_]
    right: npt.NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.number)

    @property
    def type(self) -> npt.NDArray[np.uint16]:
        """``di_mode >> 12``."""
        return np.asarray(self.fields["mode"] >> 12, np.uint16)

    @property
    def size(self) -> Array:
        """The size in bytes; a negative one is damage (see `Mapper`), and is 0 here."""
        return np.maximum(self.fields["size"].astype(np.int64), 0)


def read_inodes(xfs: Xfs, number: Array, *, check: bool = True) -> Inodes:
    """The inodes with these numbers, which must lie in the file system.

    Without ``check`` nothing is said to be wrong: for one by one, where checksums are slow.
    """
    place = xfs.inode_places(number)
    raw = xfs.volume.blocks(place // xfs.inode_size, xfs.inode_size)
    wide = raw
    if xfs.inode_size < on_disk.INODE.itemsize or not xfs.has_checksums:
        wide = np.zeros((len(raw), on_disk.INODE.itemsize), np.uint8)
        wide[:, : xfs.core] = raw[:, : xfs.core]
    fields = structure(wide, on_disk.INODE)
    sound = np.ones(len(raw), np.bool_)
    if not check:
        return Inodes(number, raw, fields, place, sound, sound)
    sound = (fields["magic"] == b"IN") & (fields["mode"] != 0)
    versions = (3,) if xfs.has_checksums else (1, 2)
    sound &= np.isin(fields["version"], versions)
    if not xfs.has_checksums:
        return Inodes(number, raw, fields, place, sound, np.ones(len(raw), np.bool_))
    sound &= (fields["number"] == number.astype(np.uint64)) & xfs.is_ours(fields)
    return Inodes(number, raw, fields, place, sound, right(raw, on_disk.INODE_CHECKSUM))


def extent_counts(inodes: Inodes) -> tuple[Array, Array]:
    """How many extents the data fork and the attribute fork of each inode have."""
    fields = inodes.fields
    big = (fields["flags2"] & on_disk.FLAG2_BIG_COUNTS) != 0
    data = np.where(big, fields["big_extents"], fields["extents"])
    attribute = np.where(big, fields["extents"], fields["attribute_extents"])
    most = np.uint64(1 << 62)  # more than fit is damage, whatever the number
    return np.minimum(data.astype(np.uint64), most).astype(np.int64), attribute.astype(np.int64)


def table(xfs: Xfs, inodes: Inodes) -> dict[str, npt.NDArray[Any]]:
    """The columns of ``VolumeMap.inodes``.  Times are nanoseconds since 1970 UTC, at most 2262.

    ``flags`` has ``di_flags`` in its lower half, and the lower half of ``di_flags2`` above.
    """
    fields = inodes.fields
    big = (fields["flags2"] & on_disk.FLAG2_BIG_TIME) != 0
    project = fields["project"].astype(np.uint32)
    if xfs.has_wide_projects:
        project |= fields["project_hi"].astype(np.uint32) << 16
    old = fields["version"] == 1
    born = _time(fields["crtime"], big) if xfs.has_checksums else np.zeros(len(inodes), np.int64)
    return {
        "inode": inodes.number.astype(np.uint64),
        "type": kinds(inodes.type),
        "size": inodes.size,
        "mode": fields["mode"].astype(np.uint32),
        "uid": fields["uid"].astype(np.uint32),
        "gid": fields["gid"].astype(np.uint32),
        "nlink": np.where(old, fields["old_links"], fields["links"]).astype(np.uint32),
        "mtime_ns": _time(fields["mtime"], big),
        "atime_ns": _time(fields["atime"], big),
        "ctime_ns": _time(fields["ctime"], big),
        "crtime_ns": born,
        "flags": fields["flags"].astype(np.uint32)
        | (fields["flags2"] & np.uint64(0xFFFF)).astype(np.uint32) << 16,
        "device": _devices(xfs, inodes),
        "project": project,
    }


def _time(stored: Any, big: npt.NDArray[np.bool_]) -> Array:
    """Two halves of seconds and nanoseconds, or nanoseconds from 1901 on (bigtime)."""
    value = stored.astype(np.uint64)
    seconds = (value >> np.uint64(32)).astype(np.uint32).view(np.int32).astype(np.int64)
    part = (value & np.uint64(0xFFFFFFFF)).astype(np.int64)
    one = np.uint64(_SECOND)
    seconds = np.where(big, (value // one).astype(np.int64) - on_disk.BIG_TIME_START, seconds)
    part = np.where(big, (value % one).astype(np.int64), np.minimum(part, _SECOND - 1))
    return np.asarray(np.minimum(seconds, _LATEST) * _SECOND + part, np.int64)


def _devices(xfs: Xfs, inodes: Inodes) -> npt.NDArray[np.uint32]:
    """The device of character and block devices, major number << 20 | minor; 0 of others."""
    stored = np.ascontiguousarray(inodes.raw[:, xfs.core : xfs.core + 4]).view(">u4")[:, 0]
    stored = stored.astype(np.uint32)  # as System V has it: 14 and 18 bits
    special = np.isin(inodes.type, (2, 6)) & (inodes.fields["format"] == on_disk.FORMAT_DEVICE)
    number = (stored >> np.uint32(18)) << np.uint32(20) | stored & np.uint32(0x3FFFF)
    return np.where(special, number, 0).astype(np.uint32)


def kinds(kind: npt.NDArray[np.uint16]) -> npt.NDArray[np.int8]:
    """Codes into `TYPES` for ``di_mode >> 12``."""
    codes = np.full(16, 3, np.int8)
    codes[on_disk.TYPE_REGULAR], codes[on_disk.TYPE_DIRECTORY] = 0, 1
    codes[on_disk.TYPE_SYMLINK] = 2
    return codes[kind]
