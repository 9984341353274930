"""The B+trees of all allocation groups, each level of all groups read together.

A block that serves twice as a node is damage; that, and the number of levels,
bounds the work on a hostile image.
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

_AT_ONCE = 8 << 20  # bytes of nodes held together
Array = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Tree:
    """A kind of tree: its name, magic numbers of versions 4 and 5, records, and key bytes."""

    name: str
    magic: tuple[bytes, bytes]
    record: np.dtype[Any]
    key: int


BY_BLOCK = Tree("<free space tree, by block>", (b"ABTB", b"AB3B"), on_disk.FREE, 8)
BY_SIZE = Tree("<free space tree, by size>", (b"ABTC", b"AB3C"), on_disk.FREE, 8)
INODES = Tree("<inode tree>", (b"IABT", b"IAB3"), on_disk.CHUNK, 4)
FREE_INODES = Tree("<free inode tree>", (b"FIBT", b"FIB3"), on_disk.CHUNK, 4)
REVERSE_MAP = Tree("<reverse mapping tree>", (b"", b"RMB3"), on_disk.REVERSE, 40)
SHARES = Tree("<reference count tree>", (b"", b"R3FC"), on_disk.SHARE, 4)


@dataclass(frozen=True)
class Walked:
    """The records of a tree of all groups, by group, with each record's group; its blocks."""

    group: Array
    records: Any
    blocks: Array


def walk(xfs: Xfs, tree: Tree, root: Any, levels: Any) -> Walked:
    """Read ``tree`` of every group from its ``root`` down.  Raises InputError on damage."""
    group = np.arange(xfs.ag_count, dtype=np.int64)
    level = np.asarray(levels).astype(np.int64) - 1
    if ((level < 0) | (level >= on_disk.MOST_LEVELS)).any():
        raise xfs.fault(f"the number of levels of the {tree.name} is impossible")
    block = np.asarray(root).astype(np.int64)
    groups, leaves, blocks = [], [], []
    while len(block):
        place, inside = xfs.in_group(group, block)
        if not (inside.all() and xfs.claim(place[inside]).all()):
            raise xfs.fault(f"the {tree.name} points to a wrong block")
        blocks.append(place)
        below: list[tuple[Array, Array, Array]] = []
        most = max(1, _AT_ONCE // xfs.block_size)
        for at in range(0, len(place), most):
            part = slice(at, at + most)
            node = _read(xfs, tree, place[part], group[part], level[part])
            which, records = _records(xfs, tree, *node, level[part] == 0)
            groups.append(group[part][which])
            leaves.append(records)
            which, pointer = _pointers(xfs, tree, *node, level[part] > 0)
            below.append((group[part][which], pointer, level[part][which] - 1))
        group, block, level = (np.concatenate([part[n] for part in below]) for n in range(3))
    owner, records = np.concatenate(groups), np.concatenate(leaves)
    order = np.argsort(owner, kind="stable")
    return Walked(owner[order], records[order], np.concatenate(blocks))


Node = tuple[npt.NDArray[np.uint8], Array]  # rows of bytes, and the number of entries of each


def _read(xfs: Xfs, tree: Tree, place: Array, group: Array, level: Array) -> Node:
    """Nodes, which must be what they are taken for."""
    rows = xfs.volume.blocks(place, xfs.block_size)
    head = structure(rows, on_disk.SHORT_NODE)
    count = head["count"].astype(np.int64)
    good = (head["magic"] == tree.magic[xfs.has_checksums]) & (head["level"] == level)
    good &= count <= np.where(level == 0, *_room(xfs, tree))
    good &= (count > 0) | (level == 0)
    if xfs.has_checksums:
        good &= (head["owner"] == group) & xfs.is_ours(head)
        good &= head["place"].astype(np.int64) == place * (xfs.block_size // on_disk.SECTOR)
    if not good.all():
        raise xfs.fault(f"a block of the {tree.name} is damaged")
    checksum: int = on_disk.SHORT_NODE.fields["checksum"][1]  # type: ignore[index]
    if xfs.has_checksums and not right(rows, checksum).all():
        raise xfs.fault(f"a block of the {tree.name} has a wrong checksum")
    return rows, count


def _head(xfs: Xfs) -> int:
    return on_disk.SHORT_NODE.itemsize if xfs.has_checksums else on_disk.SHORT_NODE_4


def _room(xfs: Xfs, tree: Tree) -> tuple[int, int]:
    """How many records a leaf has room for, and how many pointers a node above."""
    bytes_ = xfs.block_size - _head(xfs)
    return bytes_ // tree.record.itemsize, bytes_ // (tree.key + 4)


def _records(
    xfs: Xfs, tree: Tree, rows: npt.NDArray[np.uint8], count: Array, wanted: Any
) -> tuple[Array, Any]:
    room, head = _room(xfs, tree)[0], _head(xfs)
    rows, count, which = rows[wanted], count[wanted], np.flatnonzero(wanted)
    here, slot = np.nonzero(np.arange(room) < count[:, None])
    table = np.ascontiguousarray(rows[:, head : head + room * tree.record.itemsize])
    return which[here], table.view(tree.record)[here, slot]


def _pointers(
    xfs: Xfs, tree: Tree, rows: npt.NDArray[np.uint8], count: Array, wanted: Any
) -> tuple[Array, Array]:
    room = _room(xfs, tree)[1]
    head = _head(xfs) + room * tree.key
    rows, count, which = rows[wanted], count[wanted], np.flatnonzero(wanted)
    here, slot = np.nonzero(np.arange(room) < count[:, None])
    table = np.ascontiguousarray(rows[:, head : head + room * 4])
    return which[here], table.view(">u4")[here, slot].astype(np.int64)
