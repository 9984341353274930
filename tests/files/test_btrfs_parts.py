"""The pieces of the btrfs reader that can be tried alone: checksums, LZO, names, hashes."""

from __future__ import annotations

import contextlib
import random
from pathlib import Path

import btrfs_images as btrfs
import numpy as np
import pytest

from cbtlab.files.btrfs import lzo
from cbtlab.files.btrfs.checksum import KINDS, right, sealed, xxhash64
from cbtlab.files.btrfs.items import name_hashes
from cbtlab.files.checksum import crc32c


def as_rows(*rows: bytes) -> np.ndarray:
    return np.frombuffer(b"".join(rows), np.uint8).reshape(len(rows), -1)


@pytest.mark.parametrize("kind", range(len(KINDS)))
@pytest.mark.parametrize("size", [4096, 16384])
def test_a_checksum_tells_every_changed_bit(kind: int, size: int) -> None:
    rng = random.Random(size)
    row = sealed(rng.randbytes(size), kind)
    assert right(as_rows(row, row), kind).all()
    for _ in range(20):
        bad = bytearray(row)
        bad[32 + rng.randrange(size - 32)] ^= 1 << rng.randrange(8)
        assert right(as_rows(bytes(bad), row), kind).tolist() == [False, True]


def test_crc32c_in_parts_is_crc32c() -> None:
    row = random.Random(1).randbytes(4096)
    plain = ~int(crc32c(as_rows(row[32:]))[0]) & 0xFFFFFFFF
    assert int.from_bytes(sealed(row, 0)[:4], "little") == plain
    known = as_rows(b"123456789")  # the check value in catalogues of CRCs
    assert ~int(crc32c(known)[0]) & 0xFFFFFFFF == 0xE3069283


def test_xxhash64() -> None:
    """Values from the program xxh64sum."""
    data = bytes(range(256)) * 16
    assert int(xxhash64(as_rows(data))[0]) == 0x0F6E64BE186AF6A4
    assert int(xxhash64(as_rows(data[:4092]))[0]) == 0x97509BF30E4B6738


@btrfs.needs_btrfs
@pytest.mark.parametrize("kind", ["crc32c", "xxhash", "sha256", "blake2"])
def test_checksums_are_those_of_mkfs(tmp_path: Path, kind: str) -> None:
    path = btrfs.make(tmp_path / "a.img", 110 * btrfs.MIB, "--csum", kind)
    data = btrfs.private(path)
    number = data[(64 << 10) + 0xC4]
    assert KINDS[number].startswith(kind)
    for block, places in btrfs.Blocks(path, 16384).places.items():
        for place in places:
            assert right(as_rows(data[place : place + 16384]), number).all(), block


def test_the_hash_of_a_name() -> None:
    """Values that btrfs-progs print as offsets of the keys of these names."""
    flat = np.frombuffer(b"defaultx", np.uint8)
    assert name_hashes(flat, np.array([0]), np.array([7])).tolist() == [2378154706]


def test_lzo_streams() -> None:
    end = b"\x11\0\0"
    assert lzo.decode(bytes([17 + 5]) + b"hello" + end, 100) == b"hello"
    # Five new bytes, then a copy of 8 from 5 before, which runs into itself.
    assert lzo.decode(bytes([22]) + b"abcde" + bytes([0x20 | 6, 4 << 2, 0]) + end, 100) == (
        b"abcdeabcdeabc"
    )


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x20",
        bytes([22]) + b"abc",
        bytes([22]) + b"abcde" + bytes([0x26, 0xFF, 0xFF]),
        bytes([0x20]) + bytes(1000),
        bytes([22]) + b"abcde" + bytes([0x20, 0, 0, 0, 0, 255, 16, 0]),
    ],
)
def test_lzo_streams_that_are_damaged(data: bytes) -> None:
    with pytest.raises(lzo.DamagedError):
        lzo.decode(data, 4096)


def test_random_lzo_streams_end() -> None:
    rng = random.Random(3)
    for _ in range(2000):
        data = rng.randbytes(rng.randrange(60))
        packed = (len(data) + 8).to_bytes(4, "little") + len(data).to_bytes(4, "little") + data
        with contextlib.suppress(lzo.DamagedError):
            assert len(lzo.unpack(packed, 131072, 4096)) <= 4096
