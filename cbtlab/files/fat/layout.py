"""On-disk structures of FAT12, FAT16 and FAT32, as numpy types and named bits.

Declarations only.  Source: Microsoft's "FAT: General Overview of On-Disk Format" (fatgen103)
and the kernel's ``include/uapi/linux/msdos_fs.h``.  Everything is little-endian.
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


#: The BIOS parameter block in the first sector; the second part is that of FAT12 and FAT16.
BOOT = _at(
    512,
    sector_size=(11, "<u2"),
    sectors_per_cluster=(13, "u1"),
    reserved=(14, "<u2"),
    fats=(16, "u1"),
    root_entries=(17, "<u2"),
    sectors_16=(19, "<u2"),
    media=(21, "u1"),
    fat_sectors_16=(22, "<u2"),
    sectors_32=(32, "<u4"),
    state=(37, "u1"),
    signature=(38, "u1"),
    serial=(39, "<u4"),
)

#: The same sector, as FAT32 has it.
BOOT32 = _at(
    512,
    fat_sectors_32=(36, "<u4"),
    ext_flags=(40, "<u2"),
    version=(42, "<u2"),
    root_cluster=(44, "<u4"),
    fsinfo=(48, "<u2"),
    backup=(50, "<u2"),
    state=(65, "u1"),
    signature=(66, "u1"),
    serial=(67, "<u4"),
)
STRINGS = ((54, b"FAT12   "), (54, b"FAT16   "), (82, b"FAT32   "))

STATE_DIRTY = 1  # of the boot sector's state, as Linux keeps it
NOT_MIRRORED, ACTIVE_FAT = 0x80, 0x0F  # of ext_flags

#: A record of a folder.
RECORD = _at(
    32,
    name=(0, "8u1"),
    extension=(8, "3u1"),
    attributes=(11, "u1"),
    case=(12, "u1"),
    created_centiseconds=(13, "u1"),
    created_time=(14, "<u2"),
    created_date=(16, "<u2"),
    accessed_date=(18, "<u2"),
    cluster_high=(20, "<u2"),
    modified_time=(22, "<u2"),
    modified_date=(24, "<u2"),
    cluster_low=(26, "<u2"),
    size=(28, "<u4"),
)

#: A record that holds 13 units of a long name.
LONG_RECORD = _at(
    32,
    order=(0, "u1"),
    first=(1, "<5u2"),
    attributes=(11, "u1"),
    kind=(12, "u1"),
    checksum=(13, "u1"),
    second=(14, "<6u2"),
    third=(28, "<2u2"),
)
RECORD_BYTES = 32
LONG_LAST, LONG_UNITS, LONG_MOST = 0x40, 13, 20

ATTR_LABEL, ATTR_DIRECTORY, ATTR_LONG, ATTR_MASK = 0x08, 0x10, 0x0F, 0x3F
DELETED, END, KANJI_E5 = 0xE5, 0x00, 0x05
CASE_LOWER_NAME, CASE_LOWER_EXTENSION = 0x08, 0x10
