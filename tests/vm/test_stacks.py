"""Volumes upon volumes on real kernels: at every switch each tracker has missed no block."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from events import of, replay
from programs import boot

from cbtlab.lab.initramfs import MODULES
from cbtlab.writes.native import open_stream

pytestmark = pytest.mark.vm

# How many bitmaps each stack has judged: its trackers times its switches.
STACKS = {
    "linear_on_linear_with_partitions": 4 * 2,
    "striped": 3 * 2,
    "thin": 2 * 2,
    "two_snapshots": 3 + 4,
    "several_volumes": 3 * 2,
    "several_products": 6 + 3 + 2,
    "partitions_of_a_ram_disk": 3 * 2,
    "lvm": 3,
}

Results = tuple[dict[str, Any], Path]


@pytest.fixture(scope="module", params=["6.1", "6.12"])
def stacks(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Results:
    """What ``guest/stacks.py`` left on a kernel."""
    done = boot(
        request.param,
        "stacks.py",
        tmp_path_factory.mktemp("stacks"),
        disks={"volume": 104 << 20, "store": 96 << 20, "lvm": 128 << 20},
        packages=("lvm2", "thin-provisioning-tools"),
        modules=[*MODULES, "dm-thin-pool", "brd"],
        memory=2048,
        timeout=400,
    )
    return json.loads((done.output / "stacks.json").read_text()), done.output


@pytest.mark.parametrize("stack", STACKS)
def test_no_block_is_missed(stacks: Results, stack: str) -> None:
    rows = stacks[0]["stacks"][stack]["rows"]
    if stack == "lvm" and not rows:
        pytest.skip("this module cannot wait for a suspend")
    assert len(rows) == STACKS[stack]
    for row in rows:
        assert row["missed"] == 0, row
        assert row["changed"] > 20, "the writers wrote too little"
    tries = [row["tries"] for row in rows if "tries" in row]
    surplus, changed = (sum(row[key] for row in rows) for key in ("surplus", "changed"))
    print(
        f"{stacks[0]['release']} {stack}: {len(rows)} bitmaps, {changed} changed, {surplus} over",
        *tries,
    )


def test_an_instant_parts_the_events(stacks: Results) -> None:
    """All volumes of one call change their interval at one number."""
    results, output = stacks
    assert results["dropped"] == 0
    events = open_stream(output / "events.native").events
    switches: dict[int, int] = defaultdict(int)
    lines = (output / "instants.jsonl").read_text().splitlines()
    assert len(lines) > 20
    for line in map(json.loads, lines):
        for tracker in line["trackers"]:
            mine = events[events["tracker"] == tracker]
            ended = mine["interval"] <= switches[tracker]
            assert (mine["seq"][ended] < line["seq"]).all()
            assert (mine["seq"][~ended] >= line["seq"]).all()
            switches[tracker] += 1


def test_each_tracker_has_its_own_intervals(stacks: Results) -> None:
    """The events of a tracker's interval make its bitmap, and those of no other do."""
    results, output = stacks
    stream = open_stream(output / "events.native")
    granularity = dict(stream.trackers[["id", "granularity"]].tolist())
    rows = results["stacks"]["several_products"]["rows"]
    for tracker in {row["tracker"] for row in rows}:
        mine = [row for row in rows if row["tracker"] == tracker]
        for interval, row in enumerate(mine, start=1):
            events = of(stream.events, tracker, interval)
            bits = replay(events, -(-row["blocks"] // 8), granularity[tracker])
            assert np.unpackbits(bits).sum() == row["marked"]
