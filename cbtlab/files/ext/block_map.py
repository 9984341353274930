"""Where the bytes of every inode lie: extent trees and the block pointers of ext2 and ext3.

The first four extents of every inode are read for all inodes at once; deeper
trees and pointer blocks are followed level by level, each level of all inodes
together.  A block that serves twice as a node is damage; that, and the number
of levels, bounds the work on a hostile image.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from cbtlab.files.checksum import crc32c
from cbtlab.files.ext import layout as on_disk
from cbtlab.files.ext.inodes import Inodes
from cbtlab.files.ext.superblock import Ext
from cbtlab.files.extents import DATA, META, NOWHERE, UNWRITTEN, Array, Extents
from cbtlab.files.volume import structure

_NODES_AT_ONCE = 2048
Bytes = npt.NDArray[np.uint8]
Level = tuple[Array, Array, Array]  # of nodes: row of the inode, block, depth or logical start


@dataclass
class Mapper:
    """Collects the extents of inodes, in blocks; give it every part of `read_inodes` once.

    ``damaged`` says of an inode what is wrong with its map; what could be read of it is kept.
    """

    ext: Ext
    parts: list[Extents] = field(default_factory=list)
    damaged: dict[int, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._claimed = np.zeros(self.ext.blocks // 8 + 1, np.uint8)

    def add(self, inodes: Inodes, mapped: npt.NDArray[np.bool_]) -> None:
        """Follow the maps of the inodes in ``mapped``, and the attribute blocks of all."""
        self._inodes = inodes
        self._blame(np.flatnonzero(inodes.damaged), "its inode has a wrong checksum")
        negative = (inodes.fields["size_hi"] >> 31 != 0) & (inodes.type == on_disk.TYPE_REGULAR)
        self._blame(np.flatnonzero(negative), "its size is impossible")
        tree = inodes.has(on_disk.FL_EXTENTS)
        self._trees(np.flatnonzero(mapped & tree))
        self._pointers(np.flatnonzero(mapped & ~tree))
        self._attribute_blocks()

    def extents(self) -> Extents:
        """Everything collected, `ordered` and `merged`, in blocks."""
        found = Extents.join(self.parts).ordered().merged()
        for inode in found.overlapping().tolist():
            self.damaged.setdefault(inode, "its map names one place twice")
        return found

    # Extent trees ---------------------------------------------------------------------------

    def _trees(self, rows: Array) -> None:
        root = np.ascontiguousarray(self._inodes.raw[rows][:, on_disk.I_BLOCK])
        level = self._node(rows, root, None)
        while len(level[0]):
            rows, blocks, depth = self._claim(level)
            below: list[Level] = []
            for at in range(0, len(rows), _NODES_AT_ONCE):
                part = slice(at, at + _NODES_AT_ONCE)
                node = self.ext.volume.blocks(blocks[part], self.ext.block_size)
                good = self._checksums(rows[part], node)
                below.append(self._node(rows[part][good], node[good], depth[part][good]))
            level = _join(below)

    def _node(self, rows: Array, node: Bytes, depth: Array | None) -> Level:
        """Keep the extents of leaf nodes; return the nodes that index nodes point to."""
        header = structure(node, on_disk.EXTENT_HEADER)
        room = (node.shape[1] - 12) // 12
        found = header["depth"].astype(np.int64)
        good = (header["magic"] == on_disk.EXTENT_MAGIC) & (header["entries"] <= room)
        good &= found <= on_disk.EXTENT_MAX_DEPTH if depth is None else found == depth
        self._blame(rows[~good], "its extent tree is damaged")
        entries = np.where(good, header["entries"], 0)
        table = np.ascontiguousarray(node[:, 12 : 12 + 12 * room])
        here, slot = np.nonzero(np.arange(room) < entries[:, None])
        leaf = found[here] == 0
        values: Any = table.view(on_disk.EXTENT)[here[leaf], slot[leaf]]
        length = values["len"].astype(np.int64)
        unwritten = length > on_disk.EXTENT_MAX_WRITTEN
        self._keep(
            rows[here[leaf]],
            np.where(unwritten, UNWRITTEN, DATA),
            values["block"].astype(np.int64),
            values["start_lo"].astype(np.int64) | values["start_hi"].astype(np.int64) << 32,
            np.where(unwritten, length - on_disk.EXTENT_MAX_WRITTEN, length),
        )
        points: Any = table.view(on_disk.EXTENT_INDEX)[here[~leaf], slot[~leaf]]
        block = points["leaf_lo"].astype(np.int64) | points["leaf_hi"].astype(np.int64) << 32
        return rows[here[~leaf]], block, found[here[~leaf]] - 1

    def _checksums(self, rows: Array, node: Bytes) -> npt.NDArray[np.bool_]:
        if not self.ext.has_checksums:
            return np.ones(len(rows), np.bool_)
        tail = 12 + (self.ext.block_size - 12) // 12 * 12
        found = crc32c(node[:, :tail], self._inodes.seed[rows])
        stored = np.ascontiguousarray(node[:, tail : tail + 4]).view("<u4")[:, 0]
        good = np.asarray(found == stored, np.bool_)
        self._blame(rows[~good], "a node of its extent tree has a wrong checksum")
        return good

    # Block pointers -------------------------------------------------------------------------

    def _pointers(self, rows: Array) -> None:
        pointer = np.ascontiguousarray(self._inodes.raw[rows][:, on_disk.I_BLOCK]).view("<u4")
        self._direct(rows, np.zeros(len(rows), np.int64), pointer[:, :12])
        each = self.ext.block_size // 4
        start = 12
        for depth in (1, 2, 3):
            block = pointer[:, 11 + depth].astype(np.int64)
            used = block != 0
            logical = np.full(int(used.sum()), start, np.int64)
            self._pointer_blocks((rows[used], block[used], logical), depth)
            start += each**depth

    def _pointer_blocks(self, level: Level, depth: int) -> None:
        """Follow pointer blocks ``depth`` levels above the data, some at a time."""
        rows, blocks, logical = self._claim(level)
        each = self.ext.block_size // 4
        for at in range(0, len(rows), _NODES_AT_ONCE):
            part = slice(at, at + _NODES_AT_ONCE)
            pointer = self.ext.volume.blocks(blocks[part], self.ext.block_size).view("<u4")
            if depth == 1:
                self._direct(rows[part], logical[part], pointer)
                continue
            here, slot = np.nonzero(pointer)
            below = pointer[here, slot].astype(np.int64)
            start = logical[part][here] + slot * each ** (depth - 1)
            self._pointer_blocks((rows[part][here], below, start), depth - 1)

    def _direct(self, rows: Array, logical: Array, pointer: npt.NDArray[np.uint32]) -> None:
        here, slot = np.nonzero(pointer)
        start, block = logical[here] + slot, pointer[here, slot].astype(np.int64)
        joins = (np.diff(here) == 0) & (np.diff(start) == 1) & (np.diff(block) == 1)
        first = np.flatnonzero(np.concatenate(([True], ~joins)))[: len(here)]
        length = np.diff(np.concatenate((first, [len(here)])))
        self._keep(rows[here[first]], DATA, start[first], block[first], length)

    # What both share ------------------------------------------------------------------------

    def _attribute_blocks(self) -> None:
        fields = self._inodes.fields
        block = fields["file_acl"].astype(np.int64) | fields["file_acl_hi"].astype(np.int64) << 32
        rows = np.flatnonzero(block)
        self._keep(rows, META, NOWHERE, block[rows], 1)

    def _claim(self, level: Level) -> Level:
        """The nodes that lie in the file system and were not met before; they become ``meta``."""
        rows, blocks, extra = level
        good = (blocks >= self.ext.first_block) & (blocks < self.ext.blocks)
        once = np.zeros(len(blocks), np.bool_)
        once[np.unique(blocks, return_index=True)[1]] = True
        at = np.where(good, blocks, 0)
        bit = np.left_shift(1, at & 7).astype(np.uint8)
        good &= once & (self._claimed[at >> 3] & bit == 0)
        np.bitwise_or.at(self._claimed, at[good] >> 3, bit[good])
        self._blame(rows[~good], "its map points to a wrong block")
        rows, blocks, extra = rows[good], blocks[good], extra[good]
        self._keep(rows, META, NOWHERE, blocks, 1)
        return rows, blocks, extra

    def _keep(self, rows: Array, kind: Any, logical: Any, physical: Any, length: Any) -> None:
        found = Extents.of(self._inodes.number[rows], kind, logical, physical, length)
        good = (found.physical >= self.ext.first_block) & (found.length > 0)
        good &= found.physical + found.length <= self.ext.blocks
        if not good.all():
            self._blame(rows[~good], "its map points to a wrong block")
            found = found[good]
        self.parts.append(found)

    def _blame(self, rows: Array, fault: str) -> None:
        for inode in self._inodes.number[rows].tolist():
            self.damaged.setdefault(inode, fault)


def _join(levels: list[Level]) -> Level:
    empty = np.empty(0, np.int64)
    if not levels:
        return empty, empty, empty
    first, second, third = (np.concatenate([lv[n] for lv in levels]) for n in range(3))
    return first, second, third
