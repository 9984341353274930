"""A recording becomes a case: numbers without the events that belong to no interval, slots."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from streams import event, stream

from cbtlab.lab.packing import cut, events_of, renumbered
from cbtlab.writes.native import open_stream

PHYSICAL, SNAPSHOT = 1, 2


def test_events_outside_of_the_intervals_leave_no_gap_and_a_loss_stays_one(tmp_path: Path) -> None:
    rows = [  # seq, tracker, interval
        (1, PHYSICAL, 0),
        (2, PHYSICAL, 0),
        (3, SNAPSHOT, 0),
        (4, PHYSICAL, 1),
        # 5 was lost
        (6, PHYSICAL, 1),
        (7, SNAPSHOT, 1),
        (8, PHYSICAL, 2),
        (9, SNAPSHOT, 1),
    ]
    path = tmp_path / "events"
    events = [event(s, 4096 * s, 4096, tracker=t, interval=k) for s, t, k in rows]
    path.write_bytes(stream(events, next_seq=10, dropped=1))
    frame, out = events_of(open_stream(path), 2)
    assert frame["seq"].tolist() == [1, 2, 4, 5, 6]
    assert frame["offset"].tolist() == [4096 * s for s in (3, 4, 6, 7, 9)]
    missing = frame.writes.missing()
    assert missing["first"].tolist() == missing["last"].tolist() == [3]
    assert renumbered(np.array([1, 3, 8, 10], np.uint64), out).tolist() == [1, 1, 6, 7]


def test_a_slot_is_cut_out_whole_and_its_holes_stay(tmp_path: Path) -> None:
    disk, size = tmp_path / "disk", 1 << 20
    with disk.open("wb") as file:
        file.truncate(3 * size)
        file.seek(size - 4096)
        file.write(b"before" * 1000)  # from the slot before into this one
        file.seek(2 * size - 10)
        file.write(b"x" * 20)
    cut(disk, size, size, tmp_path / "slot")
    assert (tmp_path / "slot").read_bytes() == disk.read_bytes()[size : 2 * size]
    assert (tmp_path / "slot").stat().st_blocks * 512 < size // 4
    cut(disk, 2 * size + 4096, size - 4096, tmp_path / "empty")
    assert (tmp_path / "empty").read_bytes() == bytes(size - 4096)
