"""What btrfs has allocated: extent items, block groups and device extents, one against the other.

The extent tree lists every allocated extent and tree block; the block groups count
them, and the device tree says which places of the device the chunks take.  The
three must agree, or nothing is mapped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from cbtlab.files.btrfs import layout as on_disk
from cbtlab.files.btrfs.chunks import Chunk, Chunks, parse_chunk
from cbtlab.files.btrfs.superblock import Btrfs
from cbtlab.files.btrfs.tree import Leaves
from cbtlab.files.extents import Array


@dataclass(frozen=True)
class Allocated:
    """Allocated extents by rising logical address; ``tree`` marks tree blocks."""

    start: Array
    length: Array
    tree: npt.NDArray[np.bool_]
    refs: Array

    def row_of(self, start: Array, length: Array, tree: bool) -> Array:
        """The extent that is exactly this, or -1."""
        if not len(self.start):
            return np.full(len(start), -1, np.int64)
        at = np.minimum(np.searchsorted(self.start, start), len(self.start) - 1)
        same = (self.start[at] == start) & (self.length[at] == length) & (self.tree[at] == tree)
        return np.where(same, at, -1)


@dataclass
class ChunkItems:
    """Collects the chunk items of the chunk tree."""

    btrfs: Btrfs
    chunks: list[Chunk] = field(default_factory=list)

    def add(self, leaves: Leaves) -> None:
        """Take the items of some leaves.  Raises InputError for a chunk that cannot be mapped."""
        for row in np.flatnonzero(leaves.type == on_disk.CHUNK_ITEM_KEY).tolist():
            logical = int(leaves.offset[row])
            self.chunks.append(parse_chunk(self.btrfs, logical, leaves.item(row)))
        for row in np.flatnonzero(leaves.type == on_disk.DEV_ITEM_KEY).tolist():
            if int(leaves.offset[row]) != self.btrfs.devid:
                raise self.btrfs.fault(
                    "lies on more than one device", "only one on a single device is mapped"
                )

    def all(self) -> Chunks:
        """The chunks.  Raises InputError where they cannot be so."""
        return Chunks.of(self.btrfs, self.chunks)


@dataclass
class Space:
    """Collects allocated extents, block groups and device extents from the leaves of all trees."""

    btrfs: Btrfs
    chunks: Chunks
    _extents: list[tuple[Array, Array, npt.NDArray[np.bool_], Array]] = field(default_factory=list)
    _groups: list[tuple[Array, Array, Array]] = field(default_factory=list)
    _device: list[tuple[Array, Array, Array]] = field(default_factory=list)

    def add(self, leaves: Leaves, numbers: npt.NDArray[np.uint64]) -> None:
        """Take the items of some leaves; ``numbers`` has the tree's number for each root."""
        own = numbers == np.uint64(on_disk.EXTENT_TREE)
        groups = numbers == np.uint64(
            on_disk.BLOCK_GROUP_TREE
            if self.btrfs.compat_ro & on_disk.COMPAT_RO_BLOCK_GROUP_TREE
            else on_disk.EXTENT_TREE
        )
        kind = leaves.type
        items = (kind == on_disk.EXTENT_ITEM_KEY) | (kind == on_disk.METADATA_ITEM_KEY)
        rows, _ = leaves.of_trees(np.flatnonzero(items), own)
        self._extent_items(leaves, rows)
        rows, _ = leaves.of_trees(np.flatnonzero(kind == on_disk.BLOCK_GROUP_ITEM_KEY), groups)
        self._block_groups(leaves, rows)
        device = numbers == np.uint64(on_disk.DEV_TREE)
        rows, _ = leaves.of_trees(np.flatnonzero(kind == on_disk.DEV_EXTENT_KEY), device)
        self._device_extents(leaves, rows)

    def _extent_items(self, leaves: Leaves, rows: Array) -> None:
        self._long_enough(leaves, rows, on_disk.EXTENT_ITEM.itemsize, "an extent item")
        item = leaves.records(rows, on_disk.EXTENT_ITEM)
        short = leaves.type[rows] == on_disk.METADATA_ITEM_KEY
        length = np.where(short, self.btrfs.nodesize, _signed(leaves.offset[rows]))
        flags = item["flags"].astype(np.uint64)
        tree = (flags & np.uint64(on_disk.EXTENT_TREE_BLOCK_FLAG)) != 0
        data = (flags & np.uint64(on_disk.EXTENT_DATA_FLAG)) != 0
        bad = (tree == data) | (short & ~tree) | (tree & (length != self.btrfs.nodesize))
        if bad.any():
            raise self.btrfs.fault(f"the extent item {_first(leaves, rows, bad)} is damaged")
        start = _signed(leaves.objectid[rows])
        self._extents.append((start, length, tree, _signed(item["refs"])))

    def _block_groups(self, leaves: Leaves, rows: Array) -> None:
        self._long_enough(leaves, rows, on_disk.BLOCK_GROUP_ITEM.itemsize, "a block group item")
        item = leaves.records(rows, on_disk.BLOCK_GROUP_ITEM)
        columns = leaves.objectid[rows], leaves.offset[rows], item["used"]
        self._groups.append((_signed(columns[0]), _signed(columns[1]), _signed(columns[2])))

    def _device_extents(self, leaves: Leaves, rows: Array) -> None:
        self._long_enough(leaves, rows, on_disk.DEV_EXTENT.itemsize, "a device extent")
        item = leaves.records(rows, on_disk.DEV_EXTENT)
        columns = leaves.offset[rows], item["length"], item["chunk_offset"]
        self._device.append((_signed(columns[0]), _signed(columns[1]), _signed(columns[2])))

    def _long_enough(self, leaves: Leaves, rows: Array, size: int, what: str) -> None:
        if (leaves.size[rows] < size).any():
            raise self.btrfs.fault(f"{what} is damaged")

    # All together ---------------------------------------------------------------------------

    def allocated(self) -> Allocated:
        """What is allocated.  Raises InputError where the trees contradict each other."""
        start, length, tree, refs = _joined(self._extents, 4)
        order = np.argsort(start, kind="stable")
        found = Allocated(start[order], length[order], tree[order].astype(np.bool_), refs[order])
        bad = self.chunks.row_of(found.start, found.length) < 0
        bad |= (found.length <= 0) | (found.start % self.btrfs.sectorsize != 0)
        bad |= found.length % self.btrfs.sectorsize != 0
        bad[1:] |= found.start[1:] < (found.start + found.length)[:-1]
        if bad.any():
            raise self.btrfs.fault(f"the extent item {int(found.start[bad][0])} is damaged")
        self._check_groups(found)
        self._check_device()
        return found

    def _check_groups(self, found: Allocated) -> None:
        start, length, used = _joined(self._groups, 3)
        order = np.argsort(start, kind="stable")
        start, length, used = start[order], length[order], used[order]
        same = np.array_equal(start, self.chunks.start)
        if not same or not np.array_equal(length, self.chunks.length):
            raise self.btrfs.fault("its block groups are not its chunks")
        row = self.chunks.row_of(found.start, found.length)
        counted = np.zeros(len(start), np.int64)
        np.add.at(counted, row, found.length)
        bad = counted != used
        if bad.any():
            at = int(np.flatnonzero(bad)[0])
            raise self.btrfs.fault(
                f"the block group {int(start[at])} counts {int(used[at])} bytes in use, and its "
                f"extents have {int(counted[at])}"
            )
        if int(used.sum()) != int(self.btrfs.superblock["bytes_used"]):
            raise self.btrfs.fault("the superblock counts other bytes in use than the block groups")

    def _check_device(self) -> None:
        place, length, chunk = _joined(self._device, 3)
        mine, many, row = self.chunks.stripes()
        order, own = np.argsort(place, kind="stable"), np.argsort(mine, kind="stable")
        pairs = (
            (place[order], mine[own]),
            (length[order], many[own]),
            (chunk[order], self.chunks.start[row][own]),
        )
        if not all(np.array_equal(one, other) for one, other in pairs):
            raise self.btrfs.fault("its device extents are not its chunks")


def _joined(parts: Sequence[tuple[npt.NDArray[Any], ...]], columns: int) -> list[Array]:
    empty = np.empty(0, np.int64)
    return [np.concatenate([empty, *(part[n] for part in parts)]) for n in range(columns)]


def _signed(values: npt.NDArray[np.uint64]) -> Array:
    """As numbers with a sign; what is larger than any that can be becomes -1."""
    large = values >= np.uint64(1 << 62)
    return np.where(large, np.uint64(0), values).astype(np.int64) - large


def _first(leaves: Leaves, rows: Array, bad: npt.NDArray[np.bool_]) -> int:
    return int(leaves.objectid[rows[bad]][0])
