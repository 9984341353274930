"""Extended attributes of ext2, ext3 and ext4: in the inode, in a block, in an inode of their own.

Layout: the kernel's ``fs/ext4/xattr.h``.  The oracle is ``getxattr`` on a mounted copy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cbtlab.files.ext import layout as on_disk
from cbtlab.files.ext.inodes import Inodes, read_inode
from cbtlab.files.ext.superblock import Ext
from cbtlab.files.names import text

PREFIXES = {
    1: "user.",
    2: "system.posix_acl_access",
    3: "system.posix_acl_default",
    4: "trusted.",
    6: "security.",
    7: "system.",
    8: "system.richacl",
    10: "gnu.",
}
INLINE_INDEX, INLINE_NAME = 7, b"data"  # a small file's content past the first 60 bytes
_ENTRY, _BLOCK_HEADER = 16, 32
_LARGEST_VALUE = 64 << 10  # what the kernel takes (XATTR_SIZE_MAX)


@dataclass(frozen=True)
class Entry:
    """One attribute: its value lies at ``place`` of the area, or in the inode ``holder``."""

    index: int
    name: bytes
    place: int
    size: int
    holder: int


def entries(area: bytes, first: int, base: int) -> Iterator[Entry]:
    """The entries in ``area`` from ``first`` on; ends at the end mark or where it makes no sense.

    Value offsets count from ``base``.
    """
    at = first
    while at + _ENTRY <= len(area) and area[at : at + 4] != bytes(4):
        length, index = area[at], area[at + 1]
        name = area[at + _ENTRY : at + _ENTRY + length]
        place = base + int.from_bytes(area[at + 2 : at + 4], "little")
        holder = int.from_bytes(area[at + 4 : at + 8], "little")
        size = int.from_bytes(area[at + 8 : at + 12], "little")
        if len(name) < length or (not holder and place + size > len(area)):
            return
        yield Entry(index, name, place, size, holder)
        at += _ENTRY + (length + 3 & ~3)


def areas(ext: Ext, inode: Inodes) -> Iterator[tuple[bytes, int, int]]:
    """The attribute areas of one inode as ``(area, first entry, base of values)``."""
    fields, raw = inode.fields[0], inode.raw[0].tobytes()
    magic = on_disk.XATTR_MAGIC.to_bytes(4, "little")
    if ext.inode_size > 128:
        start = 128 + int(fields["extra_isize"])
        if raw[start : start + 4] == magic:
            yield raw, start + 4, start + 4
    block = int(fields["file_acl"]) | int(fields["file_acl_hi"]) << 32
    if ext.first_block <= block < ext.blocks and block:
        area = ext.volume.read(block * ext.block_size, ext.block_size)
        if area[:4] == magic:
            yield area, _BLOCK_HEADER, 0


def read_xattrs(ext: Ext, number: int, content: Callable[[int], bytes]) -> dict[str, bytes]:
    """The attributes of an inode by full name; ``content`` reads the inode that holds a value."""
    found: dict[str, bytes] = {}
    for area, first, base in areas(ext, read_inode(ext, number)):
        for entry in entries(area, first, base):
            prefix = PREFIXES.get(entry.index)
            if prefix is None or (entry.index, entry.name) == (INLINE_INDEX, INLINE_NAME):
                continue
            if entry.holder:
                if not 0 < entry.holder <= ext.inodes or entry.size > _LARGEST_VALUE:
                    raise ext.volume.fault(f"an attribute of inode {number} is damaged")
                value = content(entry.holder)[: entry.size]
            else:
                value = area[entry.place : entry.place + entry.size]
            if entry.index in (2, 3):
                value = access_list(value)
            found.setdefault(prefix + text(entry.name), value)
    return found


def holders(ext: Ext, number: int) -> list[int]:
    """The inodes that hold values of this inode's attributes (feature ``ea_inode``)."""
    return [
        entry.holder
        for area, first, base in areas(ext, read_inode(ext, number))
        for entry in entries(area, first, base)
        if entry.holder
    ]


def access_list(value: bytes) -> bytes:
    """A POSIX access list as ``getxattr`` returns it (version 2), from ext's own (version 1)."""
    if value[:4] != (1).to_bytes(4, "little"):
        return value
    result, at = [(2).to_bytes(4, "little")], 4
    while at + 4 <= len(value):
        named = value[at] in (2, 8)  # ACL_USER and ACL_GROUP carry an id
        who = value[at + 4 : at + 8] if named else b"\xff" * 4
        result.append(value[at : at + 4] + who)
        at += 8 if named else 4
    return b"".join(result)


def inline_tails(
    ext: Ext, inodes: Inodes, rows: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Where in the inode the rest of inline content lies, and its size (0: none), for each row."""
    place, size = np.zeros(len(rows), np.int64), np.zeros(len(rows), np.int64)
    if ext.inode_size <= 128:
        return place, size
    raw = inodes.raw[rows]
    padded = np.zeros((len(rows), ext.inode_size + _ENTRY + 4), np.uint8)
    padded[:, : ext.inode_size] = raw
    start = 128 + inodes.fields["extra_isize"][rows].astype(np.int64)
    start = np.minimum(start, ext.inode_size)
    alive = _u32(padded, start) == on_disk.XATTR_MAGIC
    base = start + 4
    at = base.copy()
    row = np.arange(len(rows))
    data = int.from_bytes(INLINE_NAME, "little")
    while True:
        at = np.minimum(at, ext.inode_size)
        alive &= (at + _ENTRY <= ext.inode_size) & (_u32(padded, at) != 0)
        if not alive.any():
            return place, size
        length, index = padded[row, at].astype(np.int64), padded[row, at + 1]
        mine = alive & (index == INLINE_INDEX) & (length == 4)
        mine &= _u32(padded, at + _ENTRY) == data
        where = base + (_u32(padded, at) >> 16)
        many = np.where(mine, _u32(padded, np.minimum(at + 8, ext.inode_size)), 0)
        mine &= where + many <= ext.inode_size
        place[mine], size[mine] = where[mine], many[mine]
        alive &= ~mine
        at = at + _ENTRY + (length + 3 & ~3)


def _u32(rows: npt.NDArray[np.uint8], at: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The 32-bit number at ``at`` of each row."""
    row = np.arange(len(rows))
    bytes_ = [rows[row, at + n].astype(np.int64) << 8 * n for n in range(4)]
    return bytes_[0] | bytes_[1] | bytes_[2] | bytes_[3]
