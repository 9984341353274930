"""The module's record beside the kernel's own tracepoint ``block:block_bio_queue``.

The tracepoint fires once for each bio that somebody submits.  A bio comes to
the module again when its driver has split it (marked as a remainder), when it
carries data and a flush (device-mapper sends the flush first, and the data from
a worker), and when it had to wait for a resume: these re-entries are folded,
each onto the event that it repeats; all else must be equal one to one.
"""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from events import DISCARD, PREFLUSH, REMAINDER, SECURE_ERASE, WRITE_ZEROES
from programs import boot

from cbtlab.writes.native import EVENT, open_stream

pytestmark = pytest.mark.vm

_LINE = re.compile(
    r"\s*.+-(?P<pid>\d+)\s+\[\d+\]\s+\S+\s+(?P<time>[\d.]+): block_bio_queue: "
    r"(?P<device>\d+,\d+) (?P<rwbs>\S+) (?P<sector>\d+) \+ (?P<sectors>\d+) \[(?P<comm>.*)\]"
)
_SYNC, _FUA, _META, _RAHEAD = 0x1, 0x2, 0x8, 0x20
_LETTER = {WRITE_ZEROES: "N", DISCARD: "D", SECURE_ERASE: "DE"}
STARVED = ("nobody", "slow", "stopped", "killed")


class Seen(NamedTuple):
    """A bio as both tell it; ``rwbs`` is the kernel's short word for its kind and flags."""

    device: str
    rwbs: str
    sector: int
    sectors: int
    comm: str


class Recorded(NamedTuple):
    """An event, and what it tells beyond the bio."""

    seen: Seen
    time_us: int
    preflush: bool
    worker: bool
    interval: int


@pytest.fixture(scope="module", params=["6.1", "6.12"])
def output(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What ``guest/witness.py`` left on a kernel."""
    return boot(
        request.param,
        "witness.py",
        tmp_path_factory.mktemp("witness"),
        disks={"volume": 104 << 20, "store": 64 << 20},
        memory=2048,
        timeout=300,
    ).output


def witnessed(path: Path) -> dict[int, list[tuple[Seen, int]]]:
    """Return what the tracepoint saw being written, by pid, in order, with the time in µs."""
    found = defaultdict(list)
    for line in path.read_text().splitlines():
        if line.startswith("#"):
            continue
        match = _LINE.fullmatch(line)
        assert match, line
        sector, sectors, rwbs = int(match["sector"]), int(match["sectors"]), match["rwbs"]
        if sectors == 0 or rwbs.lstrip("F").startswith("R"):
            continue  # an empty flush, or a read
        seen = Seen(match["device"], rwbs, sector, sectors, match["comm"])
        found[int(match["pid"])].append((seen, int(match["time"].replace(".", ""))))
    return found


def rwbs(op: int, flags: int) -> str:
    """Return the kernel's word for an event (``blk_fill_rwbs``)."""
    word = "F" if flags & PREFLUSH else ""
    word += _LETTER.get(op, "W")
    letters = ((_FUA, "F"), (_RAHEAD, "A"), (_SYNC, "S"), (_META, "M"))
    return word + "".join(letter for flag, letter in letters if flags & flag)


def recorded(events: np.ndarray[Any, Any], devices: dict[int, str]) -> dict[int, list[Recorded]]:
    """Return the events that are no remainders, by pid, in the order of their numbers."""
    found = defaultdict(list)
    names = ["tracker", "op", "flags", "offset", "length", "pid", "comm", "time_ns", "interval"]
    rows = events[np.argsort(events["seq"])][names].tolist()
    for tracker, op, flags, offset, length, pid, comm, time_ns, interval in rows:
        if flags & REMAINDER:
            continue
        assert offset % 512 == length % 512 == 0
        name = comm.decode()
        seen = Seen(devices[tracker], rwbs(op, flags), offset // 512, length // 512, name)
        worker = name.startswith("kworker")
        found[pid].append(Recorded(seen, time_ns // 1000, bool(flags & PREFLUSH), worker, interval))
    return found


def repeats(ours: list[Recorded], theirs: list[tuple[Seen, int]]) -> list[Recorded]:
    """Return what is left of a task's events when those that the witness saw are taken out.

    They must be there, all and in the same order, and none before the witness saw it.
    """
    left, at = [], 0
    for event in ours:
        if at < len(theirs) and event.seen == theirs[at][0] and event.time_us >= theirs[at][1]:
            at += 1
        else:
            left.append(event)
    assert at == len(theirs), f"not recorded: {theirs[at]}"
    return left


def facts(output: Path, part: str) -> tuple[dict[str, Any], dict[int, str]]:
    """Return what the module said of itself, and each tracker's device."""
    about = json.loads((output / f"{part}.json").read_text())
    return about, {int(number): row["device"] for number, row in about["trackers"].items()}


def test_reader_that_keeps_up_has_what_the_witness_saw(output: Path) -> None:
    about, devices = facts(output, "whole")
    stream = open_stream(output / "whole.native")
    assert about["dropped"] == 0
    assert len(stream.events) == about["next_seq"] - 1
    ours, theirs = recorded(stream.events, devices), witnessed(output / "whole.trace")
    assert set(theirs) <= set(ours)
    left = [event for pid, events in ours.items() for event in repeats(events, theirs.get(pid, []))]
    first = Counter(
        (event.seen.device, event.seen.sector, event.seen.sectors)
        for events in ours.values()
        for event in events
        if event.preflush
    )
    again = Counter((event.seen.device, event.seen.sector, event.seen.sectors) for event in left)
    switched = devices[max(devices)]
    # Off the volume that is suspended the only repeats are those of flushes with data: each once.
    for kind in first.keys() | again.keys():
        if kind[0] != switched:
            assert first[kind] == again[kind], kind
    # On it, those that had to wait for a resume too.  A worker submits them all, and only what
    # was submitted before.
    assert all(event.worker for event in left)
    every = Counter(
        (event.seen.device, event.seen.sector, event.seen.sectors)
        for events in ours.values()
        for event in events
    )
    assert all(2 * count <= every[kind] for kind, count in again.items())
    assert any(kind[0] == switched for kind in again), "nothing had to wait for a resume"
    seen = [one for events in theirs.values() for one, _ in events]
    assert len(seen) > 1500
    kinds = {word for one in seen for word in ("W", "D", "N") if word in one.rwbs}
    assert kinds == {"W", "D", "N"}
    assert (stream.events["flags"] & REMAINDER != 0).any()
    print(f"{len(seen)} bios seen, {len(stream.events)} events, {len(left)} repeats from workers")


@pytest.mark.parametrize("part", STARVED)
def test_what_a_bad_reader_costs_is_counted(output: Path, part: str) -> None:
    about, devices = facts(output, part)
    events = np.frombuffer((output / f"{part}.events").read_bytes(), EVENT)
    numbers = np.unique(events["seq"])
    if part != "killed":  # there the first reader may have saved what the second got again
        assert len(numbers) == len(events)
    seen = [one for rows in witnessed(output / f"{part}.trace").values() for one, _ in rows]
    (tracker,) = about["trackers"].values()
    assert about["recorded"] + about["dropped"] == len(seen) + tracker["remainders"]
    assert tracker["events"] == about["next_seq"] - 1 == len(seen) + tracker["remainders"]
    gaps = np.setdiff1d(np.arange(1, about["next_seq"]), numbers)
    assert len(numbers) == about["recorded"]
    assert len(gaps) == about["dropped"] > 0
    assert (gaps.min(), gaps.max()) == (about["first_dropped"], about["last_dropped"])
    # What did come through is what the witness saw.
    had = Counter(event.seen for rows in recorded(events, devices).values() for event in rows)
    if part != "killed":
        assert had <= Counter(seen)
    assert about["judged"]["missed"] == 0
    assert about["judged"]["changed"] > 20
    print(f"{part}: {len(seen)} bios, {len(numbers)} events, {len(gaps)} dropped")
