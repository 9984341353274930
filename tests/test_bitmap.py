"""Bitmap against the obvious version: a set of block numbers."""

from __future__ import annotations

import pickle
from collections.abc import Iterable

import numpy as np
import pytest
from bitarray import bitarray
from hypothesis import given
from hypothesis import strategies as st

from cbtlab import bits
from cbtlab.bitmap import Bitmap
from cbtlab.errors import InputError

GRAINS = st.sampled_from([512, 1024, 4096, 32768, 1 << 20])
SIZES = st.integers(0, 700).map(lambda sectors: sectors * 512) | st.integers(0, 300_000)
DTYPES = st.sampled_from(["int64", "uint64", "int32", "uint32"])

Ranges = list[tuple[int, int]]


@st.composite
def volumes(draw: st.DrawFn) -> tuple[int, int, Ranges]:
    """A volume's size, a granularity, and ranges within the volume."""
    size, grain = draw(SIZES), draw(GRAINS)
    offsets = st.integers(0, size) | st.integers(0, size // 512).map(lambda n: n * 512)
    begins = draw(st.lists(offsets, max_size=30))
    ranges = [(begin, draw(st.integers(0, size - begin))) for begin in begins]
    return size, grain, ranges


def touched(ranges: Ranges, grain: int) -> set[int]:
    return {
        block
        for offset, length in ranges
        if length
        for block in range(offset // grain, (offset + length - 1) // grain + 1)
    }


def covered(ranges: Ranges, size: int, grain: int) -> set[int]:
    return {
        block
        for offset, length in ranges
        for block in touched([(offset, length)], grain)
        if offset <= block * grain and min((block + 1) * grain, size) <= offset + length
    }


def columns(ranges: Ranges, dtype: str = "uint64") -> tuple[np.ndarray, np.ndarray]:
    array = np.array(ranges, dtype=dtype).reshape(-1, 2)
    return array[:, 0], array[:, 1]


def of(blocks: Iterable[int], size: int, grain: int) -> Bitmap:
    return Bitmap.from_indices(sorted(blocks), size, grain)


def marks(bitmap: Bitmap) -> set[int]:
    """The marked blocks, read from bitarray alone."""
    return {n for n in range(bitmap.blocks) if bitmap.bits[n]}


@given(volumes(), DTYPES, st.sampled_from([1, 3, 1 << 14]), st.sampled_from([0, 2, 16]))
def test_ranges_equal_a_set_of_numbers(volume, dtype, chunk, long):
    size, grain, ranges = volume
    offset, length = columns(ranges, dtype)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bits, "CHUNK", chunk)
        patch.setattr(bits, "LONG", long)
        outward = Bitmap.from_ranges(offset, length, volume_size=size, granularity=grain)
        inward = Bitmap.from_ranges(
            offset, length, volume_size=size, granularity=grain, inward=True
        )
    assert marks(outward) == touched(ranges, grain)
    assert marks(inward) == covered(ranges, size, grain)


@pytest.mark.parametrize("kept", [0, 3, 1 << 20])
def test_many_long_ranges_equal_a_difference_array(monkeypatch, kept):
    monkeypatch.setattr(bits, "KEPT", kept)
    monkeypatch.setattr(bits, "CHUNK", 64)
    random = np.random.default_rng(7)
    blocks = 100_003
    first = random.integers(0, blocks, 3000)
    count = np.minimum(random.integers(1, 600, first.size), blocks - first)
    made = Bitmap.from_ranges(first * 512, count * 512, volume_size=blocks * 512, granularity=512)
    step = np.zeros(blocks + 1, dtype=int)
    np.add.at(step, first, 1)
    np.add.at(step, first + count, -1)
    assert np.array_equal(made.to_bool(), step.cumsum()[:-1] > 0)


@given(volumes())
def test_reading_gives_back_what_was_set(volume):
    size, grain, ranges = volume
    blocks = touched(ranges, grain)
    bitmap = of(blocks, size, grain)
    same = (size, grain)
    assert bitmap.blocks == -(-size // grain)
    assert bitmap.indices().tolist() == sorted(blocks)
    assert bitmap.count() == len(blocks)
    assert bitmap.any() == bool(blocks)
    assert len(bitmap.to_bytes()) == -(-bitmap.blocks // 8)
    assert Bitmap.from_bytes(bitmap.to_bytes(), *same) == bitmap
    assert Bitmap.from_bool(bitmap.to_bool(), *same) == bitmap
    assert pickle.loads(pickle.dumps(bitmap)) == bitmap
    assert all((n in bitmap) == (n in blocks) for n in range(-1, bitmap.blocks + 1))


@given(volumes())
def test_extents_are_the_runs_clipped_to_the_volume(volume):
    size, grain, ranges = volume
    bitmap = of(touched(ranges, grain), size, grain)
    offset, length = bitmap.extents()
    assert Bitmap.from_ranges(offset, length, volume_size=size, granularity=grain) == bitmap
    assert offset.dtype == length.dtype == np.uint64
    ends = offset + length
    assert (length > 0).all() and (ends <= size).all()
    assert (offset[1:] > ends[:-1]).all(), "runs neither touch nor overlap"
    inside = sum(min((n + 1) * grain, size) - n * grain for n in marks(bitmap))
    assert int(length.sum()) == inside


@given(volumes(), GRAINS)
def test_other_granularities(volume, other):
    size, grain, ranges = volume
    blocks = touched(ranges, grain)
    bitmap = of(blocks, size, grain)
    sectors = {
        sector
        for block in blocks
        for sector in range(block * grain // 512, -(-min((block + 1) * grain, size) // 512))
    }
    ratio = other // 512
    everything = -(-size // 512)
    assert marks(bitmap.outward(other)) == {sector // ratio for sector in sectors}
    assert marks(bitmap.inward(other)) == {
        block
        for block in range(-(-size // other))
        if sectors.issuperset(range(block * ratio, min((block + 1) * ratio, everything)))
    }


@given(volumes(), st.data())
def test_operators_are_those_of_sets(volume, data):
    size, grain, ranges = volume
    one = touched(ranges, grain)
    every = set(range(-(-size // grain)))
    two = data.draw(st.sets(st.sampled_from(sorted(every)))) if every else set()
    a, b = of(one, size, grain), of(two, size, grain)
    assert marks(a | b) == one | two
    assert marks(a & b) == one & two
    assert marks(a - b) == one - two
    assert marks(a ^ b) == one ^ two
    assert marks(~a) == every - one
    assert ~~a == a
    assert a.issubset(b) == (one <= two)
    assert (a == b) == (one == two)
    assert Bitmap.full(size, grain) == ~Bitmap(size, grain)
    assert (a.copy() == a) and (a.copy() is not a)


def test_layout_is_lowest_bit_first():
    bitmap = Bitmap.from_indices([0, 9, 10], 11 * 512, 512)
    assert bitmap.to_bytes() == bytes([1, 6])
    assert bitmap.bits.endian == "little" or bitmap.bits.endian() == "little"
    assert isinstance(bitmap.bits, bitarray)


def test_bits_and_numpy_share_memory_and_cannot_part():
    bitmap = Bitmap(4096, 512)
    bitmap.bits[3] = 1
    assert bitmap.indices().tolist() == [3]
    with pytest.raises(BufferError):
        bitmap.bits.append(1)


def test_empty_volume():
    bitmap = Bitmap(0, 512)
    assert bitmap.blocks == 0 and not bitmap.any() and bitmap.to_bytes() == b""
    assert Bitmap.from_bytes(b"", 0, 512) == ~bitmap == bitmap.outward(4096).outward(512)
    assert bitmap.extents()[0].size == 0
    assert not Bitmap.from_ranges([0], [0], volume_size=0, granularity=512).any()


def test_empty_ranges_of_any_kind():
    for nothing in ([], np.array([], dtype=float), np.array([], dtype=np.int8)):
        assert not Bitmap.from_ranges(nothing, nothing, volume_size=512, granularity=512).any()


BIG = 1 << 64


@pytest.mark.parametrize(
    ("offset", "length"),
    [
        ([4096], [1]),
        ([0], [4097]),
        ([4095], [2]),
        ([-1], [1]),
        ([0], [-1]),
        ([512, -512], [512, 512]),
        ([BIG - 1], [1]),
        ([BIG - 512], [1024]),
        ([512], [BIG - 512]),
        ([1], [BIG - 1]),
        ([BIG], [1]),
        ([1 << 63], [1 << 63]),
        ([0.0], [1.0]),
        ([0], [float("nan")]),
        (["0"], ["1"]),
        ([None], [1]),
        ([[0]], [[1]]),
        ([0, 1], [1]),
    ],
)
@pytest.mark.parametrize("inward", [False, True])
def test_ranges_outside_are_refused_not_wrapped(offset, length, inward):
    with pytest.raises(InputError) as caught:
        Bitmap.from_ranges(offset, length, volume_size=4096, granularity=512, inward=inward)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("size", "grain"),
    [
        *[(-1, 512), (1 << 63, 512), (4096, 0), (4096, -512), (4096, 256), (4096, 768)],
        *[(4096, 1 << 40), (4096.0, 512), (4096, 512.0), (True, 512), ("4096", 512)],
    ],
)
def test_impossible_geometry_is_refused(size, grain):
    with pytest.raises(InputError):
        Bitmap(size, grain)


def test_a_bitmap_larger_than_memory_is_refused():
    with pytest.raises(InputError, match="memory"):
        Bitmap((1 << 62) - 512, 512)


@pytest.mark.parametrize("data", [b"", b"\0", b"\0\0\0", b"\0\x08", b"\0\xff"])
def test_bytes_of_another_volume_are_refused(data):
    with pytest.raises(InputError, match=r"base\.bits"):
        Bitmap.from_bytes(data, 11 * 512, 512, "base.bits")


@pytest.mark.parametrize("blocks", [[8], [-1], [BIG], [0.5]])
def test_numbers_outside_are_refused(blocks):
    with pytest.raises(InputError):
        Bitmap.from_indices(blocks, 4096, 512)


def test_a_mask_of_another_length_is_refused():
    with pytest.raises(InputError):
        Bitmap.from_bool(np.zeros(9, dtype=bool), 4096, 512)


def test_bitmaps_of_different_geometry_do_not_combine():
    one = Bitmap(4096, 512)
    for other in (Bitmap(4096, 1024), Bitmap(4097, 512), Bitmap(8192, 512)):
        assert one != other
        with pytest.raises(InputError):
            _ = one | other
        with pytest.raises(InputError):
            one.issubset(other)


def test_shows_itself_in_a_notebook():
    bitmap = Bitmap.from_indices([1, 2, 5], 4096, 512)
    assert "3 of 8" in repr(bitmap)
    assert "3 of 8" in bitmap._repr_html_() and "2 runs" in bitmap._repr_html_()


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 255)), max_size=200))
def test_masks_for_one_byte_all_arrive(masks):
    packed = np.zeros(41, dtype=np.uint8)
    expected = packed.copy()
    for byte, mask in masks:
        expected[byte] |= mask
    byte = np.array([m[0] for m in masks], dtype=np.int64)
    bits._or_masks(packed, byte, np.array([m[1] for m in masks], dtype=np.uint8))
    assert np.array_equal(packed, expected)
