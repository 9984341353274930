"""Where the bytes of every inode lie: the extents of its data fork and of its attribute fork.

A fork is a part of the inode.  It holds the content itself (local), a list of
extents, or the root of a B+tree of extents.  Lists and roots of all inodes are
read at once, and trees level by level, each level of all inodes together.  A
block that serves twice as a node is damage; that, and the number of levels,
bounds the work on a hostile image.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cbtlab.files.extents import DATA, META, NOWHERE, UNWRITTEN, Array, Extents
from cbtlab.files.volume import structure
from cbtlab.files.xfs import layout as on_disk
from cbtlab.files.xfs.checksum import right
from cbtlab.files.xfs.inodes import Inodes, extent_counts
from cbtlab.files.xfs.superblock import Xfs

_AT_ONCE = 8 << 20  # bytes of nodes held together
_RECORD = 16  # bytes of an extent
DATA_FORK, ATTRIBUTE_FORK = 0, 1
Bytes = npt.NDArray[np.uint8]
Level = tuple[Array, Array, Array, Array]  # of nodes: row of the inode, fork, block, level
WRONG_BLOCK = "its map points to a wrong block"


@dataclass(frozen=True)
class Fork:
    """One fork of some inodes: their rows, where it begins in the inode, and its bytes there."""

    which: int
    rows: Array
    start: Array
    room: Array
    format: Array


def data_forks(xfs: Xfs, inodes: Inodes, rows: Array) -> Fork:
    """The data forks of the inodes in ``rows``."""
    fields = inodes.fields[rows]
    offset = fields["fork_offset"].astype(np.int64) * 8
    whole = xfs.inode_size - xfs.core
    room = np.where(offset == 0, whole, np.minimum(offset, whole))
    start = np.full(len(rows), xfs.core)
    return Fork(DATA_FORK, rows, start, room, fields["format"].astype(np.int64))


def attribute_forks(xfs: Xfs, inodes: Inodes) -> Fork:
    """The attribute forks of those inodes that have one."""
    rows = np.flatnonzero(inodes.sound & (inodes.fields["fork_offset"] != 0))
    fields = inodes.fields[rows]
    start = xfs.core + fields["fork_offset"].astype(np.int64) * 8
    start = np.minimum(start, xfs.inode_size)
    return Fork(
        ATTRIBUTE_FORK,
        rows,
        start,
        xfs.inode_size - start,
        fields["attribute_format"].astype(np.int64),
    )


class Mapper:
    """Collects the extents of inodes, in blocks; give it every part of the inodes once.

    ``damaged`` says of an inode what is wrong with its map; what could be read of it is kept.
    With ``attributes`` it follows attribute forks alone, keeps the logical places in them, and
    may meet blocks again that another Mapper met.
    """

    def __init__(self, xfs: Xfs, *, attributes: bool = False) -> None:
        self.xfs, self._alone = xfs, attributes
        self.parts: list[Extents] = []
        self.damaged: dict[int, str] = {}
        head = on_disk.LONG_NODE.itemsize if xfs.has_checksums else on_disk.LONG_NODE_4
        self._head, self._room = head, (xfs.block_size - head) // _RECORD

    def add(self, inodes: Inodes) -> None:
        """Follow the forks of these inodes."""
        self._inodes = inodes
        self._found = np.zeros((2, len(inodes)), np.int64)  # extents of each fork
        self._blocks = np.zeros(len(inodes), np.int64)
        self._fork(attribute_forks(self.xfs, inodes))
        if self._alone:
            return
        fields = inodes.fields
        self._blame(~inodes.sound, "its inode is damaged")
        self._blame(inodes.sound & ~inodes.right, "its inode has a wrong checksum")
        self._blame(inodes.sound & (fields["size"] < 0), "its size is impossible")
        distant = (fields["flags"] & on_disk.FLAG_REALTIME) != 0
        distant &= inodes.sound & (inodes.type == on_disk.TYPE_REGULAR)
        self._blame(distant, "it lies on a realtime device, and there is none")
        mapped = (on_disk.TYPE_REGULAR, on_disk.TYPE_DIRECTORY, on_disk.TYPE_SYMLINK)
        rows = np.flatnonzero(inodes.sound & ~distant & np.isin(inodes.type, mapped))
        self._fork(data_forks(self.xfs, inodes, rows))
        self._compare(rows)
        others = np.isin(inodes.type, on_disk.TYPES_OTHER)
        others &= fields["format"] == on_disk.FORMAT_DEVICE
        wrong = inodes.sound & ~np.isin(inodes.type, mapped) & ~others
        self._blame(wrong, "its inode has an impossible type or format")

    def extents(self) -> Extents:
        """Everything collected, `ordered` and `merged`, in blocks."""
        found = Extents.join(self.parts).ordered().merged()
        for inode in found.overlapping().tolist():
            self.damaged.setdefault(inode, "its map names one place twice")
        return found

    def _fork(self, fork: Fork) -> None:
        kind = self._inodes.type[fork.rows]
        local = fork.format == on_disk.FORMAT_LOCAL
        listed = fork.format == on_disk.FORMAT_EXTENTS
        tree = fork.format == on_disk.FORMAT_TREE
        wrong = ~(local | listed | tree)
        if fork.which == DATA_FORK:
            wrong |= local & (kind == on_disk.TYPE_REGULAR)
            wrong |= local & (self._inodes.size[fork.rows] > fork.room)
        self._blame(fork.rows[wrong], "its inode has an impossible format")
        self._list(fork, np.flatnonzero(listed))
        self._root(fork, np.flatnonzero(tree))

    # Lists of extents in the inode ------------------------------------------------------------

    def _list(self, fork: Fork, at: Array) -> None:
        count = extent_counts(self._inodes)[fork.which][fork.rows[at]]
        good = count * _RECORD <= fork.room[at]
        self._blame(fork.rows[at[~good]], "its inode has more extents than room")
        at, count = at[good & (count > 0)], count[good & (count > 0)]
        if not len(at):
            return
        most = int(count.max())
        place = fork.start[at][:, None] + np.arange(most * _RECORD)
        here, slot = np.nonzero(np.arange(most) < count[:, None])
        place = np.minimum(place, self.xfs.inode_size - 1)
        table = self._inodes.raw[fork.rows[at][:, None], place].view(">u8")
        table = table.reshape(len(at), most, 2)[here, slot]
        self._keep(fork.rows[at][here], np.full(len(here), fork.which), table)

    # B+trees ----------------------------------------------------------------------------------

    def _root(self, fork: Fork, at: Array) -> None:
        """Roots lie in the inode: level and number of entries, keys, and pointers."""
        rows, start = fork.rows[at], fork.start[at]
        room = np.maximum(fork.room[at] - 4, 0) // _RECORD
        head = (
            self._inodes.raw[
                rows[:, None], np.minimum(start[:, None] + np.arange(4), self.xfs.inode_size - 1)
            ]
            .view(">u2")
            .astype(np.int64)
        )
        level, count = head[:, 0], head[:, 1]
        good = (level > 0) & (level < on_disk.MOST_LEVELS) & (count > 0) & (count <= room)
        self._blame(rows[~good], "the root of its extents is damaged")
        rows, level, count = rows[good], level[good], count[good]
        first = start[good] + 4 + 8 * room[good]
        most = int(count.max()) if len(count) else 0
        here, slot = np.nonzero(np.arange(most) < count[:, None])
        place = (first[here] + 8 * slot)[:, None] + np.arange(8)
        block = self._inodes.raw[rows[here][:, None], place].view(">u8")[:, 0]
        which = np.full(len(here), fork.which)
        below = (rows[here], which, _signed(block), level[here] - 1)
        while len(below[0]):
            below = self._level(*below)

    def _level(self, rows: Array, which: Array, stored: Array, level: Array) -> Level:
        """Keep the extents of leaves, and return the nodes that the others point to."""
        block, good = self.xfs.linear(stored)
        good &= stored >= 0
        first = np.zeros(len(block), np.bool_)
        if self._alone:
            first[np.unique(block, return_index=True)[1]] = True
        else:
            first[good] = self.xfs.claim(block[good])
        self._blame(rows[~(good & first)], WRONG_BLOCK)
        keep = good & first
        rows, which, block, level = rows[keep], which[keep], block[keep], level[keep]
        self._own(rows, block, 1)
        below: list[Level] = []
        most = max(1, _AT_ONCE // self.xfs.block_size)
        for at in range(0, len(rows), most):
            part = slice(at, at + most)
            below.append(self._nodes(rows[part], which[part], block[part], level[part]))
        return _join(below)

    def _nodes(self, rows: Array, which: Array, block: Array, level: Array) -> Level:
        xfs = self.xfs
        node = xfs.volume.blocks(block, xfs.block_size)
        head = structure(node, on_disk.LONG_NODE)
        magic = (b"BMAP", b"BMA3")[xfs.has_checksums]
        count = head["count"].astype(np.int64)
        good = (head["magic"] == magic) & (head["level"] == level)
        good &= (count > 0) & (count <= self._room)
        if xfs.has_checksums:
            checksum: int = on_disk.LONG_NODE.fields["checksum"][1]  # type: ignore[index]
            good &= xfs.is_ours(head) & right(node, checksum)
            good &= head["owner"] == self._inodes.number[rows].astype(np.uint64)
            good &= head["place"] == (block * (xfs.block_size // on_disk.SECTOR)).astype(np.uint64)
        self._blame(rows[~good], "a block of its extents is damaged")
        rows, which, level = rows[good], which[good], level[good]
        node, count = node[good], count[good]
        here, slot = np.nonzero(np.arange(self._room) < count[:, None])
        leaf = level[here] == 0
        end = self._head + self._room * _RECORD
        table = np.ascontiguousarray(node[:, self._head : end]).view(">u8")
        records = table.reshape(len(node), self._room, 2)[here[leaf], slot[leaf]]
        self._keep(rows[here[leaf]], which[here[leaf]], records)
        here, slot = here[~leaf], slot[~leaf]
        pointer = _signed(table[here, self._room + slot])  # after as many keys as there is room
        return rows[here], which[here], pointer, level[here] - 1

    # Extents ----------------------------------------------------------------------------------

    def _keep(self, rows: Array, which: Array, records: npt.NDArray[Any]) -> None:
        """Keep records of extents: 1 bit unwritten, 54 logical, 52 physical, 21 length."""
        high, low = records[:, 0].astype(np.uint64), records[:, 1].astype(np.uint64)
        unwritten = (high >> np.uint64(63)) != 0
        logical = _signed(high >> np.uint64(9) & np.uint64((1 << 54) - 1))
        stored = _signed((high & np.uint64(0x1FF)) << np.uint64(43) | low >> np.uint64(21))
        length = _signed(low & np.uint64(0x1FFFFF))
        np.add.at(self._found, (which, rows), 1)
        physical, good = self.xfs.linear(stored, length)
        good &= (length > 0) & (logical + length < (1 << 62) // self.xfs.block_size)
        self._blame(rows[~good], WRONG_BLOCK)
        rows, which, unwritten = rows[good], which[good], unwritten[good]
        logical, physical, length = logical[good], physical[good], length[good]
        np.add.at(self._blocks, rows, length)
        attribute = which == ATTRIBUTE_FORK
        leaves = self._inodes.type[rows] == on_disk.TYPE_DIRECTORY
        leaves &= logical >= on_disk.FOLDER_LEAVES // self.xfs.block_size
        kind = np.where(unwritten, UNWRITTEN, DATA)
        kind = np.where(attribute | leaves, META, kind)
        if not self._alone:
            logical = np.where(attribute | leaves, NOWHERE, logical)
        inode = self._inodes.number[rows]
        self.parts.append(Extents.of(inode, kind, logical, physical, length))

    def _own(self, rows: Array, block: Array, count: int) -> None:
        """Blocks of B+trees belong to the inode."""
        np.add.at(self._blocks, rows, count)
        if not self._alone:
            inode = self._inodes.number[rows]
            self.parts.append(Extents.of(inode, META, NOWHERE, block, count))

    def _compare(self, rows: Array) -> None:
        """What was found must be as much as the inodes say."""
        said = extent_counts(self._inodes)
        wrong = self._blocks[rows] != self._inodes.fields["blocks"][rows]
        for which in (DATA_FORK, ATTRIBUTE_FORK):
            mine = said[which][rows]
            if which == DATA_FORK:
                local = self._inodes.fields["format"][rows] == on_disk.FORMAT_LOCAL
                mine = np.where(local, 0, mine)
            wrong |= self._found[which][rows] != mine
        self._blame(rows[wrong], "it has not as many extents or blocks as its inode says")

    def _blame(self, which: npt.NDArray[Any], fault: str) -> None:
        for inode in self._inodes.number[which].tolist():
            self.damaged.setdefault(inode, fault)


def _signed(values: npt.NDArray[Any]) -> Array:
    """Unsigned numbers, those above 2^62 as that: far beyond any volume."""
    return np.minimum(values.astype(np.uint64), np.uint64(1 << 62)).astype(np.int64)


def _join(levels: list[Level]) -> Level:
    empty = np.empty(0, np.int64)
    if not levels:
        return empty, empty, empty, empty
    first, second, third, fourth = (np.concatenate([lv[n] for lv in levels]) for n in range(4))
    return first, second, third, fourth
