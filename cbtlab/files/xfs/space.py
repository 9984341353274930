"""What XFS has allocated, and where its own structures lie, from the groups' B+trees.

Free is what the tree by block lists.  Everything else is allocated: headers, log,
nodes of trees, blocks set apart for them (AGFL), chunks of inodes, space set
apart for copy on write, and files.  The oracles are ``xfs_db`` (``freesp``) and,
with a reverse mapping tree, the kernel's GETFSMAP.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cbtlab.files.ranges import Ranges
from cbtlab.files.xfs import btree
from cbtlab.files.xfs import layout as on_disk
from cbtlab.files.xfs.btree import Tree, Walked, walk
from cbtlab.files.xfs.log import Log
from cbtlab.files.xfs.superblock import Xfs

Array = npt.NDArray[np.int64]
_CHUNKS_AT_ONCE = 256  # of 64 inodes each
SET_APART = "<set apart for trees>"
STAGED = "<copy-on-write reservation>"


@dataclass(frozen=True)
class Space:
    """Block ranges from the start of the file system.

    ``free`` is free; ``unread`` is allocated and never read (set apart for trees and for copy on
    write); ``start``, ``count`` and ``name`` are the file system's own structures, ``chunks``
    the records of the inode tree with their group.
    """

    free: Ranges
    unread: Ranges
    start: Array
    count: Array
    name: npt.NDArray[np.object_]
    chunks: Walked


def read_space(xfs: Xfs, log: Log) -> Space:
    """Walk the trees of all groups.  Raises InputError on damage."""
    free = _free(xfs)
    chunks = walk(xfs, btree.INODES, xfs.agi["root"], xfs.agi["levels"])
    parts: list[tuple[Any, Any, str]] = [(np.array([log.block]), log.count, "<log>")]
    parts += [(xfs.free_lists, 1, SET_APART)]
    parts += [(free[1].blocks, 1, btree.BY_BLOCK.name), (chunks.blocks, 1, btree.INODES.name)]
    parts += [(_walk(xfs, "by_size", btree.BY_SIZE).blocks, 1, btree.BY_SIZE.name)]
    staged = Ranges.union(np.empty(0, np.int64), np.empty(0, np.int64))
    if xfs.ro_compat & on_disk.RO_FREE_INODES:
        found = walk(xfs, btree.FREE_INODES, xfs.agi["free_root"], xfs.agi["free_levels"])
        parts.append((found.blocks, 1, btree.FREE_INODES.name))
    if xfs.ro_compat & on_disk.RO_REVERSE_MAP:
        found = _walk(xfs, "reverse_map", btree.REVERSE_MAP)
        parts.append((found.blocks, 1, btree.REVERSE_MAP.name))
    if xfs.ro_compat & on_disk.RO_REFLINK:
        found = _walk(xfs, "shares", btree.SHARES)
        parts.append((found.blocks, 1, btree.SHARES.name))
        staged = _staged(xfs, found)
        parts.append((staged.start, staged.length, STAGED))
    start = np.concatenate([place for place, _, _ in parts])
    count = np.concatenate([np.broadcast_to(n, place.shape) for place, n, _ in parts])
    name = np.repeat(
        np.array([name for _, _, name in parts], object), [len(place) for place, _, _ in parts]
    )
    apart = np.ones(len(xfs.free_lists), np.int64)
    unread = Ranges.union(np.append(xfs.free_lists, staged.start), np.append(apart, staged.length))
    return Space(free[0], unread, start, count, name, chunks)


def _walk(xfs: Xfs, name: str, tree: Tree) -> Walked:
    return walk(xfs, tree, xfs.agf[f"{name}_root"], xfs.agf[f"{name}_levels"])


def _free(xfs: Xfs) -> tuple[Ranges, Walked]:
    """The free ranges, which must add up to what the groups' headers say."""
    found = _walk(xfs, "by_block", btree.BY_BLOCK)
    place, count = _places(xfs, found, found.records["start"].astype(np.int64), btree.BY_BLOCK)
    total = np.zeros(xfs.ag_count, np.int64)
    np.add.at(total, found.group, count)
    if (total != xfs.agf["free_blocks"]).any():
        raise xfs.fault(f"the {btree.BY_BLOCK.name} and the number of free blocks differ")
    return Ranges.union(place, count), found


def _staged(xfs: Xfs, found: Walked) -> Ranges:
    """The space that is set apart for copy on write, which the next mount frees."""
    start = found.records["start"].astype(np.int64)
    apart = start >= on_disk.STAGED
    mine = Walked(found.group[apart], found.records[apart], found.blocks)
    return Ranges.union(*_places(xfs, mine, start[apart] - on_disk.STAGED, btree.SHARES))


def _places(xfs: Xfs, found: Walked, start: Array, tree: Tree) -> tuple[Array, Array]:
    """The ranges of records, which must be apart and within their groups."""
    count = found.records["count"].astype(np.int64)
    place, inside = xfs.in_group(found.group, start, count)
    order = np.argsort(place, kind="stable")
    apart = (place[order] + count[order])[:-1] <= place[order][1:]
    if not (inside.all() and apart.all() and (count > 0).all()):
        raise xfs.fault(f"a record of the {tree.name} is damaged")
    return place, count


def used_inodes(xfs: Xfs, chunks: Walked) -> Iterator[tuple[Array, Array]]:
    """Some at a time: the numbers of inodes in use, rising, and the blocks that hold inodes.

    The records must be apart, and add up to what the groups' headers say.
    """
    number = chunks.group << xfs.ag_log + xfs.inode_log
    number = number + chunks.records["start"].astype(np.int64)
    order = np.argsort(number, kind="stable")
    if (np.diff(number[order]) < on_disk.CHUNK_INODES).any():
        raise xfs.fault(f"the records of the {btree.INODES.name} overlap")
    count, free_count = np.zeros((2, xfs.ag_count), np.int64)
    for at in range(0, len(order), _CHUNKS_AT_ONCE):
        some = order[at : at + _CHUNKS_AT_ONCE]
        group, start = chunks.group[some], chunks.records["start"][some].astype(np.int64)
        there, free = _slots(xfs, chunks.records[some])
        np.add.at(count, group, there.sum(axis=1))
        np.add.at(free_count, group, free.sum(axis=1))
        here, slot = np.nonzero(there)
        place, inside = xfs.in_group(group[here], start[here] + slot >> xfs.inode_log)
        if not inside.all():
            raise xfs.fault(f"a record of the {btree.INODES.name} is damaged")
        here, slot = np.nonzero(there & ~free)
        yield number[some][here] + slot, np.unique(place)
    if (count != xfs.agi["count"]).any() or (free_count != xfs.agi["free_count"]).any():
        raise xfs.fault(f"the {btree.INODES.name} and the number of inodes differ")


Slots = npt.NDArray[np.bool_]  # one row a chunk, one column an inode


def _slots(xfs: Xfs, records: Any) -> tuple[Slots, Slots]:
    """Which inodes of chunks are there, and which of those are free."""
    slot = np.arange(on_disk.CHUNK_INODES, dtype=np.uint64)
    free = (records["free"].astype(np.uint64)[:, None] >> slot & np.uint64(1)) != 0
    there = np.ones(free.shape, np.bool_)
    if xfs.has_sparse_inodes:
        unit = slot // np.uint64(on_disk.INODES_PER_HOLE)
        there = (records["holes"].astype(np.uint64)[:, None] >> unit & np.uint64(1)) == 0
    return there, free & there
