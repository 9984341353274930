"""Leftovers of ext2, ext3 and ext4: the journal, free inodes, gaps of folders and attributes.

A clean journal is read by nobody: its superblock says that it begins nowhere.  An inode that
its bitmap calls free is written whole when it is taken again.  What hangs on a checksum
(blocks of folders, attribute blocks) gets a new one, see `ext_mended`.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np

from cbtlab.files.ext import layout as on_disk
from cbtlab.files.ext.inodes import inode_place, used_inodes
from cbtlab.files.ext.superblock import Ext
from cbtlab.files.ext.xattr import entries
from cbtlab.files.extents import DATA, META, Extents
from cbtlab.files.volume import Volume
from cbtlab.files.volume_map import TYPES, VolumeMap
from cbtlab.images import Image
from cbtlab.leftovers import table
from cbtlab.leftovers.contents import labels, of_contents
from cbtlab.leftovers.ext_folders import gaps
from cbtlab.leftovers.ext_mended import mended
from cbtlab.leftovers.table import Bools, Ints, Leftovers

_JOURNAL = 0xC03B3998  # the kernel's include/linux/jbd2.h; numbers there are big-endian
_JOURNAL_SUPERBLOCK = 1024  # bytes, whatever the size of a block
_NEEDED_TO_THE_LAST = 0x800 | 0x100000  # encrypted; a hash tree behind the end (fs-verity)
_ENCRYPTED_FOLDED = 0x800 | 0x40000000  # a folder with hashes behind its names
_INDEXED = 0x1000
_AT_ONCE = 8 << 20


class ExtLeftovers:
    """The leftovers of one file system; every offset counts from the start of the image."""

    def __init__(self, volume: VolumeMap, place: Volume) -> None:
        self.volume, self.ext = volume, Ext(place)

    def find(self) -> list[Leftovers]:
        """All of them."""
        flags = self.volume.inodes["flags"].to_numpy()
        found = of_contents(self.volume, (flags & _NEEDED_TO_THE_LAST) != 0)
        return [*found, *self._journal(), self._inodes(), *self._folders(), *self._attributes()]

    def mend(self, image: Image, changed: Leftovers) -> list[tuple[int, bytes, str]]:
        """New checksums for what was changed."""
        return mended(self.ext, self.volume, image, changed)

    def record(self, offset: int) -> tuple[str, str] | None:
        """The inode that a byte of an inode table belongs to."""
        at = offset - self.volume.offset
        begin = self.ext.inode_table * self.ext.block_size
        length = self.ext.inodes_per_group * self.ext.inode_size
        group = np.flatnonzero((begin <= at) & (at < begin + length))
        if not len(group):
            return None
        index = int(at - begin[group[0]]) // self.ext.inode_size
        number = int(group[0]) * self.ext.inodes_per_group + index + 1
        if self._used[group[0], index]:
            return table.INLINE, self.volume.label(number)
        return table.INODES, f"<free inode {number}>"

    @cached_property
    def _used(self) -> Bools:
        return used_inodes(self.ext)

    # The journal ----------------------------------------------------------------------------

    def _journal(self) -> list[Leftovers]:
        inode = int(self.ext.superblock["journal_inode"])
        rows = self.volume.rows(inode) if inode else Extents.join([])
        rows = rows[rows.kind == DATA]
        first = rows[rows.logical == 0]
        if not len(first):
            return []
        place = int(first.physical[0]) - self.volume.offset
        head = np.frombuffer(self.ext.volume.read(place, 32), ">u4")
        clean = int(head[0]) == _JOURNAL and int(head[7]) == 0  # s_start: nothing to replay
        start = rows.physical + np.where(rows.logical == 0, _JOURNAL_SUPERBLOCK, 0)
        end = rows.physical + rows.length
        owner = self.volume.label(inode)
        return [Leftovers.of(table.JOURNAL, start, end, owner, clean)]

    # Inodes ---------------------------------------------------------------------------------

    def _inodes(self) -> Leftovers:
        """Runs of free inodes."""
        ext = self.ext
        free = np.zeros((ext.groups, ext.inodes_per_group + 2), np.int8)
        free[:, 1:-1] = ~self._used
        step = np.diff(free, axis=1)
        group, first = np.nonzero(step == 1)
        _, last = np.nonzero(step == -1)
        number = group * ext.inodes_per_group + first + 1
        start = inode_place(ext, number) + self.volume.offset
        count = last - first
        owner = [
            f"<free inode {n}>" if many == 1 else f"<free inodes {n} to {n + many - 1}>"
            for n, many in zip(number.tolist(), count.tolist(), strict=True)
        ]
        return Leftovers.of(table.INODES, start, start + count * ext.inode_size, owner)

    # Folders --------------------------------------------------------------------------------

    def _folders(self) -> list[Leftovers]:
        inodes = self.volume.inodes
        kind = inodes["type"].cat.codes.to_numpy() == TYPES.index("directory")
        flags = inodes["flags"].to_numpy()
        odd = (flags & _ENCRYPTED_FOLDED) == _ENCRYPTED_FOLDED
        number = inodes.index.to_numpy().astype(np.int64)
        kind &= ~odd & ~np.isin(number, list(self.volume.damaged))
        found = self.volume.arrays
        found = found[np.isin(found.inode, number[kind]) & (found.kind == DATA)]
        block, inode, logical = self._blocks(found)
        parts = []
        many = max(1, _AT_ONCE // self.ext.block_size)
        for at in range(0, len(block), many):
            part = slice(at, at + many)
            rows = self.ext.volume.blocks(block[part], self.ext.block_size)
            indexed = (flags[np.searchsorted(number, inode[part])] & _INDEXED) != 0
            row, low, high = gaps(rows, logical[part] == 0, indexed)
            base = block[part][row] * self.ext.block_size + self.volume.offset
            owner = labels(self.volume, inode[part][row])
            parts.append(Leftovers.of(table.DIRECTORY, base + low, base + high, owner))
        return parts

    def _blocks(self, found: Extents) -> tuple[Ints, Ints, Ints]:
        """Every block of extents: its number, inode, and logical place in bytes."""
        size = self.ext.block_size
        count = found.length // size
        which = np.repeat(np.arange(len(found)), count)
        within = np.arange(len(which)) - np.repeat(np.cumsum(count) - count, count)
        block = (found.physical[which] - self.volume.offset) // size + within
        return block, found.inode[which], found.logical[which] + within * size

    # Attribute blocks -----------------------------------------------------------------------

    def _attributes(self) -> list[Leftovers]:
        """Gaps between the entries of attribute blocks and their values."""
        found = self.volume.arrays
        found = found[(found.kind == META) & (found.length == self.ext.block_size)]
        _, first = np.unique(found.physical, return_index=True)
        block = (found.physical[first] - self.volume.offset) // self.ext.block_size
        rows = self.ext.volume.blocks(block, self.ext.block_size)
        magic = np.frombuffer(on_disk.XATTR_MAGIC.to_bytes(4, "little"), np.uint8)
        parts = []
        for at in np.flatnonzero((rows[:, :4] == magic).all(axis=1)).tolist():
            low, high = _free_of(rows[at].tobytes())
            base = int(found.physical[first[at]])
            owner = self.volume.label(int(found.inode[first[at]]))
            parts.append(Leftovers.of(table.ATTRIBUTES, base + low, base + high, owner))
        return parts


def _free_of(area: bytes) -> tuple[Ints, Ints]:
    """The ranges of an attribute block that no entry and no value takes."""
    taken = np.zeros(len(area) + 1, np.bool_)
    taken[:32] = True
    end = 32
    for entry in entries(area, 32, 0):
        end += 16 + (len(entry.name) + 3 & ~3)
        if not entry.holder:  # the hash of a value covers what fills it up to four bytes
            taken[entry.place : entry.place + (entry.size + 3 & ~3)] = True
    taken[32 : end + 4] = True  # the four bytes of zeros that end the list
    if area[end : end + 4] != bytes(4):  # not understood: nothing is free
        taken[:] = True
    edge = np.flatnonzero(np.diff(np.concatenate(([True], taken[:-1], [True])).astype(np.int8)))
    return edge[0::2].astype(np.int64), edge[1::2].astype(np.int64)
