"""What a running module's rings give, and what they could not take."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from itertools import pairwise
from random import Random

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ring_memory import Memory

from cbtlab.writes import COLUMNS
from cbtlab.writes.live import Live
from cbtlab.writes.native import EVENT
from cbtlab.writes.order import missing

pytestmark = pytest.mark.skipif(platform.machine() != "x86_64", reason="reads only on x86_64")


@pytest.fixture
def memory() -> Iterator[Memory]:
    made = Memory(3, 8)
    yield made
    made.close()


def test_events_come_by_number_with_their_volume(memory: Memory) -> None:
    for ring in (0, 1, 0, 2, 1):
        memory.fill(ring, 1)
    with Live(memory.module) as live:
        frame = live.frame()
        assert live.frame().empty
    assert list(frame.columns) == list(COLUMNS)
    assert frame["seq"].tolist() == [1, 2, 3, 4, 5]
    # Nobody knows tracker 3: it was detached before it was met.
    volumes = ["physical", "snapshot", "physical", None, "snapshot"]
    assert frame["volume"].astype(object).replace({np.nan: None}).tolist() == volumes
    assert frame["time"].iloc[0] == pd.Timestamp(1_700_000_000_000_000_001)
    assert frame["offset"].tolist() == [4096 * seq for seq in range(1, 6)]


def test_what_was_dropped_is_told_exactly(memory: Memory) -> None:
    memory.fill(0, 11)  # 9 to 11 find no room
    memory.fill(1, 2)
    with Live(memory.module) as live:
        assert live.take()["seq"].tolist() == [*range(1, 9), 12, 13]
        assert live.gaps.tolist() == [[9, 11]]
        memory.fill(0, 10)  # 22, 23
        assert live.take()["seq"].tolist() == [*range(14, 22)]
        assert live.gaps.tolist() == [[9, 11], [22, 23]]
        memory.fill(1, 1)
        live.take()
        assert live.gaps.tolist() == [[9, 11], [22, 23]]
        assert live.dropped == 5
        assert live.gaps.dtype == np.uint64


def test_one_gap_over_two_batches_is_one(memory: Memory) -> None:
    memory.fill(0, 8)
    with Live(memory.module) as live:
        slow = memory.events(1)
        memory.fill(0, 2)  # 9 and 10: no room
        next(slow)  # from here on nothing is sure
        memory.fill(0, 2)  # 11 and 12
        assert len(live.take()) == 8
        assert live.gaps.tolist() == [[9, 10]]
        for _ in range(4):
            next(slow)  # 13 is in
        assert live.take()["seq"].tolist() == [13]
        assert live.gaps.tolist() == [[9, 12]]


def test_a_reader_counts_from_what_it_meets(memory: Memory) -> None:
    memory.fill(0, 5)
    with Live(memory.module) as live:
        live.take()
    memory.fill(1, 2)
    with Live(memory.module) as live:
        assert live.take()["seq"].tolist() == [6, 7]
        assert len(live.gaps) == 0


def test_an_array_outlives_the_rings(memory: Memory) -> None:
    memory.fill(0, 3)
    with Live(memory.module) as live:
        events = live.take()
        memory.fill(0, 8)
    assert events.dtype == EVENT
    assert events["seq"].tolist() == [1, 2, 3]


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 3), st.randoms())
def test_events_and_gaps_are_all_numbers(rings: int, random: Random) -> None:
    memory = Memory(rings, 4)
    producers = [memory.events(ring) for ring in range(rings)]
    taken: list[int] = []
    with Live(memory.module) as live:
        for _ in range(random.randrange(1, 12)):
            for _ in range(random.randrange(40)):
                next(random.choice(producers))
            taken += live.take()["seq"].tolist()
        for ring, producer in enumerate(producers):
            while memory.get(64 + 64 * ring + 8):
                next(producer)
        while len(more := live.take()):
            taken += more["seq"].tolist()
        gone = [n for first, last in live.gaps.tolist() for n in range(first, last + 1)]
    first = min([*taken, memory.get(0)])
    assert taken == sorted(n for n in memory.put if n >= first)
    assert gone == sorted(n for n in memory.dropped if n >= first)
    assert all(a[1] + 1 < b[0] for a, b in pairwise(live.gaps.tolist()))
    memory.close()


def test_missing_numbers() -> None:
    def ranges(seq: list[int], first: int, below: int) -> list[list[int]]:
        return missing(np.array(seq, np.uint64), first, below).tolist()

    assert ranges([], 5, 5) == []
    assert ranges([], 5, 9) == [[5, 8]]
    assert ranges([5, 6, 7], 5, 8) == []
    assert ranges([3, 4, 8], 1, 10) == [[1, 2], [5, 7], [9, 9]]
