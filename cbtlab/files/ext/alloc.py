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

    Blocks before the first group (the boot area of a file system with blocks of 1 KiB) are
    not managed, and count as allocated.  Raises InputError on a damaged bitmap.
    """
    rows = ext.bitmaps(ext.block_bitmap, ext.blocks_per_group, "block_bitmap", ext.blocks_uninit)
    bits = bitarray(endian="little")
    bits.extend([True] * ext.first_block)
    bits.frombytes(rows.tobytes())
    del bits[ext.blocks :]
    for start, end in Ranges.union(own.start, own.count).pairs():
        bits[start:end] = True
    return bits
