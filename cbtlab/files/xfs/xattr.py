"""Extended attributes of XFS: in the inode, in leaves of a tree, in blocks of their own.

The oracle is ``getxattr`` on a mounted copy.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cbtlab.errors import InputError
from cbtlab.files.extents import Extents
from cbtlab.files.names import text
from cbtlab.files.volume import structure
from cbtlab.files.xfs import layout as on_disk
from cbtlab.files.xfs.checksum import right
from cbtlab.files.xfs.forks import Mapper, attribute_forks
from cbtlab.files.xfs.inodes import Inodes, read_inodes
from cbtlab.files.xfs.superblock import Xfs

#: What the kernel shows access lists as, beside their own names.
_LISTS = {
    b"SGI_ACL_FILE": "system.posix_acl_access",
    b"SGI_ACL_DEFAULT": "system.posix_acl_default",
}
_MOST_NODES = 1 << 16  # of one tree of attributes
_DEPTH = 5  # the kernel's XFS_DA_NODE_MAXDEPTH


@dataclass(frozen=True)
class Entry:
    """One attribute: flags, name, and its value or where it lies: logical block and length."""

    flags: int
    name: bytes
    value: bytes
    block: int = 0
    length: int = 0


def read_xattrs(xfs: Xfs, number: int) -> dict[str, bytes]:
    """The attributes of an inode by full name, as root sees them.  Raises InputError."""
    inodes = read_inodes(xfs, np.array([number], np.int64), check=False)
    fork = attribute_forks(xfs, inodes)
    found: dict[str, bytes] = {}
    if not len(fork.rows):
        return found
    if fork.format[0] == on_disk.FORMAT_LOCAL:
        start = int(fork.start[0])
        entries, blocks = _local(xfs, inodes.raw[0, start:].tobytes(), number), None
    else:
        blocks = _Blocks(xfs, inodes)
        entries = blocks.entries()
    for entry in entries:
        if entry.flags & (on_disk.ATTRIBUTE_INCOMPLETE | on_disk.ATTRIBUTE_PARENT):
            continue  # half made or half removed; or a link to a parent, which the kernel hides
        value = entry.value
        if blocks is not None and entry.length:
            value = blocks.value(entry)
        root = entry.flags & on_disk.ATTRIBUTE_ROOT
        if root and entry.name in _LISTS:
            found[_LISTS[entry.name]] = access_list(value)
        prefix = "trusted." if root else "user."
        if entry.flags & on_disk.ATTRIBUTE_SECURE:
            prefix = "security."
        found[prefix + text(entry.name)] = value
    return found


def access_list(value: bytes) -> bytes:
    """A POSIX access list as ``getxattr`` returns it (version 2), from XFS's own."""
    count = int.from_bytes(value[:4], "big")
    if len(value) != 4 + 12 * count:
        return value
    result = [(2).to_bytes(4, "little")]
    for tag, who, bits in struct.iter_unpack(">IIHxx", value[4:]):
        named = tag in (2, 8)  # ACL_USER and ACL_GROUP carry an id
        result.append(struct.pack("<HHI", tag & 0xFFFF, bits, who if named else 0xFFFFFFFF))
    return b"".join(result)


def _damaged(xfs: Xfs, number: int) -> InputError:
    return xfs.fault(f"the attributes of inode {number} are damaged")


def _local(xfs: Xfs, area: bytes, number: int) -> Iterator[Entry]:
    """Attributes in the inode: total size, count, and lengths, flags, name, value of each."""
    if len(area) < 4:
        raise _damaged(xfs, number)
    size, count, at = int.from_bytes(area[:2], "big"), area[2], 4
    if size > len(area):
        raise _damaged(xfs, number)
    for _ in range(count):
        if at + 3 > size:
            raise _damaged(xfs, number)
        name_length, length, flags = area[at : at + 3]
        at += 3
        end = at + name_length + length
        if end > size or not name_length:
            raise _damaged(xfs, number)
        yield Entry(flags, area[at : at + name_length], area[at + name_length : end])
        at = end


class _Blocks:
    """The attribute fork of one inode that lies in blocks."""

    def __init__(self, xfs: Xfs, inodes: Inodes) -> None:
        self._xfs, self._number = xfs, int(inodes.number[0])
        mapper = Mapper(xfs, attributes=True)
        mapper.add(inodes)
        if mapper.damaged:
            raise self._fault()
        self._extents: Extents = mapper.extents()

    def _fault(self) -> InputError:
        return _damaged(self._xfs, self._number)

    def _read(self, logical: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.uint8], Any]:
        """Logical blocks of the fork as rows, and where they lie."""
        found = self._extents
        at = np.searchsorted(found.logical, logical, side="right") - 1
        if not len(found) or (at < 0).any():
            raise self._fault()
        within = logical - found.logical[at]
        if (within >= found.length[at]).any():
            raise self._fault()
        place = found.physical[at] + within
        return self._xfs.volume.blocks(place, self._xfs.block_size), place

    def entries(self) -> Iterator[Entry]:
        """All attributes, from the root of the tree, block 0, down."""
        if not len(self._extents):
            return
        seen: set[int] = set()
        todo = [(0, _DEPTH)]
        while todo:
            logical, depth = todo.pop()
            if logical in seen or not depth or len(seen) > _MOST_NODES:
                raise self._fault()
            seen.add(logical)
            rows, place = self._read(np.array([logical], np.int64))
            head = structure(rows, on_disk.ATTRIBUTE_NODE)
            magic = int(head["magic"][0])
            self._must_be_ours(rows, head, on_disk.ATTRIBUTE_CHECKSUM, place)
            if magic == on_disk.ATTRIBUTE_LEAVES[self._xfs.has_checksums]:
                yield from self._leaf(rows[0].tobytes())
            elif magic == on_disk.ATTRIBUTE_NODES[self._xfs.has_checksums]:
                todo += [(below, depth - 1) for below in self._node(rows[0].tobytes())]
            else:
                raise self._fault()

    def _must_be_ours(
        self, rows: npt.NDArray[np.uint8], head: Any, checksum: int, place: Any
    ) -> None:
        if self._xfs.has_checksums:
            good = right(rows, checksum) & self._xfs.is_ours(head)
            good &= head["owner"] == self._number
            good &= head["place"] == place * (self._xfs.block_size // on_disk.SECTOR)
            if not good.all():
                raise self._fault()

    def _head(self) -> int:
        return on_disk.ATTRIBUTE_NODE.itemsize if self._xfs.has_checksums else 12

    def _node(self, block: bytes) -> list[int]:
        head = self._head()
        count = int.from_bytes(block[head : head + 2], "big")
        first = head + (8 if self._xfs.has_checksums else 4)
        if first + 8 * count > len(block):
            raise self._fault()
        return [below for _, below in struct.iter_unpack(">II", block[first : first + 8 * count])]

    def _leaf(self, block: bytes) -> Iterator[Entry]:
        head = self._head()
        count = int.from_bytes(block[head : head + 2], "big")
        first = 80 if self._xfs.has_checksums else 32
        if first + 8 * count > len(block):
            raise self._fault()
        for _, at, flags in struct.iter_unpack(">IHBx", block[first : first + 8 * count]):
            if flags & on_disk.ATTRIBUTE_LOCAL:
                length, name_length = (
                    int.from_bytes(block[at : at + 2], "big"),
                    block[at + 2 : at + 3],
                )
                name = at + 3
                value, logical = length, 0
            else:
                logical, length = (
                    int.from_bytes(block[at + n : at + n + 4], "big") for n in (0, 4)
                )
                name_length, name, value = block[at + 8 : at + 9], at + 9, 0
            end = name + (name_length[0] if name_length else len(block))
            if end + value > len(block) or length > on_disk.LONGEST_VALUE:
                raise self._fault()
            own = block[name:end]
            if flags & on_disk.ATTRIBUTE_LOCAL:
                yield Entry(flags, own, block[end : end + value])
            else:
                yield Entry(flags, own, b"", logical, length)

    def value(self, entry: Entry) -> bytes:
        """A value that lies in blocks of its own; in version 5 each has a head."""
        start = on_disk.REMOTE.itemsize if self._xfs.has_checksums else 0
        each = self._xfs.block_size - start
        number = np.arange(-(-entry.length // each), dtype=np.int64)
        rows, place = self._read(entry.block + number)
        if self._xfs.has_checksums:
            head = structure(rows, on_disk.REMOTE)
            self._must_be_ours(rows, head, on_disk.REMOTE_CHECKSUM, place)
            good = (head["magic"] == on_disk.ATTRIBUTE_MAGIC) & (head["offset"] == number * each)
            good &= head["bytes"] == np.minimum(entry.length - number * each, each)
            if not good.all():
                raise self._fault()
        return rows[:, start:].tobytes()[: entry.length]
