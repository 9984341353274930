"""The kernel module in real kernels: switches that lose nothing, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cbtlab.lab import guest
from cbtlab.lab.initramfs import MODULES
from cbtlab.writes.native import EVENT, Stream, open_stream

pytestmark = pytest.mark.vm

GUEST = Path(__file__).parent / "guest"
BLOCK = 4096
REMAINDER = 0x10000


def boot(kernel: str, program: str, work: Path, **options: Any) -> guest.GuestResult:
    """Run one of the programs in ``guest/`` with the module inserted."""
    return guest.boot(
        kernel,
        f"insmod /lab/cbt.ko && PYTHONPATH=/lab/python:/tests python3.11 -B /tests/{program}",
        files={"tests": GUEST},
        work=work,
        **options,
    ).check()


@pytest.fixture(scope="module", params=[("6.1", 20), ("6.12", 6)], ids=lambda p: p[0])
def switched(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, Any], Path, int]:
    """The result of ``guest/switches.py`` on a kernel, its folder, and its count of switches."""
    kernel, count = request.param
    done = boot(
        kernel,
        f"switches.py {count}",
        tmp_path_factory.mktemp(f"switches-{kernel}"),
        disks={"volume": 32 << 20, "store": 64 << 20},
        timeout=280,
    )
    return json.loads((done.output / "switches.json").read_text()), done.output, count


def test_switches_under_writers_miss_no_block(
    switched: tuple[dict[str, Any], Path, int], record_property: Any
) -> None:
    results, _, count = switched
    for part, expected in ("snapshots", count), ("discards", max(2, count // 3)):
        rows = results[part]
        assert len(rows) == expected
        assert [row["missed"] for row in rows] == [0] * len(rows)
        assert all(row["changed"] > 50 for row in rows), "the writers wrote too little"
        changed, marked = (sum(row[key] for row in rows) for key in ("changed", "marked"))
        print(f"{results['release']} {part}: {len(rows)} switches, {changed} of {marked} changed")
        record_property(part, f"{changed} changed, {marked} marked")
    assert any(row["discarded"] for row in results["discards"])


def test_switch_after_resume_loses_blocks(
    switched: tuple[dict[str, Any], Path, int],
) -> None:
    results, _, _ = switched
    missed = [row["missed"] for row in results["late"]]
    print(f"{results['release']} wrong order: {missed} blocks missed")
    assert sum(missed) > 0


def test_events_replay_to_the_bitmaps(switched: tuple[dict[str, Any], Path, int]) -> None:
    results, output, _ = switched
    assert results["dropped"] == 0
    stream = open_stream(output / "events.native")
    assert stream.events["seq"].tolist() == list(range(1, len(stream.events) + 1))
    assert (np.diff(stream.events["time_ns"].astype(np.int64)) >= 0).all()
    compared = 0
    for path in output.glob("*.bits"):
        tracker, interval = map(int, path.stem.split("-")[1:])
        events = of(stream, tracker, interval)
        bits = np.fromfile(path, np.uint8)
        assert (replay(events, len(bits)) == bits).all(), path.name
        # What is marked a remainder is covered by the event before it.
        first = events[events["flags"] & REMAINDER == 0]
        assert (replay(first, len(bits)) == bits).all(), path.name
        compared += 1
    assert compared == sum(len(results[p]) for p in ("snapshots", "late", "discards"))
    assert (stream.events["flags"] & REMAINDER != 0).any()


def test_discarded_bitmap_is_what_was_discarded_last(
    switched: tuple[dict[str, Any], Path, int],
) -> None:
    _, output, _ = switched
    stream = open_stream(output / "events.native")
    paths = list(output.glob("*.discarded"))
    assert paths
    for path in paths:
        tracker, interval = map(int, path.stem.split("-")[1:])
        assert (discarded(of(stream, tracker, interval), path.stat().st_size) ==
                np.fromfile(path, np.uint8)).all()  # fmt: skip


def of(stream: Stream, tracker: int, interval: int) -> np.ndarray[Any, Any]:
    """Return the events of one tracker and interval."""
    events = stream.events
    assert events.dtype == EVENT
    return events[(events["tracker"] == tracker) & (events["interval"] == interval)]


def replay(events: np.ndarray[Any, Any], size: int) -> np.ndarray[Any, Any]:
    """Return the bitmap of ``size`` bytes that the events make."""
    edges = np.zeros(8 * size + 1, np.int64)
    first, last = events["offset"] // BLOCK, (events["offset"] + events["length"] - 1) // BLOCK
    np.add.at(edges, first.astype(np.int64), 1)
    np.add.at(edges, last.astype(np.int64) + 1, -1)
    return np.packbits(np.cumsum(edges)[:-1] > 0, bitorder="little")


def discarded(events: np.ndarray[Any, Any], size: int) -> np.ndarray[Any, Any]:
    """Play the events one by one: whole blocks are taken in, touched ones out."""
    blocks = np.zeros(8 * size, bool)
    for offset, length, op in zip(
        *(events[name].tolist() for name in ("offset", "length", "op")), strict=True
    ):
        end = offset + length
        blocks[offset // BLOCK : -(-end // BLOCK)] = False
        if op in (3, 4):
            blocks[-(-offset // BLOCK) : end // BLOCK] = True
    return np.packbits(blocks, bitorder="little")


@pytest.mark.parametrize("kernel", ["6.1", "6.12"])
def test_refusals_and_states(kernel: str, tmp_path: Path) -> None:
    told: list[str] = []
    done = boot(
        kernel,
        "behaviour.py",
        tmp_path,
        disks={"volume": 64 << 20, "store": 32 << 20},
        modules=[*MODULES, "brd", "lzo-rle", "zram"],
        on_phase=told.append,
        timeout=150,
    )
    assert len(told) > 10
    events = open_stream(done.output / "cbtctl.native").events
    assert [(e["offset"], e["interval"]) for e in events] == [(8192, 3), (40960, 4)]
