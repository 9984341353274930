"""The writer of a stream, on rings that are filled while it works."""

from __future__ import annotations

import os
import platform
import time
from pathlib import Path
from random import Random

import numpy as np
import pytest
from ring_memory import Memory

from cbtlab.record import stream as stream_file
from cbtlab.record.event_writer import EventWriter
from cbtlab.writes.native import open_stream

pytestmark = pytest.mark.skipif(platform.machine() != "x86_64", reason="reads only on x86_64")


def test_a_stream_is_all_that_was_put_in(tmp_path: Path) -> None:
    random, memory = Random(3), Memory(2, 64)
    producers = [memory.events(ring) for ring in range(2)]
    with EventWriter(memory.module, tmp_path / "events"):
        for _ in range(300):
            for _ in range(random.randrange(60)):
                next(random.choice(producers))
            time.sleep(0.0005)
        for ring, producer in enumerate(producers):
            while memory.get(64 + 64 * ring + 8):
                next(producer)
    stream = open_stream(tmp_path / "events")
    assert stream.version == 2
    assert stream.events["seq"].tolist() == sorted(memory.put)
    assert stream.dropped == len(memory.dropped)
    assert stream.next_seq == memory.get(0)
    seq = stream.records["seq"].astype(np.int64)
    assert (np.diff(seq) < 0).any(), "the rings came one after the other, or the test is none"
    assert memory.tail(0) + memory.tail(1) == len(memory.put)
    memory.close()


def test_what_comes_after_the_end_is_left_to_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = Memory(2, 64)
    module = memory.module
    with EventWriter(module, tmp_path / "one"):
        memory.fill(0, 3)
        info = memory.info

        def late() -> object:
            told = info()
            memory.fill(1, 2)  # while the writer takes the rest
            return told

        monkeypatch.setattr(module, "info", late)
    monkeypatch.undo()
    assert open_stream(tmp_path / "one").events["seq"].tolist() == [1, 2, 3]
    assert open_stream(tmp_path / "one").next_seq == 4
    with EventWriter(module, tmp_path / "two"):
        pass
    assert open_stream(tmp_path / "two").events["seq"].tolist() == [4, 5]
    assert open_stream(tmp_path / "two").first_seq == 4
    with EventWriter(module, tmp_path / "none"):
        pass
    none = open_stream(tmp_path / "none")
    assert (none.first_seq, none.next_seq, len(none.events)) == (6, 6, 0)
    memory.close()


def test_a_full_disk_ends_it_with_its_error_and_keeps_the_events(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = Memory(1, 64)

    def full(*_: object) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(stream_file.StreamWriter, "write", full)
    with (
        pytest.raises(OSError, match="No space"),
        EventWriter(memory.module, tmp_path / "events") as writer,
    ):
        memory.fill(0, 3)
        writer._thread.join(10)
        assert not writer._thread.is_alive()
    assert not (tmp_path / "events").exists()
    assert memory.tail(0) == 0
    memory.close()
