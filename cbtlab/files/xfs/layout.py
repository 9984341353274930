"""On-disk structures of XFS, as numpy types and named bits.

Declarations only; the logic is in the files beside this one.  Source: the
kernel's ``fs/xfs/libxfs/xfs_format.h``, ``xfs_da_format.h`` and
``xfs_log_format.h``, and "XFS Algorithms & Data Structures".  Numbers are
big-endian, but checksums are little-endian.  Version 4 has no checksums; version 5
has, and each block tells its own place, owner and file system.
"""

from __future__ import annotations

from typing import Any

import numpy as np

MAGIC = b"XFSB"
SECTOR = 512  # the unit of the log, and of the places that blocks tell of themselves
UUID = "V16"


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
    264,
    magic=(0, "S4"),
    block_size=(4, ">u4"),
    data_blocks=(8, ">u8"),
    realtime_blocks=(16, ">u8"),
    uuid=(32, UUID),
    log_start=(48, ">u8"),
    root_inode=(56, ">u8"),
    realtime_bitmap_inode=(64, ">u8"),
    realtime_summary_inode=(72, ">u8"),
    ag_blocks=(84, ">u4"),
    ag_count=(88, ">u4"),
    log_blocks=(96, ">u4"),
    version=(100, ">u2"),
    sector_size=(102, ">u2"),
    inode_size=(104, ">u2"),
    inodes_per_block=(106, ">u2"),
    block_log=(120, "u1"),
    sector_log=(121, "u1"),
    inode_log=(122, "u1"),
    inodes_per_block_log=(123, "u1"),
    ag_block_log=(124, "u1"),
    in_progress=(126, "u1"),
    user_quota_inode=(160, ">u8"),
    group_quota_inode=(168, ">u8"),
    quota_flags=(176, ">u2"),
    folder_block_log=(192, "u1"),
    log_unit=(196, ">u4"),
    features2=(200, ">u4"),
    bad_features2=(204, ">u4"),
    compat=(208, ">u4"),
    ro_compat=(212, ">u4"),
    incompat=(216, ">u4"),
    log_incompat=(220, ">u4"),
    checksum=(224, "<u4"),
    project_quota_inode=(232, ">u8"),
    meta_uuid=(248, UUID),
)
SUPERBLOCK_CHECKSUM = 224

# Bits of ``version`` beside its lowest four, the number.
VERSION_NUMBER = 0x000F
VERSION_QUOTA = 0x0040
VERSION_EXTENT_FLAG, VERSION_FOLDERS_2, VERSION_MORE = 0x1000, 0x2000, 0x8000
#: What the kernel's ``XFS_SB_VERSION_OKBITS`` has.
VERSION_KNOWN = 0xFDFF

FEATURES2_PROJECT_32, FEATURES2_FTYPE = 0x0080, 0x0200
#: lazysbcount, attr2, projid32bit, crc, ftype.
FEATURES2_KNOWN = 0x0002 | 0x0008 | 0x0080 | 0x0100 | 0x0200

RO_FREE_INODES, RO_REVERSE_MAP, RO_REFLINK, RO_INODE_COUNTS = 1, 2, 4, 8
RO_KNOWN = 0xF
INCOMPAT_FTYPE, INCOMPAT_SPARSE_INODES, INCOMPAT_META_UUID, INCOMPAT_BIG_TIME = 1, 2, 4, 8
INCOMPAT_NEEDS_REPAIR = 0x10
#: ftype, sparse inodes, meta_uuid, bigtime, needsrepair, nrext64, exchange-range, parent.
INCOMPAT_KNOWN = 0xFF
INCOMPAT_NAMES = {0x100: "metadir", 0x200: "zoned", 0x400: "zone_gaps"}

AGF = _at(
    224,
    magic=(0, "S4"),
    version=(4, ">u4"),
    number=(8, ">u4"),
    length=(12, ">u4"),
    by_block_root=(16, ">u4"),
    by_size_root=(20, ">u4"),
    reverse_map_root=(24, ">u4"),
    by_block_levels=(28, ">u4"),
    by_size_levels=(32, ">u4"),
    reverse_map_levels=(36, ">u4"),
    list_first=(40, ">u4"),
    list_last=(44, ">u4"),
    list_count=(48, ">u4"),
    free_blocks=(52, ">u4"),
    uuid=(64, UUID),
    shares_root=(88, ">u4"),
    shares_levels=(92, ">u4"),
    checksum=(216, "<u4"),
)
AGI = _at(
    344,
    magic=(0, "S4"),
    version=(4, ">u4"),
    number=(8, ">u4"),
    length=(12, ">u4"),
    count=(16, ">u4"),
    root=(20, ">u4"),
    levels=(24, ">u4"),
    free_count=(28, ">u4"),
    unlinked=(40, "(64,)>u4"),
    uuid=(296, UUID),
    checksum=(312, "<u4"),
    free_root=(328, ">u4"),
    free_levels=(332, ">u4"),
)
AGFL = _at(36, magic=(0, "S4"), number=(4, ">u4"), uuid=(8, UUID), checksum=(32, "<u4"))

NO_BLOCK, NO_INODE = (1 << 32) - 1, (1 << 64) - 1  # "none", of an allocation group and of all

#: The head of the blocks of B+trees of an allocation group; version 4 has its first 16 bytes.
SHORT_NODE = _at(
    56,
    magic=(0, "S4"),
    level=(4, ">u2"),
    count=(6, ">u2"),
    place=(16, ">u8"),
    uuid=(32, UUID),
    owner=(48, ">u4"),
    checksum=(52, "<u4"),
)
SHORT_NODE_4 = 16
#: The head of the blocks of a file's B+tree of extents; version 4 has its first 24 bytes.
LONG_NODE = _at(
    72,
    magic=(0, "S4"),
    level=(4, ">u2"),
    count=(6, ">u2"),
    place=(24, ">u8"),
    uuid=(40, UUID),
    owner=(56, ">u8"),
    checksum=(64, "<u4"),
)
LONG_NODE_4 = 24
MOST_LEVELS = 9

FREE = np.dtype([("start", ">u4"), ("count", ">u4")])
CHUNK = _at(
    16,
    start=(0, ">u4"),
    holes=(4, ">u2"),  # with sparse inodes; else the upper half of the number of free ones
    free_count=(7, "u1"),
    free_count_4=(4, ">u4"),
    free=(8, ">u8"),
)
CHUNK_INODES = 64
INODES_PER_HOLE = 4
SHARE = np.dtype([("start", ">u4"), ("count", ">u4"), ("references", ">u4")])
STAGED = 1 << 31  # of the start of a share: space set apart for copy on write
REVERSE = np.dtype([("start", ">u4"), ("count", ">u4"), ("owner", ">u8"), ("offset", ">u8")])

INODE = _at(
    176,
    magic=(0, "S2"),
    mode=(2, ">u2"),
    version=(4, "i1"),
    format=(5, "i1"),
    old_links=(6, ">u2"),
    uid=(8, ">u4"),
    gid=(12, ">u4"),
    links=(16, ">u4"),
    project=(20, ">u2"),
    project_hi=(22, ">u2"),
    big_extents=(24, ">u8"),
    atime=(32, ">u8"),
    mtime=(40, ">u8"),
    ctime=(48, ">u8"),
    size=(56, ">i8"),
    blocks=(64, ">u8"),
    extents=(76, ">u4"),
    attribute_extents=(80, ">u2"),
    fork_offset=(82, "u1"),
    attribute_format=(83, "i1"),
    flags=(90, ">u2"),
    generation=(92, ">u4"),
    next_unlinked=(96, ">u4"),
    checksum=(100, "<u4"),
    flags2=(120, ">u8"),
    crtime=(144, ">u8"),
    number=(152, ">u8"),
    uuid=(160, UUID),
)
INODE_CHECKSUM = 100
INODE_CORE_4, INODE_CORE = 100, 176  # bytes of an inode before its forks

FORMAT_DEVICE, FORMAT_LOCAL, FORMAT_EXTENTS, FORMAT_TREE = 0, 1, 2, 3
FLAG_REALTIME = 0x1
FLAG2_REFLINK, FLAG2_BIG_TIME, FLAG2_BIG_COUNTS = 0x2, 0x8, 0x10
BIG_TIME_START = 1 << 31  # seconds before 1970 where big times begin

# i_mode >> 12.
TYPE_DIRECTORY, TYPE_REGULAR, TYPE_SYMLINK = 4, 8, 10
TYPES_OTHER = (1, 2, 6, 12)  # pipe, character and block device, socket

#: Folders keep names below this byte of their content, and above it what finds them.
FOLDER_LEAVES = 1 << 35
FOLDER_DATA_4, FOLDER_BLOCK_4 = b"XD2D", b"XD2B"
FOLDER_DATA, FOLDER_BLOCK = b"XDD3", b"XDB3"
FOLDER_HEAD_4 = 16
FOLDER_HEAD = _at(
    64,
    magic=(0, "S4"),
    checksum=(4, "<u4"),
    place=(8, ">u8"),
    uuid=(24, UUID),
    owner=(40, ">u8"),
)
FOLDER_CHECKSUM = 4
FOLDER_TAIL = np.dtype([("count", ">u4"), ("stale", ">u4")])
FOLDER_FREE = 0xFFFF  # in the place of an inode number: nothing is here

#: The head of blocks that hold a long symlink (``XSLM``) or a long attribute (``XARM``).
REMOTE = _at(
    56,
    magic=(0, "S4"),
    offset=(4, ">u4"),
    bytes=(8, ">u4"),
    checksum=(12, "<u4"),
    uuid=(16, UUID),
    owner=(32, ">u8"),
    place=(40, ">u8"),
)
REMOTE_CHECKSUM = 12
SYMLINK_MAGIC, ATTRIBUTE_MAGIC = b"XSLM", b"XARM"
LONGEST_SYMLINK = 1024

#: The head of nodes and leaves of attributes; version 4 has its first 12 bytes.
ATTRIBUTE_NODE = _at(
    56,
    magic=(8, ">u2"),
    checksum=(12, "<u4"),
    place=(16, ">u8"),
    uuid=(32, UUID),
    owner=(48, ">u8"),
)
ATTRIBUTE_CHECKSUM = 12
ATTRIBUTE_LEAVES, ATTRIBUTE_NODES = (0xFBEE, 0x3BEE), (0xFEBE, 0x3EBE)  # version 4, version 5
ATTRIBUTE_LOCAL, ATTRIBUTE_ROOT, ATTRIBUTE_SECURE = 0x01, 0x02, 0x04
ATTRIBUTE_PARENT, ATTRIBUTE_INCOMPLETE = 0x08, 0x80
LONGEST_VALUE = 1 << 16

RECORD_MAGIC = 0xFEEDBABE
RECORD = _at(
    512,
    magic=(0, ">u4"),
    cycle=(4, ">u4"),
    version=(8, ">u4"),
    length=(12, ">u4"),
    operations=(40, ">u4"),
    uuid=(304, UUID),
    size=(320, ">u4"),
)
RECORD_CYCLES = 32 << 10  # bytes of a record whose cycles one sector of its head can hold
OPERATION_FLAGS, OPERATION_UNMOUNT = 9, 0x20
