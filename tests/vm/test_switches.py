"""Switches under writers that never rest, on real kernels and file systems, miss no block.

The short form of ``soak.py``: the same programs in the guest, fewer switches.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from events import DISCARD, REMAINDER, WRITE, WRITE_ZEROES, discarded, of, replay
from programs import Switched, switches

from cbtlab.writes.native import open_stream

pytestmark = pytest.mark.vm

BLOCK = 4096
PLAN = {
    "ext4": {"snapshots": 4, "late": 3, "discards": 2},
    **{name: {"snapshots": 3, "discards": 1} for name in ("xfs", "btrfs", "vfat")},
    "raw": {"snapshots": 2, "discards": 2},
}


@pytest.fixture(scope="module", params=["6.1", "6.12"])
def switched(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Switched:
    """The result of ``guest/switches.py`` on a kernel, and the folder of what it saved."""
    return switches(request.param, PLAN, tmp_path_factory.mktemp("switches"), timeout=400)


def test_switches_under_writers_miss_no_block(switched: Switched, record_property: Any) -> None:
    results, _ = switched
    for part in results["parts"]:
        name, kind, rows = part["file_system"], part["part"], part["rows"]
        assert len(rows) == PLAN[name][kind]
        if kind == "late":
            continue
        for row in rows:
            assert row["missed"] == 0, (name, kind, row)
            assert row.get("under", row)["missed"] == 0, (name, kind, row)
            assert row["changed"] > 20, "the writers wrote too little"
        counts = {key: sum(row[key] for row in rows) for key in ("changed", "marked", "surplus")}
        print(f"{results['release']} {name} {kind}: {len(rows)} switches, {counts}")
        record_property(f"{name} {kind}", counts)


def test_switch_after_resume_loses_blocks(switched: Switched) -> None:
    results, _ = switched
    late = [part for part in results["parts"] if part["part"] == "late"]
    missed = [row["missed"] for part in late for row in part["rows"]]
    print(f"{results['release']} wrong order: {missed} blocks missed")
    assert sum(missed) > 0
    assert all(row["first_missed"] for part in late for row in part["rows"] if row["missed"])


def test_events_replay_to_the_bitmaps(switched: Switched) -> None:
    results, output = switched
    assert results["dropped"] == 0
    stream = open_stream(output / "events.native")
    recorded = stream.events[np.argsort(stream.events["seq"])]
    assert recorded["seq"].tolist() == list(range(1, len(recorded) + 1))
    # Each reads the clock right after it took its number: neighbours may be swapped.
    assert np.diff(recorded["time_ns"].astype(np.int64)).min() > -100_000_000
    granularity = dict(stream.trackers[["id", "granularity"]].tolist())
    compared = 0
    for path in output.glob("*.bits"):
        tracker, interval = map(int, path.stem.split("-")[1:])
        events = of(recorded, tracker, interval)
        bits = np.fromfile(path, np.uint8)
        assert (replay(events, len(bits), granularity[tracker]) == bits).all(), path.name
        # What is marked a remainder is covered by the event before it.
        first = events[events["flags"] & REMAINDER == 0]
        assert (replay(first, len(bits), granularity[tracker]) == bits).all(), path.name
        compared += 1
    per_part = {"snapshots": 1, "late": 1, "discards": 2}  # trackers
    assert compared == sum(
        per_part[kind] * (count + 1) for parts in PLAN.values() for kind, count in parts.items()
    )
    assert (recorded["flags"] & REMAINDER != 0).any()


def test_discarded_bitmap_is_what_was_discarded_last(switched: Switched) -> None:
    _, output = switched
    recorded = open_stream(output / "events.native").events
    paths = list(output.glob("*.discarded"))
    assert paths
    for path in paths:
        tracker, interval = map(int, path.stem.split("-")[1:])
        expected = discarded(of(recorded, tracker, interval), path.stat().st_size, BLOCK)
        assert (expected == np.fromfile(path, np.uint8)).all(), path.name


def test_every_way_to_write_was_taken(switched: Switched) -> None:
    _, output = switched
    events = open_stream(output / "events.native").events
    assert {WRITE, WRITE_ZEROES, DISCARD} <= set(events["op"].tolist())
    writers = {name.rstrip(b"\0").decode() for name in np.unique(events["comm"]).tolist()}
    # Each kind of writer submits by its own task at its fsync or msync, or past the page cache.
    assert {"buffered", "direct", "mapped", "uring", "allocate", "trim", "raw"} <= writers
    assert any(name.startswith("kworker") for name in writers), "no write-back"
