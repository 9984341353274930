"""On-disk structures of exFAT, as numpy types and named bits.

Declarations only.  Source: Microsoft's "exFAT file system specification".  Everything is
little-endian.
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
    name=(3, "S8"),
    zero=(11, "V53"),
    sectors=(72, "<u8"),
    fat_offset=(80, "<u4"),
    fat_sectors=(84, "<u4"),
    heap_offset=(88, "<u4"),
    clusters=(92, "<u4"),
    root_cluster=(96, "<u4"),
    serial=(100, "<u4"),
    revision=(104, "<u2"),
    flags=(106, "<u2"),
    sector_shift=(108, "u1"),
    cluster_shift=(109, "u1"),
    fats=(110, "u1"),
    signature=(510, "<u2"),
)
BOOT_SECTORS = 12  # of the boot region; the last repeats the checksum of those before it
FLAG_ACTIVE_FAT, FLAG_DIRTY, FLAG_MEDIA_FAILURE = 1, 2, 4

RECORD_BYTES = 32

#: The first record of a file's set.
FILE = _at(
    32,
    kind=(0, "u1"),
    secondaries=(1, "u1"),
    checksum=(2, "<u2"),
    attributes=(4, "<u2"),
    created=(8, "<u4"),
    modified=(12, "<u4"),
    accessed=(16, "<u4"),
    created_centiseconds=(20, "u1"),
    modified_centiseconds=(21, "u1"),
    created_zone=(22, "u1"),
    modified_zone=(23, "u1"),
    accessed_zone=(24, "u1"),
)

#: The second record of a set; other records with clusters share ``flags``, ``cluster``, ``size``.
STREAM = _at(
    32,
    kind=(0, "u1"),
    flags=(1, "u1"),
    name_length=(3, "u1"),
    name_hash=(4, "<u2"),
    valid=(8, "<u8"),
    cluster=(20, "<u4"),
    size=(24, "<u8"),
)
ALLOCATED, NO_CHAIN = 1, 2  # of flags

#: A record of the set that holds 15 units of the name.
NAME = _at(32, kind=(0, "u1"), flags=(1, "u1"), units=(2, "<15u2"))
NAME_UNITS, LONGEST_NAME = 15, 255

#: The records of the allocation bitmap and of the table of capital letters.
PRIMARY = _at(
    32,
    kind=(0, "u1"),
    flags=(1, "u1"),
    checksum=(4, "<u4"),
    cluster=(20, "<u4"),
    size=(24, "<u8"),
)
LABEL = _at(32, kind=(0, "u1"), length=(1, "u1"), units=(2, "<11u2"))

END = 0x00
IN_USE, SECONDARY, BENIGN = 0x80, 0x40, 0x20  # of a record's kind
KIND_BITMAP, KIND_UPCASE, KIND_LABEL, KIND_FILE = 0x81, 0x82, 0x83, 0x85
KIND_STREAM, KIND_NAME = 0xC0, 0xC1

ATTR_DIRECTORY = 0x10
