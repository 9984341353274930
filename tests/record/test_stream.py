"""What the stream's writer writes, the package reads; what it leaves when it is cut off."""

from __future__ import annotations

from pathlib import Path

import pytest

from cbtlab.errors import InputError
from cbtlab.record import uapi
from cbtlab.record.stream import Described, StreamWriter
from cbtlab.writes.native import open_stream

PHYSICAL = Described(1, 1, 4096, 0, 1 << 20, "dm-0")
SNAPSHOT = Described(2, 2, 4096, 3, 1 << 20, "dm-1")


def event(seq: int, tracker: int = 1) -> bytes:
    return uapi.EVENT.pack(seq, 1000 + seq, 4096, 512, 0, 0, 0, 7, 1, tracker, 1, 4, b"dd")


def test_stream_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "events"
    with StreamWriter(path, 1000, 2_000_000, 1) as writer:
        writer.add(PHYSICAL)
        writer.write(event(1) + event(2))
        writer.write(event(4))
        assert not path.exists(), "not before it is whole"
        writer.end(next_seq=5, dropped=1)
    stream = open_stream(path)
    assert stream.events["seq"].tolist() == [1, 2, 4]
    assert (stream.first_seq, stream.next_seq, stream.dropped) == (1, 5, 1)
    assert (stream.anchor_monotonic_ns, stream.anchor_realtime_ns) == (1000, 2_000_000)
    assert stream.frame()["time"].astype("int64").tolist() == [2_000_001, 2_000_002, 2_000_004]
    assert list(tmp_path.iterdir()) == [path]


def test_batches_as_the_rings_gave_them_are_read_by_number(tmp_path: Path) -> None:
    path = tmp_path / "events"
    with StreamWriter(path, 1000, 2_000_000, 1) as writer:
        writer.add(PHYSICAL)
        for ring in ((2, 5), (1, 3, 4), (9,), (7, 8)):
            writer.write(b"".join(map(event, ring)))
        writer.end(next_seq=10, dropped=1)
    stream = open_stream(path)
    assert stream.version == 2
    assert stream.records["seq"].tolist() == [2, 5, 1, 3, 4, 9, 7, 8]
    assert stream.frame()["seq"].tolist() == [1, 2, 3, 4, 5, 7, 8, 9]


def test_tracker_that_came_later_is_named(tmp_path: Path) -> None:
    path = tmp_path / "events"
    with StreamWriter(path, 0, 0, 1) as writer:
        writer.add(PHYSICAL)
        writer.write(event(1))
        writer.add(SNAPSHOT)
        writer.write(event(2, tracker=2))
        writer.end(3, 0)
    stream = open_stream(path)
    assert stream.trackers["id"].tolist() == [1, 2]
    assert stream.trackers["interval"].tolist() == [0, 3]
    assert stream.trackers["name"].tolist() == [b"dm-0", b"dm-1"]
    assert stream.trackers["granularity"].tolist() == [4096, 4096]
    assert stream.frame()["volume"].tolist() == ["physical", "snapshot"]
    assert stream.events["seq"].tolist() == [1, 2]
    assert list(tmp_path.iterdir()) == [path]


def test_tracker_that_came_later_is_named_in_what_is_salvaged(tmp_path: Path) -> None:
    with StreamWriter(tmp_path / "events", 0, 0, 1) as writer:
        writer.add(PHYSICAL)
        writer.write(event(1))
        writer.add(SNAPSHOT)
        writer.add(SNAPSHOT)
        writer.write(event(2, tracker=2))
    stream = open_stream(writer.part, allow_cut=True)
    assert stream.frame()["volume"].tolist() == ["physical", "snapshot"]


def test_stream_without_events_is_whole(tmp_path: Path) -> None:
    with StreamWriter(tmp_path / "events", 0, 0, 1) as writer:
        writer.add(PHYSICAL)
        writer.end(1, 0)
    assert len(open_stream(tmp_path / "events").events) == 0


def test_writer_that_gave_up_leaves_what_can_be_salvaged(tmp_path: Path) -> None:
    path = tmp_path / "events"
    with StreamWriter(path, 0, 0, 1) as writer:
        writer.add(PHYSICAL)
        writer.write(event(1) + event(2))
    assert not path.exists()
    with pytest.raises(InputError, match="cut"):
        open_stream(writer.part)
    assert open_stream(writer.part, allow_cut=True).events["seq"].tolist() == [1, 2]
