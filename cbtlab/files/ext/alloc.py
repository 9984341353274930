"""What ext2, ext3 and ext4 have allocated, and where their own structures lie.

Allocation comes from the block bitmaps of the groups; a group whose bitmap was
never written (``BLOCK_UNINIT``) has allocated its own structures alone.  The
oracle is ``dumpe2fs``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from bitarray import bitarray

from cbtlab.files.ext import layout as on_disk
from cbtlab.files.ext.superblock import Ext
from cbtlab.files.ranges import Ranges


@dataclass(frozen=True)
class Structures:
    """The file system's own structures: block ranges, and the name of each."""

    start: npt.NDArray[np.int64]
    count: npt.NDArray[np.int64]
    name: npt.NDArray[np.int64]  # index into NAMES

    NAMES = (
        "<superblock>",
        "<group descriptors>",
        "<block bitmap>",
        "<inode bitmap>",
        "<inode table>",
        "<multiple mount protection>",
    )


def structures(ext: Ext) -> Structures:
    """Every block that holds a structure of the file system itself, copies included."""
    groups = np.arange(ext.groups, dtype=np.int64)
    _, descriptor_start, descriptor_count = ext.descriptor_blocks()
    parts: list[tuple[npt.NDArray[np.int64], int | npt.NDArray[np.int64]]] = [
        (ext.group_start(groups[ext.has_superblock]), 1),
        (descriptor_start, descriptor_count),
        (ext.block_bitmap, 1),
        (ext.inode_bitmap, 1),
        (ext.inode_table, ext.table_blocks),
    ]
    if ext.incompat & on_disk.INCOMPAT_MMP:
        parts.append((np.array([int(ext.superblock["mmp_block"]) & (1 << 48) - 1]), 1))
    start = np.concatenate([place for place, _ in parts]).astype(np.int64)
    count = np.concatenate([np.broadcast_to(n, place.shape) for place, n in parts])
    name = np.repeat(np.arange(len(parts)), [len(place) for place, _ in parts])
    inside = start < ext.blocks
    start, count, name = start[inside], count[inside].astype(np.int64), name[inside]
    return Structures(start, np.minimum(count, ext.blocks - start), name)


def allocated(ext: Ext, own: Structures) -> bitarray:
    """One bit a block of the file system: set where the file system has allocated it.

    With bigalloc a bit on the disk stands for a cluster of blocks.  Blocks before the first
    group (the boot area of a file system with blocks of 1 KiB) are not managed, and count as
    allocated.  Raises InputError on a damaged bitmap.
    """
    count = ext.blocks_per_group // ext.cluster
    rows = ext.bitmaps(ext.block_bitmap, count, "block_bitmap", ext.blocks_uninit)
    if ext.cluster > 1:
        each = np.unpackbits(rows, axis=1, bitorder="little")
        rows = np.packbits(np.repeat(each, ext.cluster, axis=1), axis=1, bitorder="little")
    bits = bitarray(endian="little")
    bits.extend([True] * ext.first_block)
    bits.frombytes(rows.tobytes())
    del bits[ext.blocks :]
    whole = clusters(ext, Ranges.union(own.start, own.count))
    for start, end in whole.pairs():
        bits[start:end] = True
    return bits


def clusters(ext: Ext, blocks: Ranges) -> Ranges:
    """The clusters that these blocks lie in, as ranges of blocks."""
    start = blocks.start // ext.cluster * ext.cluster
    end = np.minimum(-(-blocks.end // ext.cluster) * ext.cluster, ext.blocks)
    return Ranges.union(start, end - start)


def rests(
    ext: Ext, start: npt.NDArray[np.int64], length: npt.NDArray[np.int64], taken: Ranges
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """What of the clusters of the given ranges nothing in ``taken`` holds.

    Gives, for each rest, the position of a range in its cluster, and the rest's start and end;
    none comes twice.  ``taken`` holds the ranges themselves.
    """
    end = start + length
    low = start // ext.cluster * ext.cluster
    high = np.minimum(-(-end // ext.cluster) * ext.cluster, ext.blocks)
    free = Ranges(np.concatenate(([0], taken.end)), np.concatenate((taken.start, [ext.blocks])))
    free = Ranges.union(free.start, free.length)
    which, begin, stop = free.clipped(np.concatenate((low, end)), np.concatenate((start, high)))
    which = which % max(len(start), 1)
    _, first = np.unique(begin, return_index=True)
    return which[first], begin[first], stop[first]
