"""The checksums of btrfs, over many superblocks or tree blocks at once.

The first 32 bytes of a row hold the checksum of the rest.  CRC-32C and xxHash64
go through all rows together; the two cryptographic ones through one row after
the other, in hashlib.
"""

from __future__ import annotations

import hashlib
from functools import cache

import numpy as np
import numpy.typing as npt

from cbtlab.files.btrfs.layout import CSUM_BYTES
from cbtlab.files.checksum import crc32c

KINDS = ("crc32c", "xxhash64", "sha256", "blake2b")
_PARTS = 64  # of a row, that go through CRC-32C side by side

Rows = npt.NDArray[np.uint8]
Words = npt.NDArray[np.uint64]


def right(rows: Rows, kind: int) -> npt.NDArray[np.bool_]:
    """Whether each row begins with the checksum of what follows; ``kind`` indexes `KINDS`."""
    body = rows[:, CSUM_BYTES:]
    if kind == 0:
        return np.asarray(_stored(rows, "<u4") == _crc32c(body), np.bool_)
    if kind == 1:
        return np.asarray(_stored(rows, "<u8") == xxhash64(body), np.bool_)
    digests = b"".join(_digest(row.tobytes(), kind) for row in body)
    wanted = np.frombuffer(digests, np.uint8).reshape(len(rows), CSUM_BYTES)
    return np.asarray((rows[:, :CSUM_BYTES] == wanted).all(axis=1), np.bool_)


def sealed(row: bytes, kind: int) -> bytes:
    """A superblock or tree block with its checksum made anew."""
    body = np.frombuffer(row, np.uint8)[None, CSUM_BYTES:]
    if kind == 0:
        own = int(_crc32c(body)[0]).to_bytes(4, "little")
    elif kind == 1:
        own = int(xxhash64(body)[0]).to_bytes(8, "little")
    else:
        own = _digest(body.tobytes(), kind)
    return own.ljust(CSUM_BYTES, b"\0") + row[CSUM_BYTES:]


def _stored(rows: Rows, kind: str) -> npt.NDArray[np.generic]:
    width = np.dtype(kind).itemsize
    return np.ascontiguousarray(rows[:, :width]).view(kind)[:, 0]


def _digest(data: bytes, kind: int) -> bytes:
    if kind == 2:
        return hashlib.sha256(data).digest()
    return hashlib.blake2b(data, digest_size=CSUM_BYTES).digest()


# CRC-32C ------------------------------------------------------------------------------------


def _crc32c(body: Rows) -> npt.NDArray[np.uint32]:
    """CRC-32C with the usual start and end, for few long rows as fast as for many short ones.

    A row is cut into parts, whose checksums are put together again: what comes before a part
    of n bytes counts as if n zero bytes followed it.  Zeros before a row change nothing.
    """
    width = -(-body.shape[1] // _PARTS)
    padded = np.zeros((len(body), width * _PARTS), np.uint8)
    padded[:, padded.shape[1] - body.shape[1] :] = body
    parts = crc32c(padded.reshape(-1, width), 0).reshape(len(body), _PARTS)
    while parts.shape[1] > 1:
        parts = _followed(parts[:, ::2], width) ^ parts[:, 1::2]
        width *= 2
    start = _followed(np.array([0xFFFFFFFF], np.uint32), body.shape[1])
    return np.asarray(~(parts[:, 0] ^ start), np.uint32)


def _followed(crc: npt.NDArray[np.uint32], zeros: int) -> npt.NDArray[np.uint32]:
    """The checksums after that many zero bytes."""
    tables = _zero_tables(zeros)
    result = np.zeros(crc.shape, np.uint32)
    for byte, table in enumerate(tables):
        result ^= table[crc >> np.uint32(8 * byte) & np.uint32(0xFF)]
    return result


@cache
def _zero_tables(zeros: int) -> tuple[npt.NDArray[np.uint32], ...]:
    """For each byte of a checksum, what it becomes after that many zero bytes."""
    # One zero bit, as a linear map: the image of each of the 32 bits; squared as often as needed.
    step = np.array([0x82F63B78] + [1 << bit for bit in range(31)], np.uint32)
    whole = np.array([1 << bit for bit in range(32)], np.uint32)
    count = 8 * zeros
    while count:
        if count & 1:
            whole = _apply(step, whole)
        step = _apply(step, step)
        count >>= 1
    byte = np.arange(256, dtype=np.uint32)
    return tuple(_apply(whole, byte << np.uint32(8 * n)) for n in range(4))


def _apply(
    linear: npt.NDArray[np.uint32], values: npt.NDArray[np.uint32]
) -> npt.NDArray[np.uint32]:
    result = np.zeros(values.shape, np.uint32)
    for bit in range(32):
        result ^= np.where(values >> np.uint32(bit) & np.uint32(1), linear[bit], np.uint32(0))
    return result


# xxHash64 -----------------------------------------------------------------------------------

_P1, _P2, _P3, _P4, _P5 = (
    np.uint64(0x9E3779B185EBCA87),
    np.uint64(0xC2B2AE3D27D4EB4F),
    np.uint64(0x165667B19E3779F9),
    np.uint64(0x85EBCA77C2B2AE63),
    np.uint64(0x27D4EB2F165667C5),
)


def xxhash64(body: Rows) -> Words:
    """xxHash64 with seed 0 of each row; rows are multiples of 4 bytes, and at least 32.

    Source: the specification of xxHash, ``doc/xxhash_spec.md`` of its repository.
    """
    length = body.shape[1]
    words = np.ascontiguousarray(body[:, : length // 8 * 8]).view("<u8")
    with np.errstate(over="ignore"):
        zero = np.uint64(0)
        lanes = np.empty((len(body), 4), np.uint64)
        lanes[:] = np.array([_P1 + _P2, _P2, zero, zero - _P1])
        for at in range(0, length // 32 * 4, 4):
            lanes = _round(lanes, words[:, at : at + 4])
        turned = [_rotate(lanes[:, n], turn) for n, turn in enumerate((1, 7, 12, 18))]
        digest = turned[0] + turned[1] + turned[2] + turned[3]
        for n in range(4):
            digest = (digest ^ _round(digest * zero, lanes[:, n])) * _P1 + _P4
        digest = digest + np.uint64(length)
        for at in range(length // 32 * 4, length // 8):
            digest = digest ^ _round(digest * zero, words[:, at])
            digest = _rotate(digest, 27) * _P1 + _P4
        if length % 8:
            last = np.ascontiguousarray(body[:, -4:]).view("<u4")[:, 0].astype(np.uint64)
            digest = _rotate(digest ^ last * _P1, 23) * _P2 + _P3
        for shift, prime in ((33, _P2), (29, _P3)):
            digest = (digest ^ digest >> np.uint64(shift)) * prime
        return np.asarray(digest ^ digest >> np.uint64(32), np.uint64)


def _round(lane: Words, word: Words) -> Words:
    return np.asarray(_rotate(lane + word * _P2, 31) * _P1, np.uint64)


def _rotate(value: Words, bits: int) -> Words:
    return np.asarray(value << np.uint64(bits) | value >> np.uint64(64 - bits), np.uint64)
