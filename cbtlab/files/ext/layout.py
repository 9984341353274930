"""On-disk structures of ext2, ext3 and ext4, as numpy types and named bits.

Declarations only; the logic is in ``ext.py`` and the ``ext_*.py`` beside it.
Source: the kernel's ``fs/ext4/ext4.h``, ``ext4_extents.h`` and ``xattr.h``, and
``lib/ext2fs/ext2_fs.h`` of e2fsprogs.  Everything is little-endian.
"""

from __future__ import annotations

from typing import Any

import numpy as np

SUPERBLOCK_OFFSET = 1024
SUPERBLOCK_BYTES = 1024
MAGIC = 0xEF53
EXTENT_MAGIC = 0xF30A
XATTR_MAGIC = 0xEA020000


def _at(size: int, /, **fields: tuple[int, str]) -> np.dtype[Any]:
    """A structured type of ``size`` bytes from ``name=(offset, type)``."""
    return np.dtype(
        {
            "names": list(fields),
            "offsets": [offset for offset, _ in fields.values()],
            "formats": [kind for _, kind in fields.values()],
            "itemsize": size,
        }
    )


SUPERBLOCK = _at(
    SUPERBLOCK_BYTES,
    inodes_count=(0, "<u4"),
    blocks_lo=(4, "<u4"),
    free_blocks_lo=(12, "<u4"),
    first_data_block=(20, "<u4"),
    log_block_size=(24, "<u4"),
    log_cluster_size=(28, "<u4"),
    blocks_per_group=(32, "<u4"),
    clusters_per_group=(36, "<u4"),
    inodes_per_group=(40, "<u4"),
    magic=(56, "<u2"),
    state=(58, "<u2"),
    rev_level=(76, "<u4"),
    first_ino=(84, "<u4"),
    inode_size=(88, "<u2"),
    compat=(92, "<u4"),
    incompat=(96, "<u4"),
    ro_compat=(100, "<u4"),
    uuid=(104, "V16"),
    label=(120, "S16"),
    reserved_gdt=(206, "<u2"),
    journal_inode=(224, "<u4"),
    last_orphan=(232, "<u4"),
    desc_size=(254, "<u2"),
    first_meta_bg=(260, "<u4"),
    blocks_hi=(336, "<u4"),
    mmp_block=(360, "<u8"),
    checksum_type=(373, "u1"),
    user_quota_inode=(0x240, "<u4"),
    group_quota_inode=(0x244, "<u4"),
    backup_groups=(0x24C, "<2u4"),
    project_quota_inode=(0x26C, "<u4"),
    checksum_seed=(0x270, "<u4"),
    orphan_file_inode=(0x280, "<u4"),
    checksum=(0x3FC, "<u4"),
)

GROUP = _at(
    64,
    block_bitmap=(0, "<u4"),
    inode_bitmap=(4, "<u4"),
    inode_table=(8, "<u4"),
    flags=(18, "<u2"),
    block_bitmap_csum=(24, "<u2"),
    inode_bitmap_csum=(26, "<u2"),
    itable_unused=(28, "<u2"),
    checksum=(30, "<u2"),
    block_bitmap_hi=(32, "<u4"),
    inode_bitmap_hi=(36, "<u4"),
    inode_table_hi=(40, "<u4"),
    itable_unused_hi=(50, "<u2"),
    block_bitmap_csum_hi=(56, "<u2"),
    inode_bitmap_csum_hi=(58, "<u2"),
)
GROUP_INODE_UNINIT = 1
GROUP_BLOCK_UNINIT = 2

INODE = _at(
    160,
    mode=(0, "<u2"),
    uid=(2, "<u2"),
    size=(4, "<u4"),
    atime=(8, "<i4"),
    ctime=(12, "<i4"),
    mtime=(16, "<i4"),
    gid=(24, "<u2"),
    links=(26, "<u2"),
    flags=(32, "<u4"),
    device_old=(40, "<u4"),
    device_new=(44, "<u4"),
    generation=(100, "<u4"),
    file_acl=(104, "<u4"),
    size_hi=(108, "<u4"),
    file_acl_hi=(118, "<u2"),
    uid_hi=(120, "<u2"),
    gid_hi=(122, "<u2"),
    csum=(124, "<u2"),
    extra_isize=(128, "<u2"),
    csum_hi=(130, "<u2"),
    ctime_extra=(132, "<u4"),
    mtime_extra=(136, "<u4"),
    atime_extra=(140, "<u4"),
    crtime=(144, "<i4"),
    crtime_extra=(148, "<u4"),
    project=(156, "<u4"),
)
I_BLOCK = slice(40, 100)  # of an inode: pointers, extent root, inline data or a short symlink
I_BLOCK_OFFSET, I_BLOCK_BYTES = 40, 60

EXTENT_HEADER = np.dtype(
    [("magic", "<u2"), ("entries", "<u2"), ("max", "<u2"), ("depth", "<u2"), ("generation", "<u4")]
)
EXTENT = np.dtype([("block", "<u4"), ("len", "<u2"), ("start_hi", "<u2"), ("start_lo", "<u4")])
EXTENT_INDEX = np.dtype(
    [("block", "<u4"), ("leaf_lo", "<u4"), ("leaf_hi", "<u2"), ("unused", "<u2")]
)
EXTENT_MAX_DEPTH = 5
EXTENT_MAX_WRITTEN = 32768  # a longer length means: unwritten, and this much too long

# Bits of i_flags.
FL_EXTENTS = 0x00080000
FL_VERITY = 0x00100000
FL_EA_INODE = 0x00200000
FL_INLINE_DATA = 0x10000000

# i_mode >> 12.
TYPE_DIRECTORY, TYPE_REGULAR, TYPE_SYMLINK = 4, 8, 10

COMPAT_SPARSE_SUPER2 = 0x0200
COMPAT_ORPHAN_FILE = 0x1000

RO_SPARSE_SUPER = 0x0001
RO_GDT_CSUM = 0x0010
RO_BIGALLOC = 0x0200
RO_METADATA_CSUM = 0x0400
RO_ORPHAN_PRESENT = 0x10000

INCOMPAT_RECOVER = 0x0004
INCOMPAT_JOURNAL_DEV = 0x0008
INCOMPAT_META_BG = 0x0010
INCOMPAT_64BIT = 0x0080
INCOMPAT_MMP = 0x0100
INCOMPAT_EA_INODE = 0x0400
INCOMPAT_CSUM_SEED = 0x2000
INCOMPAT_LARGEDIR = 0x4000
INCOMPAT_ENCRYPT = 0x10000

#: Incompatible features that the reader knows: filetype, recover, meta_bg, extents, 64bit, mmp,
#: flex_bg, ea_inode, csum_seed, largedir, inline_data, encrypt, casefold.
INCOMPAT_KNOWN = 0x0002 | 0x0004 | 0x0010 | 0x0040 | 0x0080 | 0x0100 | 0x0200 | 0x0400 | 0x3E000
INCOMPAT_NAMES = {
    0x0001: "compression",
    0x0008: "journal_dev",
    0x1000: "dirdata",
}

STATE_CLEAN, STATE_ERRORS, STATE_ORPHANS = 1, 2, 4

BAD_BLOCKS_INODE, ROOT_INODE, RESIZE_INODE, JOURNAL_INODE = 1, 2, 7, 8
