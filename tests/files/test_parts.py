"""The small parts of the file map, each by itself: names, ranges, holes, checksums, reads."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from cbtlab.files import names
from cbtlab.files.checksum import crc16, crc32c
from cbtlab.files.extents import DATA, HOLE, Extents, holes
from cbtlab.files.ranges import Ranges
from cbtlab.files.volume import Volume

pairs = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 9)), max_size=20)


@given(st.binary(max_size=40))
def test_a_name_as_text_leads_back_to_its_bytes(raw: bytes) -> None:
    assert names.raw(names.text(raw)) == raw
    names.text(raw).encode()  # and has no lone surrogates


def test_names_as_text() -> None:
    assert names.text(b"caf\xc3\xa9") == "café"
    assert names.text(b"bad\xff") == "bad\\xff"
    assert names.text(b"bad\\xff") == "bad\\x5cxff"
    assert names.text(b"back\\slash") == "back\\slash"
    assert names.text(b"\xed\xa0\x80") == "\\xed\\xa0\\x80"


@given(pairs)
def test_a_union_covers_the_same(ranges: list[tuple[int, int]]) -> None:
    start, length = (np.array([r[n] for r in ranges], np.int64) for n in (0, 1))
    union = Ranges.union(start, length)
    covered = {at for begin, many in ranges for at in range(begin, begin + many)}
    assert {at for begin, end in union.pairs() for at in range(begin, end)} == covered
    assert (union.start[1:] > union.end[:-1]).all()


@given(pairs, pairs)
def test_clipping_is_the_intersection(ranges: list, cuts: list) -> None:
    start, length = (np.array([r[n] for r in ranges], np.int64) for n in (0, 1))
    low, many = (np.array([r[n] for r in cuts], np.int64) for n in (0, 1))
    which, begin, end = Ranges.union(start, length).clipped(low, low + many)
    covered = {at for s, n in ranges for at in range(s, s + n)}
    found: dict[int, set[int]] = {}
    for row, first, last in zip(which.tolist(), begin.tolist(), end.tolist(), strict=True):
        found.setdefault(row, set()).update(range(first, last))
    for row, (s, n) in enumerate(cuts):
        assert found.get(row, set()) == covered & set(range(s, s + n))


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 5)), max_size=12), st.integers(0, 50))
def test_holes_are_what_no_extent_covers(steps: list[tuple[bool, int]], size: int) -> None:
    at, parts, covered = 0, [], set()
    for is_data, many in steps:
        if is_data:
            parts.append(Extents.of([7], DATA, at, 100 + at, many))
            covered |= set(range(at, at + many))
        at += many
    everything = Extents.join([*parts, Extents.of([9], DATA, 2, 500, 3)]).ordered()
    found = holes(everything, np.array([7, 9], np.int64), np.array([size, 5], np.int64))
    assert set(found.kind.tolist()) <= {HOLE}
    for inode, data, end in ((7, covered, size), (9, {2, 3, 4}, 5)):
        rows = found.ordered().rows_of(inode)
        mine = [
            place
            for start, many in zip(rows.logical.tolist(), rows.length.tolist(), strict=True)
            for place in range(start, start + many)
        ]
        assert mine == sorted(set(range(end)) - data)


def test_merging_joins_only_what_continues() -> None:
    rows = Extents.of([1, 1, 1, 2], DATA, [0, 2, 4, 6], [10, 12, 20, 22], [2, 2, 2, 2]).merged()
    assert rows.length.tolist() == [4, 2, 2]
    assert rows.logical.tolist() == [0, 4, 6]


def test_checksums() -> None:
    # "123456789": CRC-32C is e3069283 when inverted at the end, CRC-16/MODBUS is 4b37.
    rows = np.frombuffer(b"123456789" * 2, np.uint8).reshape(2, 9)
    assert (crc32c(rows) ^ 0xFFFFFFFF).tolist() == [0xE3069283] * 2
    assert crc16(rows).tolist() == [0x4B37] * 2
    assert crc32c(rows, np.array([0xFFFFFFFF, 0], np.uint32))[1] != crc32c(rows)[1]


class Pattern:
    """Block ``n`` of 512 bytes holds ``n``; counts its reads."""

    size, name, reads = 512 * 100_000, "pattern", 0

    def read(self, offset: int, length: int) -> bytes:
        self.reads += 1
        numbers = np.arange(offset // 512, (offset + length) // 512, dtype="<u4")
        return np.repeat(numbers, 128).tobytes()


@given(st.lists(st.integers(0, 99_999), max_size=50))
def test_blocks_come_in_the_order_asked(numbers: list[int]) -> None:
    rows = Volume(Pattern()).blocks(np.array(numbers, np.int64), 512)
    assert rows.view("<u4")[:, 5].tolist() == numbers


def test_neighbouring_blocks_are_read_together() -> None:
    image = Pattern()
    rows = Volume(image).blocks(np.arange(50_000)[::-1].copy(), 512)
    assert rows.view("<u4")[:, 0].tolist() == list(range(50_000))[::-1]
    assert image.reads == 4  # 8 MiB each
