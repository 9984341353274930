"""The checksums of XFS: CRC-32C of many blocks at once, for few long ones as fast as for many.

A checksum is made over the whole structure with zeros in its own place, and
stored little-endian.  Source: the kernel's ``xfs_cksum.h``.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import numpy.typing as npt

from cbtlab.files.checksum import crc32c

_PARTS = 64  # of a row, that are gone through side by side
_MANY = 4096  # rows, from which on that costs more than it saves

Rows = npt.NDArray[np.uint8]
Sums = npt.NDArray[np.uint32]


def right(rows: Rows, at: int) -> npt.NDArray[np.bool_]:
    """Whether each row has its own checksum at byte ``at``."""
    stored = np.ascontiguousarray(rows[:, at : at + 4]).view("<u4")[:, 0]
    return np.asarray(stored == made(rows, at), np.bool_)


def made(rows: Rows, at: int) -> Sums:
    """The checksum of each row, whose place is byte ``at``."""
    blank = rows.copy()
    blank[:, at : at + 4] = 0
    if len(rows) >= _MANY or rows.shape[1] % _PARTS:
        return ~crc32c(blank)
    width = rows.shape[1] // _PARTS
    parts = crc32c(blank.reshape(-1, width), 0).reshape(len(rows), _PARTS)
    while parts.shape[1] > 1:
        # What comes before a part counts as if as many zero bytes as the part has followed it.
        parts = _followed(parts[:, ::2], width) ^ parts[:, 1::2]
        width *= 2
    start = _followed(np.array([0xFFFFFFFF], np.uint32), rows.shape[1])
    return np.asarray(~(parts[:, 0] ^ start), np.uint32)


def _followed(sums: Sums, zeros: int) -> Sums:
    """The checksums after that many zero bytes."""
    result = np.zeros(sums.shape, np.uint32)
    for byte, table in enumerate(_tables(zeros)):
        result ^= table[sums >> np.uint32(8 * byte) & np.uint32(0xFF)]
    return result


@cache
def _tables(zeros: int) -> tuple[Sums, ...]:
    """For each byte of a checksum, what it becomes after that many zero bytes."""
    byte = np.arange(256, dtype=np.uint32)
    every = np.stack([byte << np.uint32(8 * n) for n in range(4)])
    if zeros % 2:
        many = crc32c(np.zeros((every.size, zeros), np.uint8), every.reshape(-1))
        return tuple(many.reshape(every.shape))
    return tuple(_followed(_followed(every, zeros // 2), zeros // 2))
