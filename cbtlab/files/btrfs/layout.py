"""On-disk structures of btrfs, as numpy types and named numbers.

Declarations only.  Source: the kernel's ``include/uapi/linux/btrfs_tree.h`` and
``btrfs.h``.  Everything is little-endian.
"""

from __future__ import annotations

from typing import Any

import numpy as np

SUPERBLOCKS = (64 << 10, 64 << 20, 256 << 30)  # where the superblock and its mirrors lie
SUPERBLOCK_BYTES = 4096
MAGIC = b"_BHRfS_M"
RESERVED = 1 << 20  # the first bytes of a device are left to boot loaders
CSUM_BYTES = 32  # every checksum has this room at the start of what it covers
MOST_LEVELS = 8
LARGEST_ENCODED = 128 << 10  # bytes that one compressed extent may stand for


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
    fsid=(0x20, "V16"),
    bytenr=(0x30, "<u8"),
    flags=(0x38, "<u8"),
    magic=(0x40, "V8"),
    generation=(0x48, "<u8"),
    root=(0x50, "<u8"),
    chunk_root=(0x58, "<u8"),
    log_root=(0x60, "<u8"),
    total_bytes=(0x70, "<u8"),
    bytes_used=(0x78, "<u8"),
    num_devices=(0x88, "<u8"),
    sectorsize=(0x90, "<u4"),
    nodesize=(0x94, "<u4"),
    sys_chunk_array_size=(0xA0, "<u4"),
    chunk_root_generation=(0xA4, "<u8"),
    compat_ro=(0xB4, "<u8"),
    incompat=(0xBC, "<u8"),
    csum_type=(0xC4, "<u2"),
    root_level=(0xC6, "u1"),
    chunk_root_level=(0xC7, "u1"),
    devid=(0xC9, "<u8"),
    device_bytes=(0xD1, "<u8"),
    metadata_uuid=(0x23B, "V16"),
)
SYS_CHUNK_ARRAY, SYS_CHUNK_ARRAY_BYTES = 0x32B, 2048

HEADER_BYTES = 101
HEADER = _at(
    HEADER_BYTES,
    fsid=(0x20, "V16"),
    bytenr=(0x30, "<u8"),
    generation=(0x50, "<u8"),
    owner=(0x58, "<u8"),
    nritems=(0x60, "<u4"),
    level=(0x64, "u1"),
)
#: A key is an object, a type and an offset, and sorts in this order.
KEY_BYTES = 17
ITEM = _at(
    25,
    raw=(0, "V17"),
    objectid=(0, "<u8"),
    type=(8, "u1"),
    key_offset=(9, "<u8"),
    offset=(17, "<u4"),  # from the end of the header
    size=(21, "<u4"),
)
KEY_PTR = _at(33, raw=(0, "V17"), blockptr=(17, "<u8"), generation=(25, "<u8"))

INODE_ITEM = _at(
    160,
    size=(16, "<u8"),
    nlink=(40, "<u4"),
    uid=(44, "<u4"),
    gid=(48, "<u4"),
    mode=(52, "<u4"),
    rdev=(56, "<u8"),
    flags=(64, "<u8"),
    atime=(112, "<i8"),
    atime_nsec=(120, "<u4"),
    ctime=(124, "<i8"),
    ctime_nsec=(132, "<u4"),
    mtime=(136, "<i8"),
    mtime_nsec=(144, "<u4"),
    otime=(148, "<i8"),
    otime_nsec=(156, "<u4"),
)
#: The head of a file extent, which is all that an inline one has before its bytes.
FILE_EXTENT_HEAD = _at(
    21,
    ram_bytes=(8, "<u8"),
    compression=(16, "u1"),
    encryption=(17, "u1"),
    other_encoding=(18, "<u2"),
    type=(20, "u1"),
)
FILE_EXTENT = _at(
    53,
    disk_bytenr=(21, "<u8"),
    disk_num_bytes=(29, "<u8"),
    offset=(37, "<u8"),
    num_bytes=(45, "<u8"),
)
#: An entry of a folder, or an extended attribute; the name follows, then the value.
DIR_ITEM = _at(
    30,
    objectid=(0, "<u8"),
    type=(8, "u1"),
    data_len=(25, "<u2"),
    name_len=(27, "<u2"),
)
ROOT_ITEM = _at(
    239,
    generation=(160, "<u8"),
    bytenr=(176, "<u8"),
    flags=(208, "<u8"),
    refs=(216, "<u4"),
    drop_progress=(220, "V17"),
    drop_level=(237, "u1"),
    level=(238, "u1"),
)
ROOT_REF = _at(18, dirid=(0, "<u8"), name_len=(16, "<u2"))
EXTENT_ITEM = _at(24, refs=(0, "<u8"), flags=(16, "<u8"))
BLOCK_GROUP_ITEM = _at(24, used=(0, "<u8"), flags=(16, "<u8"))
DEV_EXTENT = _at(48, chunk_offset=(16, "<u8"), length=(24, "<u8"))
DEV_ITEM = _at(98, devid=(0, "<u8"), total_bytes=(8, "<u8"))
CHUNK = _at(
    48,
    length=(0, "<u8"),
    type=(24, "<u8"),
    num_stripes=(44, "<u2"),
)
STRIPE = _at(32, devid=(0, "<u8"), offset=(8, "<u8"))
FREE_SPACE_HEADER = _at(17, inode=(0, "<u8"))  # begins with the key of the cache's inode

# Types of items.
INODE_ITEM_KEY, XATTR_ITEM_KEY, ORPHAN_ITEM_KEY = 1, 24, 48
DIR_ITEM_KEY, DIR_INDEX_KEY, EXTENT_DATA_KEY = 84, 96, 108
ROOT_ITEM_KEY, ROOT_REF_KEY = 132, 156
EXTENT_ITEM_KEY, METADATA_ITEM_KEY, BLOCK_GROUP_ITEM_KEY = 168, 169, 192
DEV_EXTENT_KEY, DEV_ITEM_KEY, CHUNK_ITEM_KEY = 204, 216, 228
FREE_SPACE_HEADER_KEY = 0

# Numbers of trees and of objects.
ROOT_TREE, EXTENT_TREE, CHUNK_TREE, DEV_TREE, FS_TREE, CSUM_TREE = 1, 2, 3, 4, 5, 7
QUOTA_TREE, UUID_TREE, FREE_SPACE_TREE, BLOCK_GROUP_TREE = 8, 9, 10, 11
RELOC_TREE, DATA_RELOC_TREE = 2**64 - 8, 2**64 - 9
FREE_SPACE_OBJECT, FREE_INO_OBJECT = 2**64 - 11, 2**64 - 12
DEV_ITEMS_OBJECT, FIRST_CHUNK_OBJECT = 1, 256
FIRST_FREE, LAST_FREE = 256, 2**64 - 256  # objects that may be a file or a subvolume
ROOT_FOLDER = 256  # the inode at the root of every subvolume
EMPTY_SUBVOLUME = 2  # the inode that stands where a snapshot's nested subvolume is not

EXTENT_DATA_FLAG, EXTENT_TREE_BLOCK_FLAG = 1, 2
INLINE, REGULAR, PREALLOCATED = range(3)  # types of file extents
ZLIB, LZO, ZSTD = 1, 2, 3

# Kinds of chunks.
CHUNK_DATA, CHUNK_SYSTEM, CHUNK_METADATA = 1, 2, 4
CHUNK_RAID0, CHUNK_DUP = 8, 0x20
PROFILES = {
    0x8: "RAID0",
    0x10: "RAID1",
    0x20: "DUP",
    0x40: "RAID10",
    0x80: "RAID5",
    0x100: "RAID6",
    0x200: "RAID1C3",
    0x400: "RAID1C4",
}

# Features that a reader must know.
INCOMPAT_METADATA_UUID = 0x400
INCOMPAT_KNOWN = 0x10FFF  # all up to RAID1C34, and simple quotas
INCOMPAT_NAMES = {
    0x1000: "zoned",
    0x2000: "extent tree v2",
    0x4000: "raid stripe tree",
    0x20000: "remap tree",
}
COMPAT_RO_BLOCK_GROUP_TREE = 0x8
COMPAT_RO_KNOWN = 0xF  # free space tree, its validity, verity, block group tree

SUPER_ERROR = 1 << 2
#: Marks in the superblock's flags of what is not mapped.
SUPER_REFUSED = {
    1 << 32: "is a seed device",
    1 << 33: "is a metadata dump, not a volume",
    1 << 34: "is a metadata dump, not a volume",
}
#: Changes by btrfstune that were begun and not ended.
SUPER_CHANGING = 1 << 35 | 1 << 36 | 1 << 38 | 1 << 39 | 1 << 40
INODE_RO_VERITY = 1 << 32
