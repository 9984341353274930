"""``DataFrame.writes``: selection, bitmap and gaps, against the obvious slow way."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cbtlab.errors import InputError
from cbtlab.writes import normalize

ROW = st.tuples(
    st.sampled_from(["physical", "snapshot"]),
    st.integers(0, 3),
    st.booleans(),
    st.integers(0, 99),
    st.integers(1, 30),
    st.integers(0, 50),
)


def frame_of(rows: list[tuple[str, int, bool, int, int, int]]) -> pd.DataFrame:
    volume, interval, overlap, offset, length, time = zip(*rows, strict=True) if rows else ([],) * 6
    return normalize(
        pd.DataFrame(
            {
                "time": np.array(time, "datetime64[ns]"),
                "volume": list(volume),
                "interval": list(interval),
                "overlap": np.array(overlap, bool),
                "op": ["write"] * len(rows),
                "offset": np.array(offset, np.uint64) * np.uint64(512),
                "length": np.array(length, np.uint64) * np.uint64(512),
            }
        )
    )


@given(st.lists(ROW, max_size=20), st.integers(0, 3), st.integers(0, 50))
def test_the_bitmap_is_what_a_loop_over_bytes_gives(rows, interval, until) -> None:
    size, granularity = 130 * 512, 1024
    wanted = set()
    for volume, k, overlap, offset, length, time in rows:
        counts = k == interval or (overlap and k == interval - 1)
        if volume == "physical" and counts and time <= until:
            wanted |= {at // 2 for at in range(offset, offset + length)}
    bitmap = frame_of(rows).writes.bitmap(
        size,
        granularity,
        volume="physical",
        interval=interval,
        until=np.datetime64(until, "ns"),
    )
    assert set(bitmap.indices().tolist()) == wanted


@given(st.sets(st.integers(1, 60), min_size=2))
def test_the_gaps_are_the_numbers_that_are_not_there(numbers: set[int]) -> None:
    rows = frame_of([("physical", 0, False, 0, 1, 0)] * len(numbers))
    rows["seq"] = pd.array(sorted(numbers), "UInt64")
    missing = rows.sample(frac=1, random_state=1).writes.missing()
    found = {
        at
        for first, last in zip(missing["first"], missing["last"], strict=True)
        for at in range(first, last + 1)
    }
    assert found == set(range(min(numbers), max(numbers))) - numbers
    assert int(missing["count"].sum()) == len(found)


def test_a_number_that_stands_twice_is_refused() -> None:
    rows = frame_of([("physical", 0, False, 0, 1, 0)] * 2)
    rows["seq"] = pd.array([3, 3], "UInt64")
    with pytest.raises(InputError, match="3 stands twice"):
        rows.writes.missing()


def test_other_frames_have_no_such_accessor() -> None:
    with pytest.raises(AttributeError, match="not a write sequence"):
        _ = pd.DataFrame({"a": [1]}).writes
