"""The searches beneath check 4, against the obvious slow way."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cbtlab.bitmap import Bitmap
from cbtlab.checks.pieces import SHORTEST, Search, repeats
from cbtlab.checks.sectors import fingerprints, patterned
from cbtlab.checks.streams import ZeroImage, inside, marks, read_ranges, table
from cbtlab.images import open_image


def image_of(folder: Path, data: bytes):  # type: ignore[no-untyped-def]
    (folder / "image.raw").write_bytes(data)
    return open_image(folder / "image.raw")


@given(st.data())
def test_every_piece_is_found_where_it_is(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    letters = st.binary(min_size=SHORTEST, max_size=64).map(lambda raw: bytes(b % 3 for b in raw))
    pieces = data.draw(st.lists(letters.filter(any), min_size=1, max_size=6, unique=True))
    disk = bytearray(8192)
    for piece in pieces:
        at = data.draw(st.integers(0, len(disk) - len(piece)))
        disk[at : at + len(piece)] = piece
    slow = {
        (at, n)
        for n, piece in enumerate(pieces)
        for at in range(len(disk))
        if disk.startswith(piece, at)
    }
    folder = tmp_path_factory.mktemp("disk")
    assert set(Search(pieces).find(image_of(folder, bytes(disk)))) == slow


def test_a_piece_across_two_chunks_is_found_once(tmp_path: Path) -> None:
    disk = bytearray(9 << 20)
    piece = b"found across the edge of a chunk"
    for at in ((4 << 20) - 5, (8 << 20) - len(piece), 77):
        disk[at : at + len(piece)] = piece
    found = sorted(Search([piece]).find(image_of(tmp_path, bytes(disk))))
    assert found == [(77, 0), ((4 << 20) - 5, 0), ((8 << 20) - len(piece), 0)]


@pytest.mark.parametrize(
    ("piece", "expected"),
    [(b"aaaaaaaa", True), (b"abcabcab", True), (b"abcabcax", False), (b"0123456789", False)],
)
def test_what_repeats(piece: bytes, expected: bool) -> None:
    assert repeats(piece) is expected


def test_patterned_sectors() -> None:
    rng = np.random.default_rng(1)
    rows = np.stack(
        [
            np.zeros(512, np.uint8),
            np.resize(np.frombuffer(b"abc", np.uint8), 512),
            np.resize(rng.integers(0, 256, 64, np.uint8), 512),
            np.resize(rng.integers(0, 256, 65, np.uint8), 512),
            rng.integers(0, 256, 512, np.uint8),
        ]
    )
    broken = rows[1].copy()
    broken[511] ^= 1
    found = patterned(np.vstack([rows, broken]))
    assert found.tolist() == [True, True, True, False, False, False]


def test_fingerprints_tell_sectors_apart() -> None:
    rng = np.random.default_rng(2)
    one = rng.integers(0, 256, (2000, 512), np.uint8)
    keys = fingerprints(one)
    assert len(np.unique(keys)) == len(one)
    other = one.copy()
    other[np.arange(2000), rng.integers(0, 512, 2000)] ^= 1
    assert (fingerprints(other) != keys).all()
    assert fingerprints(np.zeros((1, 512), np.uint8)).tolist() == [0]


@given(
    st.integers(1, 40), st.sampled_from([512, 1024, 4096]), st.sampled_from([512, 1024]), st.data()
)
def test_marks_are_the_bitmaps(
    sectors: int, granularity: int, fine: int, data: st.DataObject
) -> None:
    fine = min(fine, granularity)
    size = sectors * 512
    blocks = -(-size // granularity)
    chosen = np.array(data.draw(st.lists(st.booleans(), min_size=blocks, max_size=blocks)), bool)
    bitmap = Bitmap.from_bool(chosen, size, granularity)
    first = data.draw(st.integers(0, blocks - 1)) * granularity
    length = min(data.draw(st.integers(1, 5)) * granularity, size - first)
    slow = [chosen[at // granularity] for at in range(first, first + length, fine)]
    assert marks(bitmap, first, length, fine).tolist() == slow


def test_ranges_are_read_in_order_and_joined(tmp_path: Path) -> None:
    data = np.random.default_rng(3).integers(0, 256, 1 << 16, np.uint8).tobytes()
    start, length = np.array([4096, 0, 8192, 20_000]), np.array([4096, 512, 100, 1])
    with image_of(tmp_path, data) as image:
        found = [
            (offset, count, bytes(part) if part is not None else None)
            for offset, count, part in read_ranges(image, start, length)
        ]
    assert found == [
        (0, 512, data[:512]),
        (4096, 4196, data[4096:8292]),
        (20_000, 1, data[20_000:20_001]),
    ]


def test_points_inside_ranges() -> None:
    start, length = np.array([10, 20]), np.array([5, 1])
    points = np.array([9, 10, 14, 15, 20, 21])
    assert inside(points, start, length).tolist() == [False, True, True, False, True, False]
    assert inside(points, start[:0], length[:0]).tolist() == [False] * 6


def test_zeros_and_partial_rows() -> None:
    assert [data for _, data in ZeroImage(3 << 20).chunks(1 << 20)] == [None] * 3
    assert table(np.ones(700, np.uint8), 512).sum(axis=1).tolist() == [512, 188]
