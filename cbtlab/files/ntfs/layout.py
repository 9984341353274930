"""On-disk structures of NTFS, as numpy types and named numbers.

Declarations only.  Source: the headers of ntfs-3g (``layout.h``, ``logfile.h``), the
kernel's ``fs/ntfs3/ntfs.h``, and libfsntfs's documentation.  Everything is little-endian.
"""

from __future__ import annotations

from typing import Any

import numpy as np


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


BOOT = _at(
    512,
    oem=(3, "S8"),
    bytes_per_sector=(11, "<u2"),
    sectors_per_cluster=(13, "u1"),
    reserved=(14, "<u2"),
    sectors=(40, "<i8"),
    mft=(48, "<i8"),
    mirror=(56, "<i8"),
    record=(64, "i1"),
    index_block=(68, "i1"),
    serial=(72, "<u8"),
)

STRIDE = 512  # the update sequence guards that many bytes at a time, whatever the sector
RECORD = _at(
    48,
    magic=(0, "S4"),
    usa_offset=(4, "<u2"),
    usa_count=(6, "<u2"),
    sequence=(16, "<u2"),
    links=(18, "<u2"),
    attributes=(20, "<u2"),
    flags=(22, "<u2"),
    used=(24, "<u4"),
    base=(32, "<u8"),
    number=(44, "<u4"),  # since 3.1, where the update sequence begins behind it
)
RECORD_IN_USE, RECORD_FOLDER = 1, 2
NUMBER = (1 << 48) - 1  # of a reference; the 16 bits above are the sequence number

ATTRIBUTE = _at(
    64,
    type=(0, "<u4"),
    length=(4, "<u4"),
    apart=(8, "u1"),  # not resident
    name_length=(9, "u1"),
    name_offset=(10, "<u2"),
    flags=(12, "<u2"),
    instance=(14, "<u2"),
    value_length=(16, "<u4"),
    value_offset=(20, "<u2"),
    lowest=(16, "<i8"),
    highest=(24, "<i8"),
    pairs=(32, "<u2"),
    unit=(34, "u1"),
    allocated=(40, "<i8"),
    size=(48, "<i8"),
    valid=(56, "<i8"),
)
STANDARD_INFORMATION, ATTRIBUTE_LIST, FILE_NAME, OBJECT_ID = 0x10, 0x20, 0x30, 0x40
SECURITY_DESCRIPTOR, VOLUME_INFORMATION, DATA, INDEX_ROOT = 0x50, 0x70, 0x80, 0x90
INDEX_ALLOCATION, BITMAP, REPARSE_POINT, EA = 0xA0, 0xB0, 0xC0, 0xE0
LOGGED_UTILITY_STREAM, END = 0x100, 0xFFFFFFFF
COMPRESSED, ENCRYPTED, SPARSE = 0x00FF, 0x4000, 0x8000  # flags of an attribute

#: The time stamps are 100 ns since 1601.
INFORMATION = _at(
    72,
    created=(0, "<u8"),
    modified=(8, "<u8"),
    changed=(16, "<u8"),
    accessed=(24, "<u8"),
    attributes=(32, "<u4"),
    security=(52, "<u4"),  # since 3.0
)
INFORMATION_SHORT = 48
EPOCH = 116_444_736_000_000_000

NAME = _at(66, parent=(0, "<u8"), length=(64, "u1"), space=(65, "u1"))
SPACE_DOS = 2  # the 8.3 name beside a long one

LIST_ENTRY = _at(
    26,
    type=(0, "<u4"),
    length=(4, "<u2"),
    name_length=(6, "u1"),
    lowest=(8, "<i8"),
    reference=(16, "<u8"),
    instance=(24, "<u2"),
)

INDEX_HEADER = _at(16, first=(0, "<u4"), used=(4, "<u4"), flags=(12, "u1"))
ROOT_HEADER, BLOCK_HEADER = 16, 24  # where the index header lies in a root and in a block
BLOCK_NUMBER = 16  # an index block's own place, in a block
INDEX_ENTRY = _at(16, reference=(0, "<u8"), length=(8, "<u2"), key=(10, "<u2"), flags=(12, "u1"))
ENTRY_BELOW, ENTRY_LAST = 1, 2

RESTART = _at(
    30,
    usa_offset=(4, "<u2"),
    usa_count=(6, "<u2"),
    system_page=(16, "<u4"),
    log_page=(20, "<u4"),
    area=(24, "<u2"),
    minor=(26, "<i2"),
    major=(28, "<i2"),
)
RESTART_AREA = _at(16, lsn=(0, "<u8"), in_use=(12, "<u2"), flags=(14, "<u2"))
NO_CLIENT, RESTART_CLEAN = 0xFFFF, 2

VOLUME = _at(12, major=(8, "u1"), minor=(9, "u1"), flags=(10, "<u2"))
VOLUME_DIRTY, VOLUME_RESIZE, VOLUME_CHECKING = 0x0001, 0x0002, 0x4000

#: ``$Secure:$SDS``: descriptors, each 16-aligned, every other 256 KiB a copy of those before.
DESCRIPTOR = _at(20, hash=(0, "<u4"), id=(4, "<u4"), offset=(8, "<u8"), length=(16, "<u4"))
DESCRIPTORS = 1 << 18

TAG_JUNCTION, TAG_SYMLINK, TAG_LX_SYMLINK = 0xA0000003, 0xA000000C, 0xA000001D
TAG_DEDUP, TAG_WOF = 0x80000013, 0x80000017
TAGS_SPECIAL = (0x80000023, 0x80000024, 0x80000025, 0x80000026)  # AF_UNIX, FIFO, devices of WSL

MFT, MIRROR, LOG_FILE, VOLUME_FILE, ROOT = 0, 1, 2, 3, 5
BITMAP_FILE, BAD_CLUSTERS, SECURE, EXTEND = 6, 8, 9, 11
RESERVED = 16  # records below this one serve the file system itself, the root apart
