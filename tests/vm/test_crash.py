"""Across a restart: what stop and start carry over, and crashes in all of their steps.

The short form; ``crashes.py`` is the long one.
"""

from __future__ import annotations

from pathlib import Path
from random import Random

import crash_cuts
import crash_lives
import numpy as np
import pytest
from crash_lives import Life, Step
from programs import FILE_SYSTEM_MODULES, FILE_SYSTEM_PACKAGES, boot

from cbtlab.lab.initramfs import MODULES
from cbtlab.writes.native import open_stream

# Tracked after a clean start; after a stop; in one.
AIMS = [("writing", 1), ("stopped", 0), ("stopping", 1)]
CUTS = 8


def lives(*told: str) -> list[Life]:
    """Return lives that told these steps."""
    return [Life([Step.parsed(line) for line in life.split(", ")]) for life in told]


TRACKED = "starting, started state=new, writing"


@pytest.mark.parametrize(
    ("told", "fault"),
    [
        ((TRACKED, "starting, started state=unclean"), ""),
        ((TRACKED, "starting, started state=clean"), "life 2: clean, must be unclean"),
        ((TRACKED, "starting, started state=new"), "life 2: new, must be unclean"),
        (("starting", "starting, started state=unclean"), ""),
        ((TRACKED + ", stopping", "starting, started state=clean"), ""),
        ((TRACKED + ", stopping", "starting, started state=unclean"), ""),
        ((TRACKED + ", stopping, stopped", "starting, started state=clean"), ""),
        (
            (TRACKED + ", stopping, stopped, starting, started state=unclean",),
            "life 1: unclean, must be clean",
        ),
        ((TRACKED + ", stopping, stopped, starting", "starting, started state=unclean"), ""),
        ((TRACKED, "starting", "starting, started state=clean"), "life 3: clean, must be unclean"),
        (
            (
                TRACKED + ", stopping, stopped",
                "starting, started state=clean, judged changed=3 marked=2 missed=1",
            ),
            "life 2: clean, 1 blocks missed",
        ),
    ],
)
def test_a_wrong_life_is_told(told: tuple[str, ...], fault: str) -> None:
    assert crash_lives.faults(lives(*told)) == ([fault] if fault else [])


def test_a_cut_leaves_what_was_flushed(tmp_path: Path) -> None:
    """The log of four writes and a flush, made by hand: two before it, two after."""
    sector, label = 512, crash_cuts.LABEL // 512
    log = bytearray()
    for place, flags, byte in (
        (label, 0, b"l"),
        (1, 0, b"a"),
        (0, 1, b""),
        (2, 0, b"b"),
        (3, 0, b"c"),
    ):
        log += (
            crash_cuts._ENTRY.pack(place, len(byte), flags, 0).ljust(sector, b"\0") + byte * sector
        )
    head = crash_cuts._SUPER.pack(crash_cuts._MAGIC, 1, 5, sector).ljust(sector, b"\0")
    path = tmp_path / "log"
    path.write_bytes(head + log)
    found = crash_cuts.entries(path)
    seen = set()
    for seed in range(40):
        crash_cuts.cut(path, found, 5, Random(seed), tmp_path / "disk")
        with (tmp_path / "disk").open("rb") as disk:
            disk.seek(sector)
            seen.add(bytes(disk.read(1 + 2 * sector)[::sector]))
    assert seen == {b"a" + b + c for b in (b"b", b"\0") for c in (b"c", b"\0")}


@pytest.mark.vm
def test_stop_and_start(tmp_path: Path) -> None:
    told: list[str] = []
    done = boot(
        "6.12",
        "crash_states.py",
        tmp_path,
        disks={"disk": 65 << 30},
        packages=[*FILE_SYSTEM_PACKAGES, "ntfs-3g"],
        modules=[*MODULES, *FILE_SYSTEM_MODULES, "ntfs3"],
        timeout=400,
        on_phase=told.append,
    )
    assert sum(" tells: " in line for line in told) == 5
    first, rest = (open_stream(done.output / f"{name}.native") for name in ("first", "rest"))
    numbers = np.concatenate([first.records["seq"], rest.records["seq"]])
    assert (np.diff(numbers.astype(np.int64)) > 0).all(), "the numbers do not rise"
    assert numbers[len(first.records)] == first.next_seq or rest.dropped > first.dropped
    assert first.dropped == first.next_seq - 1 - len(first.records)
    assert rest.dropped == rest.next_seq - 1 - len(numbers)
    assert (first.first_seq, rest.first_seq) == (1, rest.records["seq"][0])
    assert len(first.records) > 100 and set(first.records["tracker"]) == set(first.trackers["id"])


@pytest.mark.vm
def test_killed_guests(tmp_path: Path) -> None:
    seen = list(crash_lives.live("6.1", AIMS, Random(2), tmp_path))
    for life in seen:
        print(life)
    print(crash_lives.figures(seen))
    assert not crash_lives.faults(seen)
    assert crash_lives.figures(seen)["changed"] > 0


@pytest.mark.vm
def test_power_cuts(tmp_path: Path) -> None:
    seen = list(crash_cuts.cuts("6.1", 4, CUTS, Random(3), tmp_path))
    print(crash_cuts.figures(seen))
    assert not crash_cuts.faults(seen)
    assert {"clean", "unclean"} <= set(crash_cuts.figures(seen)["states"])
