"""Replay and merge over a small case in memory, against sets of blocks."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cbtlab.bitmap import Bitmap
from cbtlab.errors import InputError
from cbtlab.replay import Merged, Replay, merge, save
from cbtlab.writes import normalize

GRAIN = 512
BLOCKS = 24
SIZE = BLOCKS * GRAIN
EVERYTHING = set(range(BLOCKS))


@dataclass
class Interval:
    """What `cbtlab.case.Interval` offers to a replay, in memory."""

    k: int
    kept: bool = True
    base: int | None = None
    unusable: tuple[str, ...] = ()
    sequences: dict[str, pd.DataFrame] = field(default_factory=dict)
    bitmaps: dict[str, Bitmap] = field(default_factory=dict)

    def has(self, volume: str, kind: str) -> bool:
        return volume in (self.sequences if kind == "writes" else self.bitmaps)

    def iter_writes(self, volume: str, rows: int = 3) -> Iterator[pd.DataFrame]:
        frame = self.sequences.get(volume)
        if frame is not None:
            for start in range(0, max(len(frame), 1), rows):
                yield frame.iloc[start : start + rows]

    def bitmap(self, volume: str) -> Bitmap | None:
        return self.bitmaps.get(volume)


class Case:
    """A case in memory: each of ``thrown`` is a backup that was not kept."""

    volume_size, granularity, path = SIZE, GRAIN, "case"

    def __init__(self, backups: int, thrown: tuple[int, ...] = ()) -> None:
        self.intervals: list[Interval] = []
        base = None
        for k in range(backups):
            self.intervals.append(Interval(k, k not in thrown, base))
            base = base if k in thrown else k

    def interval(self, k: int) -> Interval:
        return self.intervals[k]

    def sequence(self, volume: str, k: int, *rows: dict[str, Any]) -> None:
        self.interval(k).sequences[volume] = sequence(*rows)

    def marks(self, volume: str, k: int, *blocks: int) -> None:
        self.interval(k).bitmaps[volume] = Bitmap.from_indices(list(blocks), SIZE, GRAIN)


def row(block: int, time: int = 0, seq: int | None = None, **more: Any) -> dict[str, Any]:
    defaults = {"op": "write", "overlap": False, "length": GRAIN}
    return {"offset": block * GRAIN, "time": time, "seq": seq, **defaults, **more}


def sequence(*rows: dict[str, Any]) -> pd.DataFrame:
    names = ["time", "seq", "op", "offset", "length", "overlap"]
    frame = pd.DataFrame(list(rows), columns=names).astype({"seq": "UInt64"})
    return normalize(frame.astype({"time": "datetime64[ns]"}))


def blocks(bitmap: Bitmap | None) -> set[int] | None:
    return None if bitmap is None else set(bitmap.indices().tolist())


def parts(merged: Merged) -> list[set[int] | None]:
    return [blocks(getattr(merged, n)) for n in ("physical", "snapshot", "carry", "master")]


# The merge --------------------------------------------------------------------------------------


def test_merge_has_physical_snapshot_and_carry():
    case = Case(3)
    case.sequence("snapshot", 0, row(0))
    case.sequence("physical", 1, row(1))
    case.sequence("snapshot", 1, row(2))
    case.sequence("physical", 2, row(3), row(4))
    case.sequence("snapshot", 2, row(5))
    replay = Replay(case)
    assert parts(replay.merged(0)) == [None, {0}, None, EVERYTHING]
    assert parts(replay.merged(1)) == [{1}, {2}, {0}, {0, 1, 2}]
    assert parts(replay.merged(2)) == [{3, 4}, {5}, {2}, {2, 3, 4, 5}]
    assert [replay.base(k) for k in range(3)] == [None, 0, 1]


def test_of_thrown_away_backups_the_physical_writes_count_and_the_deletes_do_not():
    case = Case(4, thrown=(1, 2))
    case.sequence("snapshot", 0, row(0))
    for k in (1, 2, 3):
        case.sequence("physical", k, row(k))
        case.sequence("snapshot", k, row(10 + k))
    assert parts(Replay(case).merged(3)) == [{1, 2, 3}, {13}, {0}, {0, 1, 2, 3, 13}]
    assert parts(Replay(case).merged(2)) == [{1, 2}, {12}, {0}, {0, 1, 2, 12}]


def test_a_snapshot_nobody_recorded_has_nothing_to_count():
    case = Case(2)
    case.sequence("physical", 1, row(1))
    assert parts(Replay(case).merged(1)) == [{1}, None, None, {1}]
    assert Replay(case).active("snapshot", 1).source == "none"


def test_trackers_bitmaps_are_preferred():
    case = Case(2)
    case.marks("snapshot", 0, 7)
    case.sequence("snapshot", 0, row(6))
    case.sequence("physical", 1, row(1))
    case.marks("physical", 1, 1, 2)
    case.sequence("snapshot", 1, row(3))
    replay = Replay(case)
    assert parts(replay.merged(1)) == [{1, 2}, {3}, {7}, {1, 2, 3, 7}]
    assert replay.active("physical", 1).source == "tracker"
    assert replay.active("snapshot", 1).source == "sequence"
    assert blocks(replay.replayed("physical", 1)) == {1}


@pytest.mark.parametrize("op", ["write", "write_zeroes", "discard", "secure_erase"])
def test_every_operation_marks_outward(op):
    case = Case(2)
    case.sequence("physical", 1, row(3, op=op, offset=3 * GRAIN + 1, length=GRAIN))
    assert blocks(Replay(case).merged(1).master) == {3, 4}


def test_overlap_counts_in_its_interval_and_in_the_next():
    case = Case(4)
    case.sequence("physical", 1, row(1), row(2, overlap=True))
    case.sequence("physical", 2, row(3))
    case.sequence("physical", 3, row(4))
    case.sequence("snapshot", 1, row(9, overlap=True))
    case.sequence("snapshot", 2)
    replay = Replay(case)
    assert [blocks(replay.replayed("physical", k)) for k in (1, 2, 3)] == [{1, 2}, {2, 3}, {4}]
    assert blocks(replay.replayed("snapshot", 2)) == set(), "snapshots have no next interval"


def test_merge_alone():
    one, two, three = (Bitmap.from_indices([n], SIZE, GRAIN) for n in (1, 2, 3))
    assert parts(merge([one, two], three, None)) == [{1, 2}, {3}, None, {1, 2, 3}]
    assert blocks(one) == {1}, "the parts are not changed"
    with pytest.raises(InputError):
        merge([], None, None)


# Time -------------------------------------------------------------------------------------------


def timed() -> Case:
    case = Case(3)
    case.sequence("snapshot", 0, row(0, 10), row(1, 90))
    case.sequence("physical", 1, row(2, 20), row(3, 21), row(4, 30, overlap=True))
    case.sequence("snapshot", 1, row(5, 31), row(6, 33))
    case.sequence("physical", 2, row(7, 32), row(8, 40))
    case.sequence("snapshot", 2, row(9, 41))
    return case


def test_until_is_inclusive_and_the_carry_is_whole():
    replay = Replay(timed())
    assert parts(replay.merged(1, until=19)) == [set(), set(), {0, 1}, {0, 1}]
    assert parts(replay.merged(1, until=20)) == [{2}, set(), {0, 1}, {0, 1, 2}]
    assert parts(replay.merged(1, until=31)) == [{2, 3, 4}, {5}, {0, 1}, {0, 1, 2, 3, 4, 5}]
    assert replay.merged(1, until=1000) == replay.merged(1)


@pytest.mark.parametrize(
    "instant",
    [
        20,
        np.datetime64(20, "ns"),
        pd.Timestamp(20),
        pd.Timestamp(20, tz="UTC").tz_convert("Asia/Tokyo"),
        "1970-01-01T00:00:00.000000020Z",
        "1970-01-01T02:00:00.000000020+02:00",
    ],
)
def test_an_instant_in_any_form(instant):
    assert blocks(Replay(timed()).merged(1, until=instant).physical) == {2}


@pytest.mark.parametrize("instant", ["soon", "2300-01-01", 1 << 70, float("nan"), None, pd.NaT])
def test_no_instant_is_refused(instant):
    with pytest.raises(InputError):
        Replay(timed()).at(instant)


def test_at_finds_the_interval():
    replay = Replay(timed())
    assert [replay.interval_at(t) for t in (0, 20, 31, 32, 99)] == [1, 1, 1, 2, 2]
    assert parts(replay.at(32)) == [{4, 7}, set(), {5, 6}, {4, 5, 6, 7}]
    assert parts(replay.at(32, k=1)) == parts(replay.merged(1, until=32))
    assert Replay(Case(1)).interval_at(5) == 0


def test_an_instant_needs_sequences_and_not_bitmaps():
    case = timed()
    case.marks("physical", 1, 20)
    assert blocks(Replay(case).merged(1, until=20).physical) == {2}
    del case.interval(1).sequences["physical"]
    assert 20 in Replay(case).merged(1).master
    with pytest.raises(InputError, match="no sequence"):
        Replay(case).merged(1, until=20)


@st.composite
def workloads(draw: st.DrawFn) -> tuple[Case, dict, int]:
    """A case of random writes, and (volume, k) to its (time, block, overlap)."""
    backups = draw(st.integers(1, 5))
    case = Case(backups, tuple(draw(st.sets(st.integers(0, backups - 1)))))
    each = st.tuples(st.integers(0, 9), st.integers(0, BLOCKS - 1), st.booleans())
    record = {}
    for k in range(backups):
        for volume in ("physical", "snapshot") if k else ("snapshot",):
            writes = [(10 * k + t, b, o) for t, b, o in draw(st.lists(each, max_size=7))]
            record[volume, k] = writes
            case.sequence(volume, k, *(row(b, t, overlap=o) for t, b, o in writes))
    return case, record, draw(st.integers(0, 60))


@settings(max_examples=40)
@given(workloads())
def test_replay_at_any_instant_equals_sets(workload):
    case, record, until = workload

    def expected(volume: str, k: int, last: int) -> set[int]:
        found = {b for t, b, _ in record.get((volume, k), []) if t <= last}
        if volume == "physical":
            found |= {b for t, b, o in record.get((volume, k - 1), []) if o and t <= last}
        return found

    replay = Replay(case)
    for k in range(len(case.intervals)):
        base = max((j for j in range(k) if case.interval(j).kept), default=None)
        for last, merged in ((999, replay.merged(k)), (until, replay.merged(k, until=until))):
            spanned = range(1 if base is None else base + 1, k + 1)
            physical = set().union(*(expected("physical", i, last) for i in spanned))
            carry = None if base is None else expected("snapshot", base, 999)
            assert blocks(merged.physical) == (physical if k else None)
            assert blocks(merged.snapshot) == expected("snapshot", k, last)
            assert blocks(merged.carry) == carry
            everything = physical | expected("snapshot", k, last) | (carry or set())
            assert blocks(merged.master) == (EVERYTHING if base is None else everything)


# What can be relied on --------------------------------------------------------------------------


def numbered(lost: tuple[int, ...] = (), backups: int = 4) -> Case:
    """Each interval: three events on the physical volume, then two on the snapshot."""
    case = Case(backups)
    seq = 0
    for k in range(backups):
        for volume, count in (("physical", 3 if k else 0), ("snapshot", 2)):
            numbers = range(seq + 1, seq + count + 1)
            seq += count
            if count:
                case.sequence(volume, k, *(row(n, n, n) for n in numbers if n not in lost))
    return case  # S_0: 1 2, P_1: 3 4 5, S_1: 6 7, P_2: 8 9 10, S_2: 11 12, P_3: 13 14 15, S_3 16


def unusable(case: Case) -> list[int]:
    replay = Replay(case)
    return [k for k in range(1, len(case.intervals)) if replay.usable(k)]


def test_without_a_gap_all_is_usable():
    replay = Replay(numbered())
    assert replay.gaps == [] and unusable(numbered()) == []
    assert replay.usable(0) == ["the first backup"]


@pytest.mark.parametrize(
    ("lost", "intervals"),
    [
        ((4,), [1]),  # between writes of P: that interval
        ((9,), [2]),
        ((5,), [1, 2]),  # before the first write on S_1: it may be of S_1, which 2 carries over
        ((8,), [1, 2]),  # behind the last write on S_1
        ((6, 7), [1, 2]),  # all of S_1: its sequence has no row left
        ((10, 11), [2, 3]),
        ((1,), []),  # the first number of a case is not known
        ((17,), []),  # nor is its last
    ],
)
def test_a_gap_makes_what_it_may_hide_unusable(lost, intervals):
    assert unusable(numbered(lost)) == intervals


def test_a_gap_within_a_concurrent_delete_may_be_of_either_volume():
    case = Case(3)
    case.sequence("snapshot", 0)
    case.sequence("physical", 1, row(1, 1, 1))
    case.sequence("snapshot", 1, row(2, 2, 2), row(6, 6, 6))
    case.sequence("physical", 2, row(3, 3, 3), row(5, 5, 5), row(7, 7, 7))
    case.sequence("snapshot", 2, row(8, 8, 8))
    (gap,) = Replay(case).gaps
    assert gap.hides == {("snapshot", 1), ("physical", 2)}
    assert (gap.first, gap.last, gap.count) == (4, 4, 1)
    assert gap.between(2) and not gap.between(1)


def test_a_gap_between_writes_on_the_snapshot_may_be_of_the_volume_in_use():
    """The volume in use is written at any time, not only next to its own numbers."""
    case = Case(3)
    case.sequence("physical", 1, row(1, 1, 1))
    case.sequence("snapshot", 1, row(2, 2, 2), row(4, 4, 4), row(5, 5, 5))
    case.sequence("physical", 2, row(6, 6, 6), row(7, 7, 7))
    (gap,) = Replay(case).gaps
    assert gap.hides == {("snapshot", 1), ("physical", 2)}


def test_a_snapshot_of_which_no_event_is_left():
    case = Case(3)
    case.sequence("physical", 1, row(1, 1, 1))
    case.sequence("snapshot", 1)
    case.sequence("physical", 2, row(2, 2, 2), row(7, 7, 7))
    (gap,) = Replay(case).gaps
    assert gap.hides == {("snapshot", 1), ("physical", 2)}


def test_an_unusable_link_is_full_and_says_why():
    replay = Replay(numbered((9,)))
    (reason,) = replay.usable(2)
    assert reason.startswith("interval 2: event 9 is missing")
    merged = replay.merged(2)
    assert blocks(merged.master) == EVERYTHING
    assert blocks(merged.physical) == {8, 10}, "what is known is still counted"


def test_the_trackers_bitmap_carries_over_a_gap():
    case = numbered((9,))
    case.marks("physical", 2, 8, 9, 10)
    assert unusable(case) == []
    assert len(Replay(case).gaps) == 1


def test_a_gap_in_a_thrown_away_interval_stays_until_the_next_link():
    case = numbered((9,))
    case.interval(2).kept, case.interval(3).base = False, 1
    assert unusable(case) == [2, 3]


def test_the_delete_of_a_thrown_away_backup_may_have_gaps():
    case = numbered((11,))
    for k in (1, 2, 3):
        case.marks("physical", k, k)
    assert unusable(case) == [2, 3]
    case.interval(2).kept, case.interval(3).base = False, 1
    assert unusable(case) == [2]


def test_sequences_without_numbers_have_no_gaps():
    case = Case(2)
    case.sequence("physical", 1, row(1), row(2))
    assert Replay(case).gaps == [] and unusable(case) == []


def test_numbers_of_one_volume_say_nothing_about_the_other():
    case = Case(2)
    case.sequence("snapshot", 0, row(1, 1))
    case.sequence("physical", 1, row(1, 2, 1), row(2, 3, 3))
    case.sequence("snapshot", 1, row(1, 4))
    (gap,) = Replay(case).gaps
    assert gap.hides == {("physical", 1)}


def test_sequences_that_each_count_for_themselves():
    case = Case(3)
    for volume, k in (("snapshot", 0), ("physical", 1), ("snapshot", 1), ("snapshot", 2)):
        case.sequence(volume, k, row(1, 1, 1), row(2, 2, 2))
    case.sequence("physical", 2, row(1, 1, 1), row(2, 2, 3))
    (gap,) = Replay(case).gaps
    assert gap.hides == {("physical", 2)} and unusable(case) == [2]


def test_numbers_up_to_the_end_of_64_bits():
    last = (1 << 64) - 1
    case = Case(2)
    case.sequence("physical", 1, row(1, 1, 0), row(2, 2, last - 1), row(3, 3, last))
    (gap,) = Replay(case).gaps
    assert (gap.first, gap.last, gap.count) == (1, last - 2, last - 2)
    case.sequence("physical", 1, row(1, 1, last), row(2, 2, last))
    assert Replay(case).gaps == []


@pytest.mark.parametrize(
    ("reason", "intervals"),
    [("torn bitmap", [2, 3]), ("physical: bypassed", [2]), ("snapshot: torn bitmap", [2, 3])],
)
def test_what_was_recorded_as_unusable(reason, intervals):
    case = numbered()
    case.interval(2).unusable = (reason,)
    assert unusable(case) == intervals
    assert reason in Replay(case).usable(2)[0]


def test_recorded_reasons_of_thrown_away_intervals():
    case = numbered()
    case.interval(2).kept, case.interval(3).base = False, 1
    case.interval(2).unusable = ("snapshot: torn bitmap",)
    assert unusable(case) == [2], "its delete is not needed"
    case.interval(2).unusable = ("physical: torn bitmap",)
    assert unusable(case) == [2, 3]


def test_nothing_recorded_of_the_physical_volume():
    case = Case(2)
    assert "nothing was recorded" in Replay(case).usable(1)[0]
    assert blocks(Replay(case).merged(1).master) == EVERYTHING


def test_no_backup_kept_before():
    case = Case(2, thrown=(0,))
    case.sequence("physical", 1, row(1))
    assert Replay(case).usable(1) == ["no earlier backup was kept"]


# Rows and files ---------------------------------------------------------------------------------


def test_rows_are_those_of_the_master_bitmap():
    case = timed()
    case.sequence("physical", 2, row(7, 32, op="discard"), row(8, 40, op="secure_erase"))
    rows = Replay(case).rows(2)
    assert rows is not None
    found = zip(rows.offset // GRAIN, rows.overlap, rows.discard, strict=True)
    assert sorted((int(b), bool(o), bool(d)) for b, o, d in found) == [
        (4, True, False),
        (5, False, False),
        (6, False, False),
        (7, False, True),
        (8, False, True),
        (9, False, False),
    ]
    assert Replay(Case(1)).rows(0) is None


@settings(max_examples=40)
@given(workloads())
def test_rows_make_the_master_bitmap(workload):
    case, _, _ = workload
    replay = Replay(case)
    for interval in case.intervals:
        rows = replay.rows(interval.k)
        if interval.base is not None and rows is not None:
            made = Bitmap.from_ranges(rows.offset, rows.length, volume_size=SIZE, granularity=GRAIN)
            assert made == replay.merged(interval.k).master


def test_document_and_files(tmp_path):
    merged = Replay(timed()).merged(1)
    document = merged.document(1, None)
    assert document == {
        "interval": 1,
        "until": None,
        "volume_size": SIZE,
        "granularity": GRAIN,
        "blocks": BLOCKS,
        "physical": 3,
        "snapshot": 2,
        "carry": 2,
        "master": 7,
    }
    folder = tmp_path / "new" / "bits"
    save(merged, document, folder)
    for name in ("physical", "snapshot", "carry", "master"):
        data = (folder / f"{name}.bits").read_bytes()
        assert Bitmap.from_bytes(data, SIZE, GRAIN) == getattr(merged, name)
    assert json.loads((folder / "replay.json").read_text()) == document
    assert len(list(folder.iterdir())) == 5
    with pytest.raises(InputError, match="exists"):
        save(merged, document, folder)
    save(Replay(timed()).merged(0), document, folder, force=True)
    assert (folder / "carry.bits").read_bytes() == bytes(3)


def test_files_where_no_folder_can_be(tmp_path):
    (tmp_path / "file").write_text("")
    merged = Replay(timed()).merged(1)
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(InputError):
            save(merged, merged.document(1), folder)


def test_a_kill_never_leaves_a_document_beside_other_bitmaps(tmp_path, monkeypatch):
    def merged(block):
        bitmap = Bitmap.from_indices([block], 1 << 20, 4096)
        return Merged(bitmap, None, None, bitmap)

    class Killed(BaseException):
        pass

    first, second = merged(1), merged(9)
    save(first, first.document(1), tmp_path)
    old, left = Path.replace, []

    def replace(path, target):
        if not left:
            raise Killed
        left.pop()
        return old(path, target)

    for count in range(5):
        save(first, first.document(1), tmp_path, force=True)
        left[:] = [None] * count
        with monkeypatch.context() as patched, pytest.raises(Killed):
            patched.setattr(Path, "replace", replace)
            save(second, second.document(2), tmp_path, force=True)
        assert not (tmp_path / "replay.json").exists()
    save(second, second.document(2), tmp_path, force=True)
    assert json.loads((tmp_path / "replay.json").read_text())["interval"] == 2
