"""The plan against sets of sectors, and the names of what need not have been stored."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cbtlab.bitmap import Bitmap
from cbtlab.errors import InputError
from cbtlab.plan import POLICIES, SURPLUS, Plan, held, plan, surplus_names
from cbtlab.writes.rows import Rows

K = 1024
SIZE = 64 * K


def blocks(numbers, granularity=4 * K, size=SIZE) -> Bitmap:
    return Bitmap.from_indices(list(numbers), size, granularity)


def numbers(bitmap: Bitmap) -> list[int]:
    return bitmap.indices().tolist()


def sectors(bitmap: Bitmap) -> set[int]:
    return set(numbers(bitmap.outward(512)))


@st.composite
def decisions(draw: st.DrawFn) -> tuple[Bitmap, Bitmap, Bitmap, int]:
    """M_k, H_k and H_j at resolutions of their own, and a unit."""
    size = draw(st.integers(1, 80)) * 512
    grain = draw(st.sampled_from([512, 1024, 4096]))
    unit = draw(st.sampled_from([u for u in (512, 1024, 2048, 4096, 8192) if u >= grain]))

    def some(granularity: int) -> Bitmap:
        count = -(-size // granularity)
        chosen = draw(st.lists(st.booleans(), min_size=count, max_size=count))
        return Bitmap.from_bool(np.array(chosen), size, granularity)

    resolutions = st.sampled_from([512, 1024, 4096, 16384])
    return some(grain), some(draw(resolutions)), some(draw(resolutions)), unit


@given(decisions())
def test_sets_of_sectors_decide_the_same(decision):
    master, mask, base_mask, unit = decision
    made = plan(2, master, mask, 1, base_mask, unit)
    marked, here, before = sectors(master), sectors(mask), sectors(base_mask)
    copied, zeroed, joined = set(), set(), set()
    for number in range(-(-master.volume_size // unit)):
        inside = set(range(number * unit // 512, (number + 1) * unit // 512))
        if inside & here:
            if inside & marked or inside & here != inside & before:
                copied.add(number)
            if not inside & marked and inside & here != inside & before:
                joined.add(number)
        elif inside & before:
            zeroed.add(number)
    assert set(numbers(made.copied)) == copied
    assert set(numbers(made.zeroed)) == zeroed
    assert set(numbers(made.joined)) == joined
    assert made.copied.granularity == made.zeroed.granularity == made.joined.granularity == unit


@given(decisions())
def test_a_full_stores_all_that_is_held(decision):
    master, mask, _, unit = decision
    made = plan(0, master, mask, None, None, unit)
    assert made.kind == "full" and made.reason and made.base is None
    assert made.copied == mask.outward(unit)
    assert made.master == Bitmap.full(master.volume_size, master.granularity)
    assert not made.zeroed.any() and not made.joined.any()


def test_a_later_full_says_why():
    made = plan(3, blocks([]), blocks([1]), None, None, 4 * K, reason="torn bitmap")
    assert (made.kind, made.reason, numbers(made.copied)) == ("full", "torn bitmap", [1])


def test_masks_that_round_to_the_same_units_still_differ():
    """Two masks of 1 KiB blocks, one unit: as rounded masks they are equal."""
    made = plan(1, blocks([]), blocks([0], K), 0, blocks([1], K), 4 * K)
    assert numbers(made.copied) == numbers(made.joined) == [0]


def test_a_unit_that_lost_some_of_its_held_blocks_is_stored_again():
    made = plan(1, blocks([]), blocks([0], K), 0, blocks([0, 1], K), 4 * K)
    assert numbers(made.copied) == [0] and numbers(made.zeroed) == []


def test_masks_coarser_than_the_unit_decide_each_unit():
    made = plan(1, blocks([2], 512), blocks([0], 4 * K), 0, blocks([0, 1], 4 * K), 512)
    assert numbers(made.copied) == [2]
    assert numbers(made.zeroed) == list(range(8, 16))


def test_a_mask_whose_resolution_changed_compares_by_bytes():
    made = plan(1, blocks([]), blocks([0, 1, 2, 3], K), 0, blocks([0], 4 * K), 4 * K)
    assert not made.copied.any() and not made.zeroed.any()


def test_every_decision_has_its_word():
    made = plan(1, blocks([0, 5]), blocks([0, 1]), 0, blocks([0, 1, 2]), 4 * K)
    words = [made.decision(n) for n in range(5)]
    assert words == ["copied", "unchanged", "zeroed", "not held", "not held"]
    assert made.decision(5) == "not held"
    for outside in (-1, 16):
        with pytest.raises(InputError):
            made.decision(outside)


def test_policies():
    in_use, excluded = blocks([0, 1, 4]), blocks([2, 3])

    def of(policy, used=in_use, less=excluded) -> Bitmap:
        return held(policy, used, less, volume_size=SIZE, granularity=4 * K)

    assert of("allocated") == in_use
    assert of("extents") == ~excluded
    assert of("union") == of("extents", less=None) == Bitmap.full(SIZE, 4 * K)
    assert all(in_use.issubset(of(policy)) for policy in POLICIES)
    with pytest.raises(InputError):
        of("everything")
    with pytest.raises(InputError):
        of("allocated", used=None)
    with pytest.raises(InputError):
        held("allocated", in_use, None, volume_size=SIZE * 2, granularity=4 * K)


@pytest.mark.parametrize(
    "call",
    [
        lambda: plan(1, blocks([]), blocks([]), 0, blocks([]), 512),
        lambda: plan(1, blocks([]), blocks([]), 0, None, 4 * K),
        lambda: plan(1, blocks([]), blocks([]), None, blocks([]), 4 * K),
        lambda: plan(1, blocks([]), blocks([]), 1, blocks([]), 4 * K),
        lambda: plan(1, blocks([]), blocks([], size=SIZE + 512), 0, blocks([]), 4 * K),
        lambda: plan(1, blocks([]), blocks([]), 0, blocks([], size=512), 4 * K),
        lambda: plan(1, blocks([]), blocks([]), 0, blocks([]), 6000),
    ],
)
def test_what_does_not_fit_is_refused(call):
    with pytest.raises(InputError):
        call()


# The names of the surplus -----------------------------------------------------------------------


def rows(*each: tuple[int, int, str]) -> Rows:
    """Rows of (offset, length, marks), with ``o`` for overlap and ``d`` for discard."""
    return Rows(
        np.array([r[0] for r in each], dtype=np.uint64),
        np.array([r[1] for r in each], dtype=np.uint64),
        np.array(["o" in r[2] for r in each], dtype=bool),
        np.array(["d" in r[2] for r in each], dtype=bool),
    )


def planned(operations: Rows, mask: Bitmap, before: Bitmap, grain: int, unit: int) -> Plan:
    master = Bitmap.from_ranges(
        operations.offset, operations.length, volume_size=SIZE, granularity=grain
    )
    return plan(1, master, mask, 0, before, unit)


def names_of(made: Plan, operations: Rows | None, differs: Bitmap | None = None) -> dict:
    given_names = surplus_names(
        made, differs or Bitmap(made.copied.volume_size, made.unit), operations
    )
    return {name: numbers(units) for name, units in given_names.items() if units.any()}


def test_joined_comes_from_the_masks():
    made = planned(rows(), blocks([3]), blocks([]), 4 * K, 4 * K)
    assert names_of(made, rows()) == {"joined": [3]}


def test_neighbour_lies_in_the_unit_of_what_is_held():
    operations = rows((K, K, ""))
    made = planned(operations, blocks([0], K), blocks([0], K), K, 4 * K)
    assert names_of(made, operations) == {"neighbour": [0]}
    assert names_of(made, None) == {"neighbour": [0]}


def test_overlap_is_only_what_was_marked_twice():
    operations = rows((0, 4 * K, "o"), (4 * K, 4 * K, "o"), (4 * K, 4 * K, ""))
    made = planned(operations, blocks([0, 1]), blocks([0, 1]), 4 * K, 4 * K)
    assert names_of(made, operations) == {"overlap": [0], "same_bytes": [1]}


def test_discarded_is_only_what_no_write_reached():
    operations = rows((0, 8 * K, "d"), (4 * K, 512, ""))
    made = planned(operations, blocks([0, 1]), blocks([0, 1]), 4 * K, 4 * K)
    assert names_of(made, operations) == {"discarded": [0], "same_bytes": [1]}


def test_a_discard_marked_twice_is_an_overlap():
    operations = rows((0, 4 * K, "od"))
    made = planned(operations, blocks([0]), blocks([0]), 4 * K, 4 * K)
    assert names_of(made, operations) == {"overlap": [0]}


def test_rounding_is_a_block_coarser_than_the_mask():
    """The write lies beside the held 1 KiB; the tracker's 4 KiB block has both."""
    operations = rows((K, K, ""))
    made = planned(operations, blocks([0], K), blocks([0], K), 4 * K, 4 * K)
    assert names_of(made, operations) == {"rounding": [0]}
    operations = rows((K - 512, K, ""))
    made = planned(operations, blocks([0], K), blocks([0], K), 4 * K, 4 * K)
    assert names_of(made, operations) == {"same_bytes": [0]}


def test_without_sequences_nobody_can_tell():
    operations = rows((0, 4 * K, "o"), (4 * K, 4 * K, "d"))
    made = planned(operations, blocks([0, 1, 2]), blocks([0, 1]), 4 * K, 4 * K)
    assert names_of(made, None) == {"joined": [2], "same_bytes": [0, 1]}


def test_a_mark_that_no_row_explains_keeps_the_finer_names_away():
    seen = rows((0, 4 * K, "d"), (4 * K, 4 * K, "d"), (12 * K, 4 * K, "d"))
    every = rows((0, 12 * K, ""))
    made = planned(every, blocks([0, 1, 2]), blocks([0, 1, 2]), 4 * K, 8 * K)
    assert names_of(made, seen) == {"discarded": [0], "same_bytes": [1]}


def test_of_a_full_only_its_zeroes_are_surplus():
    made = plan(0, blocks([]), blocks([0, 1]), None, None, 4 * K)
    assert names_of(made, rows((0, 4 * K, "o")), blocks([1])) == {"same_bytes": [0]}


@given(decisions(), st.data())
def test_every_surplus_unit_has_exactly_one_name(decision, data):
    master, mask, base_mask, unit = decision
    made = plan(1, master, mask, 0, base_mask, unit)
    some = st.lists(st.booleans(), min_size=made.copied.blocks, max_size=made.copied.blocks)
    differs = Bitmap.from_bool(np.array(data.draw(some)), master.volume_size, unit)
    begin, length = master.extents()
    flags = st.lists(st.sampled_from(["", "o", "d", "od"]), min_size=begin.size)
    marked = data.draw(flags)
    ranges = zip(begin.tolist(), length.tolist(), marked, strict=False)
    operations = data.draw(st.sampled_from([rows(*ranges), rows(), None]))
    names = surplus_names(made, differs, operations)
    assert tuple(names) == SURPLUS
    total = Bitmap(master.volume_size, unit)
    for units in names.values():
        assert not (total & units).any()
        total = total | units
    assert total == made.copied - differs
