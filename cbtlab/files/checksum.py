"""The checksums of file systems: CRC-32C over many rows at once, and the older CRC-16.

One row is one structure (a superblock, a descriptor, an inode, a bitmap); the
loop runs over the bytes of a row, every step over all rows.  As in the kernel
(``crc32c_le``, ``crc16``) nothing is inverted at the end.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

_ROWS_AT_ONCE = 1 << 14  # the working set stays in the cache


def _table(polynomial: int, bits: int) -> npt.NDArray[np.uint32]:
    table = np.arange(1 << bits, dtype=np.uint32)
    for _ in range(bits):
        table = np.where(table & 1, (table >> 1) ^ np.uint32(polynomial), table >> 1)
    return table.astype(np.uint32)


_CRC32C_8 = _table(0x82F63B78, 8)
_CRC32C_16 = _table(0x82F63B78, 16)
_CRC16_8 = _table(0xA001, 8)


def crc32c(rows: npt.NDArray[np.uint8], init: Any = 0xFFFFFFFF) -> npt.NDArray[np.uint32]:
    """CRC-32C of each row of an ``(n, m)`` array of bytes; ``init`` is a number or one a row."""
    result = np.empty(len(rows), np.uint32)
    start = np.broadcast_to(np.asarray(init, np.uint32), (len(rows),))
    for at in range(0, len(rows), _ROWS_AT_ONCE):
        part = slice(at, at + _ROWS_AT_ONCE)
        result[part] = _crc32c(rows[part], start[part].copy())
    return result


def _crc32c(rows: npt.NDArray[np.uint8], crc: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint32]:
    even = rows.shape[1] & ~1
    words = np.ascontiguousarray(rows[:, :even]).view("<u2").T
    for word in np.ascontiguousarray(words):
        crc = _CRC32C_16[(crc ^ word) & 0xFFFF] ^ (crc >> 16)
    for byte in rows[:, even:].T:
        crc = _CRC32C_8[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    return np.asarray(crc, np.uint32)


def crc16(rows: npt.NDArray[np.uint8], init: Any = 0xFFFF) -> npt.NDArray[np.uint32]:
    """CRC-16 (polynomial 0x8005, reflected) of each row, as group descriptors of ext3/4 have it."""
    crc = np.broadcast_to(np.asarray(init, np.uint32), (len(rows),)).copy()
    for byte in np.ascontiguousarray(rows.T):
        crc = _CRC16_8[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    return np.asarray(crc, np.uint32)
