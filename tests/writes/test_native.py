"""The native stream: what it says, and that damage is told and never read as data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from stream_parts import beginning, described
from streams import event, stream

from cbtlab.errors import InputError
from cbtlab.writes import COLUMNS, native, read_writes
from cbtlab.writes.native import EVENT, from_spans, open_stream

EVENTS = [
    event(1, 0, 4096, known=7, inode=12, inode_offset=8192),
    event(2, 8192, 512, tracker=2, op="discard", interval=1, known=0),
    event(5, 4096, 4096, flags=3, comm=b"sixteen-chars-xy"),
]
GOOD = stream(EVENTS, next_seq=8, dropped=4)


def save(tmp_path: Path, data: bytes) -> Path:
    path = tmp_path / "writes.cbt"
    path.write_bytes(data)
    return path


def test_every_field_arrives(tmp_path: Path) -> None:
    frame = read_writes(save(tmp_path, GOOD))
    assert list(frame.columns) == list(COLUMNS)
    assert {name: str(frame[name].dtype) for name in ("time", "seq", "offset", "interval")} == {
        "time": "datetime64[ns]",
        "seq": "UInt64",
        "offset": "uint64",
        "interval": "uint32",
    }
    first, second, third = (frame.iloc[i] for i in range(3))
    assert first["time"] == np.datetime64(1_700_000_000_000_000_001, "ns")
    assert (first["volume"], first["inode"], first["pid"], first["comm"]) == (
        "physical",
        12,
        77,
        "writer",
    )
    assert (second["volume"], second["op"], second["interval"]) == ("snapshot", "discard", 1)
    assert frame["pid"].isna().tolist() == [False, True, False]
    assert frame["comm"].isna().tolist() == [False, True, False]
    assert frame["inode"].isna().tolist() == [False, True, True]
    assert frame["inode_offset"].fillna(0).tolist() == [8192, 0, 0]
    assert frame["inode_offset"].isna().tolist() == [False, True, True]
    assert third["comm"] == "sixteen-chars-xy"
    assert third["flags"] == 3


def test_a_gap_is_a_loss_and_the_end_tells_of_the_last(tmp_path: Path) -> None:
    summary = read_writes(save(tmp_path, GOOD)).writes.summary()
    assert (summary["rows"], summary["lost"], summary["gaps"]) == (3, 4, 2)


def test_an_empty_stream_is_no_fault(tmp_path: Path) -> None:
    assert len(read_writes(save(tmp_path, stream([], next_seq=1)))) == 0


def test_a_stream_without_its_end_is_refused_but_can_be_salvaged(tmp_path: Path) -> None:
    path = save(tmp_path, stream(EVENTS, next_seq=6, end=False)[:-10])
    with pytest.raises(InputError, match="cut"):
        read_writes(path)
    assert len(read_writes(path, salvage=True)) == 2


@pytest.mark.parametrize(
    ("at", "value", "fault"),
    [
        (8, b"\x03", "version 3"),
        (0, b"X", "not a native write stream"),
        (16, b"\x51", "contradicts"),
        (20, b"\xff\xff\xff\xff", "contradicts"),
        (64 + 4, b"\x09", "table of trackers"),
        (64 + 8, b"\x01", "table of trackers"),
    ],
)
def test_a_damaged_header_is_named(tmp_path: Path, at: int, value: bytes, fault: str) -> None:
    data = GOOD[:at] + value + GOOD[at + len(value) :]
    with pytest.raises(InputError, match=fault):
        read_writes(save(tmp_path, data))


@pytest.mark.parametrize(
    ("bad", "fault"),
    [
        (event(1, (1 << 64) - 1, 2), "out of any volume"),
        (event(1, 0, (1 << 64) - 1), "out of any volume"),
        (event(1, 0, 1, op="tracker", flags=9, inode=4096), "table of trackers"),
        (event(1, 0, 1, op="tracker", flags=1, inode=4096), "table of trackers"),  # twice
        (event(1, 0, 1, op="tracker", tracker=3, flags=257, inode=4096), "table of trackers"),
        (event(1, 0, 1, op="tracker", tracker=3, flags=1, inode=5), "table of trackers"),
        (event(1, 0, 1, time_ns=(1 << 64) - 1), "impossible time"),
    ],
)
def test_a_record_that_cannot_be_is_named(tmp_path: Path, bad: bytes, fault: str) -> None:
    with pytest.raises(InputError, match=fault):
        read_writes(save(tmp_path, stream([bad], next_seq=2)))


@settings(
    max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.data())
def test_no_damage_is_read_as_a_recording(tmp_path: Path, data: st.DataObject) -> None:
    """Flips inside the records are told by the CRC, cuts by the end mark, the rest by name."""
    damaged = bytearray(GOOD)
    kind = data.draw(st.sampled_from(["flip", "cut", "insert"]))
    at = data.draw(st.integers(0, len(GOOD) - 1))
    if kind == "flip":
        damaged[at] ^= data.draw(st.integers(1, 255))
    elif kind == "cut":
        del damaged[at:]
    else:
        damaged[at:at] = data.draw(st.binary(min_size=1, max_size=100))
    path = save(tmp_path, bytes(damaged))
    try:
        frame = read_writes(path)
    except InputError as error:
        assert str(path) in str(error) and "\n" not in str(error)
        return
    head, tail = 64 + 2 * 64, len(GOOD) - 80
    assert kind == "flip", "a stream of another length was read"
    assert not head <= at < tail, "a changed record was read"
    assert len(frame) == 3


def test_a_write_on_a_volume_that_has_grown_is_read(tmp_path: Path) -> None:
    """It happened; a case of the old size refuses it."""
    frame = read_writes(save(tmp_path, stream([event(1, 1 << 20, 512)], next_seq=2)))
    assert frame["offset"].tolist() == [1 << 20]


def test_an_offset_is_known_or_not_by_itself(tmp_path: Path) -> None:
    data = stream([event(1, 0, 1, known=1, inode=3, inode_offset=9)], next_seq=2)
    frame = read_writes(save(tmp_path, data))
    assert frame["inode"].tolist() == [3]
    assert frame["inode_offset"].isna().tolist() == [True]


@pytest.mark.parametrize("version", [1, 2])
def test_both_versions_read(tmp_path: Path, version: int) -> None:
    opened = open_stream(save(tmp_path, stream(EVENTS, next_seq=8, dropped=4, version=version)))
    assert opened.events["seq"].tolist() == [1, 2, 5]
    assert (opened.version, opened.dropped, opened.next_seq) == (version, 4, 8)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.data())
def test_batches_of_any_order_are_read_by_number(tmp_path: Path, data: st.DataObject) -> None:
    """Rows of a few at a time, so that windows and batches end at all places of each other."""
    batch = data.draw(st.integers(1, 9))
    seqs = sorted(data.draw(st.sets(st.integers(1, 90), max_size=60)))
    saved: list[int] = []
    while seqs:
        span = [seq for seq in seqs if seq < seqs[0] + batch]
        seqs = seqs[len(span) :]
        saved += data.draw(st.permutations(span))
    times = {seq: 100 * seq + data.draw(st.integers(0, 300)) for seq in saved}
    path = save(
        tmp_path,
        stream([event(s, 512 * s, 1, time_ns=times[s]) for s in saved], next_seq=91),
    )
    rows = data.draw(st.integers(1, 20))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(native.BATCHES, 2, batch)
        opened = open_stream(path)
        chunks = list(opened.chunks(rows))
        assert opened.events["seq"].tolist() == sorted(saved)
    assert max(map(len, chunks)) <= rows
    frame = pd.concat(chunks)
    assert frame["seq"].tolist() == sorted(saved)
    assert frame["offset"].tolist() == [512 * seq for seq in sorted(saved)]
    highest = [max(times[s] for s in saved if s <= seq) for seq in sorted(saved)]
    assert (frame["time"].astype("int64") - 1_700_000_000_000_000_000 + 1000).tolist() == highest


def test_a_larger_disorder_is_damage(tmp_path: Path) -> None:
    # The first number comes last: nine of one batch.  A window may hold more than a batch.
    seqs = [*range(2, 10), 1]
    path = save(tmp_path, stream([event(seq, 0, 1) for seq in seqs], next_seq=10))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(native.BATCHES, 2, 9)
        assert [len(chunk) for chunk in open_stream(path).chunks(1)] == [1] * 9
        patch.setitem(native.BATCHES, 2, 7)
        with pytest.raises(InputError, match="out of their order"):
            list(open_stream(path).chunks(1))
    backward = save(tmp_path, stream(EVENTS[::-1], next_seq=8, dropped=4, version=1))
    with pytest.raises(InputError, match="out of their order"):
        read_writes(backward)


def test_a_number_that_stands_twice_is_damage(tmp_path: Path) -> None:
    path = save(tmp_path, stream([EVENTS[0], EVENTS[0]], next_seq=3))
    with pytest.raises(InputError, match="twice"):
        read_writes(path)


def test_spans_become_one_array_by_number() -> None:
    records = [event(seq, 4096 * seq, 512, comm=b"dd") for seq in (2, 5, 9, 1, 3, 4)]
    spans = [memoryview(b"".join(part)) for part in (records[:2], records[2:3], records[3:])]
    events = from_spans(spans)
    assert events.dtype == EVENT
    assert events["seq"].tolist() == [1, 2, 3, 4, 5, 9]
    assert events["offset"].tolist() == [4096 * seq for seq in (1, 2, 3, 4, 5, 9)]
    for span in spans:
        span.release()  # nothing holds the memory
    assert len(from_spans([])) == 0


def test_chunks_are_the_whole(tmp_path: Path) -> None:
    events = [event(seq, 4096 * (seq % 200), 4096) for seq in range(1, 1001)]
    opened = open_stream(save(tmp_path, stream(events, next_seq=1001)))
    sizes = [len(chunk) for chunk in opened.chunks(300)]
    assert sizes == [300, 300, 300, 100]


def test_events_of_a_tracker_that_nobody_describes_are_read(tmp_path: Path) -> None:
    """It was attached, written, detached, and only then the events were saved."""
    events = [event(1, 0, 512), event(2, 512, 512, tracker=9), event(3, 0, 512, tracker=8)]
    path = save(tmp_path, stream(events, next_seq=4))
    frame = read_writes(path)
    assert frame["volume"].isna().tolist() == [False, True, True]
    assert frame["offset"].tolist() == [0, 512, 0]
    (note,) = open_stream(path).notes
    assert note == (
        "2 events are of trackers that it does not describe (8, 9), detached before they were "
        "saved: their volume is null"
    )
    cut = save(tmp_path, stream(events, next_seq=4, end=False))
    assert read_writes(cut, salvage=True)["volume"].isna().tolist() == [False, True, True]
    assert len(open_stream(cut, allow_cut=True).notes) == 2


def test_a_tracker_is_described_between_the_events(tmp_path: Path) -> None:
    records = [event(1, 0, 1), described(3), event(3, 8, 1, tracker=3), event(2, 4, 1)]
    records += [described(4, role=2, name=b"sixteen-bytes-xy"), event(4, 12, 1, tracker=4)]
    opened = open_stream(save(tmp_path, stream(records, next_seq=5)))
    assert opened.trackers["id"].tolist() == [1, 2, 3, 4]
    assert opened.trackers["name"].tolist()[2:] == [b"dm-9", b"sixteen-bytes-xy"]
    assert opened.trackers["volume_size"].tolist() == [1 << 20] * 4
    assert opened.trackers["interval"].tolist() == [0, 0, 5, 5]
    assert opened.records["seq"].tolist() == [1, 3, 2, 4]
    for rows in (1, 2, 100):
        chunks = list(opened.chunks(rows))
        assert pd.concat(chunks)["volume"].tolist() == [*["physical"] * 3, "snapshot"]
        assert pd.concat(chunks)["seq"].tolist() == [1, 2, 3, 4]
    assert opened.counts == {1: 2, 3: 1, 4: 1}
    assert opened.notes == [
        "2 trackers have the role physical (1 origin, 3 dm-9): take one at a time"
    ]


def test_a_stream_of_descriptions_alone_is_empty(tmp_path: Path) -> None:
    records = [described(number) for number in range(3, 40)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(native.BATCHES, 2, 9)
        opened = open_stream(save(tmp_path, stream(records, next_seq=1)))
        assert [len(chunk) for chunk in opened.chunks(3)] == [0]
    assert len(opened.trackers) == 39


@pytest.mark.parametrize(
    ("seqs", "first", "next_seq", "lost", "gaps"),
    [
        ([], 124, 124, 0, 0),  # what earlier readers had taken is no loss of this one
        ([], 0, 124, 0, 0),  # nor is it where the stream does not say
        ([], 120, 124, 4, 1),
        ([655, 657], 655, 660, 3, 2),
        ([655, 657], 650, 658, 6, 2),
        ([655, 657], 0, 658, 1, 1),  # from the first record on
    ],
)
def test_losses_count_from_the_first_number(
    tmp_path: Path, seqs: list[int], first: int, next_seq: int, lost: int, gaps: int
) -> None:
    events = [event(seq, 0, 1) for seq in seqs]
    path = save(tmp_path, beginning(stream(events, next_seq=next_seq), first))
    summary = read_writes(path).writes.summary()
    assert (summary["lost"], summary["gaps"]) == (lost, gaps)


def test_losses_of_a_cut_stream_count_from_the_first_number(tmp_path: Path) -> None:
    path = save(tmp_path, beginning(stream([event(9, 0, 1)], next_seq=0, end=False), 5))
    assert read_writes(path, salvage=True).writes.summary()["lost"] == 4
