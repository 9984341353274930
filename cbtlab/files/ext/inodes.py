"""The inodes of ext2, ext3 and ext4, read in bulk from the inode tables.

Tables stream through in parts of some MiB; of a part only the rows whose bit is
set in the inode bitmap are kept.  Nothing loops over inodes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cbtlab.files.checksum import crc32c
from cbtlab.files.ext import layout as on_disk
from cbtlab.files.ext.superblock import Ext
from cbtlab.files.volume import structure

_PART = 8 << 20  # bytes of inode table held at once
_SECOND = 1_000_000_000
_LATEST = np.iinfo(np.int64).max // _SECOND - 1


@dataclass(frozen=True)
class Inodes:
    """Some allocated inodes: their numbers, raw rows, decoded fields and places on disk.

    ``place`` is the byte offset of the inode in the file system; ``damaged`` marks
    rows whose checksum is wrong.
    """

    number: npt.NDArray[np.int64]
    raw: npt.NDArray[np.uint8]
    fields: Any
    place: npt.NDArray[np.int64]
    seed: npt.NDArray[np.uint32]
    damaged: npt.NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.number)

    @property
    def type(self) -> npt.NDArray[np.uint16]:
        """``i_mode >> 12``."""
        return np.asarray(self.fields["mode"] >> 12, np.uint16)

    def has(self, flag: int) -> npt.NDArray[np.bool_]:
        """Whether the flag is set, for each inode."""
        return np.asarray((self.fields["flags"] & flag) != 0, np.bool_)


def used_inodes(ext: Ext) -> npt.NDArray[np.bool_]:
    """Which inodes are allocated, as a row of ``inodes_per_group`` a group."""
    rows = ext.bitmaps(ext.inode_bitmap, ext.inodes_per_group, "inode_bitmap", ext.inodes_uninit)
    return np.unpackbits(rows, axis=1, bitorder="little").astype(np.bool_)


def read_inodes(ext: Ext, used: npt.NDArray[np.bool_]) -> Iterator[Inodes]:
    """The inodes marked in ``used``, in ascending order, some MiB at a time."""
    numbers: list[npt.NDArray[np.int64]] = []
    rows: list[npt.NDArray[np.uint8]] = []
    held = 0
    for group in np.flatnonzero(used.any(axis=1)).tolist():
        index = np.flatnonzero(used[group])
        table = int(ext.inode_table[group]) * ext.block_size
        data = ext.volume.read(table, (int(index[-1]) + 1) * ext.inode_size)
        rows.append(np.frombuffer(data, np.uint8).reshape(-1, ext.inode_size)[index])
        numbers.append(group * ext.inodes_per_group + index + 1)
        held += rows[-1].nbytes
        if held >= _PART:
            yield decode(ext, np.concatenate(numbers), np.concatenate(rows))
            numbers, rows, held = [], [], 0
    if numbers:
        yield decode(ext, np.concatenate(numbers), np.concatenate(rows))


def inode_place(ext: Ext, number: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The byte offset of inodes in the file system."""
    group, index = np.divmod(number - 1, ext.inodes_per_group)
    return np.asarray(ext.inode_table[group] * ext.block_size + index * ext.inode_size, np.int64)


def read_inode(ext: Ext, number: int) -> Inodes:
    """One inode, whether allocated or not.  The caller checked the number.

    Its checksum is not looked at: `read_inodes` did that, and one by one it is slow.
    """
    numbers = np.array([number], np.int64)
    data = ext.volume.read(int(inode_place(ext, numbers)[0]), ext.inode_size)
    return decode(ext, numbers, np.frombuffer(data, np.uint8).reshape(1, -1), check=False)


def decode(
    ext: Ext, number: npt.NDArray[np.int64], raw: npt.NDArray[np.uint8], *, check: bool = True
) -> Inodes:
    """Raw rows of ``inode_size`` bytes as `Inodes`, without those that were never made."""
    width = on_disk.INODE.itemsize
    fields = raw
    if ext.inode_size < width:
        fields = np.zeros((len(raw), width), np.uint8)
        fields[:, : ext.inode_size] = raw
    values = structure(fields, on_disk.INODE)
    # The inode of bad blocks has no mode, and is there only if it has blocks.
    bad = (number == on_disk.BAD_BLOCKS_INODE) & fields[:, on_disk.I_BLOCK].any(axis=1)
    made = (values["mode"] != 0) | bad
    number, raw, values = number[made], raw[made], values[made]
    if check:
        seed, damaged = _checksums(ext, number, raw, values)
    else:
        seed, damaged = np.zeros(len(raw), np.uint32), np.zeros(len(raw), np.bool_)
    return Inodes(number, raw, values, inode_place(ext, number), seed, damaged)


def _checksums(
    ext: Ext, number: npt.NDArray[np.int64], raw: npt.NDArray[np.uint8], fields: Any
) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.bool_]]:
    """The start value for what hangs on each inode, and whether the inode's own is wrong."""
    if not ext.has_checksums:
        return np.zeros(len(raw), np.uint32), np.zeros(len(raw), np.bool_)
    name = np.empty((len(raw), 2), "<u4")
    name[:, 0], name[:, 1] = number, fields["generation"]
    seed = crc32c(name.view(np.uint8), ext.checksum_seed)
    blank = raw.copy()
    blank[:, 124:126] = 0
    stored = fields["csum"].astype(np.uint32)
    wide = fields["extra_isize"] >= 4 if ext.inode_size > 128 else np.zeros(len(raw), np.bool_)
    blank[wide, 130:132] = 0
    stored[wide] |= fields["csum_hi"][wide].astype(np.uint32) << 16
    found = crc32c(blank, seed)
    return seed, np.where(wide, found, found & 0xFFFF) != stored


def sizes(ext: Ext, inodes: Inodes) -> npt.NDArray[np.int64]:
    """The size of each inode in bytes, as the kernel's ``ext4_isize`` has it.

    A negative one is damage (see `Mapper`), and is 0 here.
    """
    low = inodes.fields["size"].astype(np.int64)
    high = inodes.fields["size_hi"].astype(np.int64) << 32
    wide = inodes.type == on_disk.TYPE_REGULAR
    if ext.incompat & on_disk.INCOMPAT_LARGEDIR:
        wide = np.ones(len(inodes), np.bool_)
    return np.asarray(np.maximum(np.where(wide, high | low, low), 0), np.int64)


def table(ext: Ext, inodes: Inodes) -> dict[str, npt.NDArray[Any]]:
    """The columns of ``VolumeMap.inodes``.  Times are nanoseconds since 1970 UTC, at most 2262."""
    fields = inodes.fields
    extra = fields["extra_isize"].astype(np.int64) + 128 if ext.inode_size > 128 else None

    def time(name: str) -> npt.NDArray[np.int64]:
        seconds = fields[name].astype(np.int64)
        at = on_disk.INODE.fields[f"{name}_extra"][1]  # type: ignore[index]
        more = fields[f"{name}_extra"].astype(np.int64)
        more = np.where(extra >= at + 4, more, 0) if extra is not None else more * 0
        seconds = np.minimum(seconds + ((more & 3) << 32), _LATEST)
        return np.asarray(seconds * _SECOND + np.minimum(more >> 2, _SECOND - 1), np.int64)

    born = time("crtime")
    nothing = np.ones(len(inodes), np.bool_)
    no_birth = nothing if extra is None else extra < 148
    no_project = nothing if extra is None else extra < 160
    return {
        "inode": inodes.number.astype(np.uint64),
        "type": kinds(inodes.type),
        "size": sizes(ext, inodes),
        "mode": fields["mode"].astype(np.uint32),
        "uid": fields["uid"].astype(np.uint32) | fields["uid_hi"].astype(np.uint32) << 16,
        "gid": fields["gid"].astype(np.uint32) | fields["gid_hi"].astype(np.uint32) << 16,
        "nlink": fields["links"].astype(np.uint32),
        "mtime_ns": time("mtime"),
        "atime_ns": time("atime"),
        "ctime_ns": time("ctime"),
        "crtime_ns": np.where(no_birth, 0, born),
        "flags": fields["flags"].astype(np.uint32),
        "device": devices(inodes),
        "project": np.where(no_project, 0, fields["project"]).astype(np.uint32),
    }


def devices(inodes: Inodes) -> npt.NDArray[np.uint32]:
    """The device of each character and block device, major number << 20 | minor; 0 of others.

    As the kernel's ``ext4_iget``: the first pointer holds the old form, else the second the new.
    """
    old, new = inodes.fields["device_old"], inodes.fields["device_new"]
    short = (old >> 8 & 0xFF) << 20 | old & 0xFF
    wide = (new >> 8 & 0xFFF) << 20 | new >> 12 & 0xFFF00 | new & 0xFF
    special = np.isin(inodes.type, (2, 6))
    return np.where(special, np.where(old != 0, short, wide), 0).astype(np.uint32)


TYPES = ("file", "directory", "symlink", "other")


def kinds(kind: npt.NDArray[np.uint16]) -> npt.NDArray[np.int8]:
    """Codes into `TYPES` for ``i_mode >> 12``."""
    codes = np.full(16, 3, np.int8)
    codes[on_disk.TYPE_REGULAR], codes[on_disk.TYPE_DIRECTORY] = 0, 1
    codes[on_disk.TYPE_SYMLINK] = 2
    return codes[kind]
