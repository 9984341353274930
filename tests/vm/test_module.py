"""The kernel module in real kernels: what it refuses, and that nothing stays silent.

The switches that lose nothing are in ``test_switches.py``.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from programs import boot

from cbtlab.lab.initramfs import MODULES
from cbtlab.writes import read_writes
from cbtlab.writes.native import Stream, open_stream

pytestmark = pytest.mark.vm


@pytest.mark.parametrize("kernel", ["6.1", "6.12"])
def test_refusals_and_states(kernel: str, tmp_path: Path) -> None:
    told: list[str] = []
    done = boot(
        kernel,
        "behaviour.py",
        tmp_path,
        disks={"volume": 64 << 20, "store": 32 << 20},
        modules=[*MODULES, "brd", "lzo-rle", "zram", "btrfs"],
        packages=["btrfs-progs"],
        on_phase=told.append,
        timeout=300,
    )
    assert len(told) > 40
    assert "log on btrfs is refused" in told
    events = open_stream(done.output / "cbtctl.native").events
    assert [(e["offset"], e["interval"]) for e in events] == [(8192, 3), (40960, 4)]
    check_stream(open_stream(done.output / "whole.native"))
    check_trackers(done.output)


def check_trackers(output: Path) -> None:
    """Streams that cbtctl saved of trackers which were detached before, or attached later."""
    gone, mixed = (open_stream(output / f"{name}.native") for name in ("gone", "mixed"))
    assert gone.frame()["volume"].isna().tolist() == [True, True]
    assert "2 events are of trackers that it does not describe" in gone.notes[0]
    assert mixed.frame()["volume"].isna().tolist() == [True, False]
    for name in ("SIGTERM", "SIGINT", "SIGHUP"):
        late = open_stream(output / f"late-{name}.native")
        assert late.frame()["volume"].tolist() == ["physical"] * 2
        assert late.trackers["name"].tolist()[0].startswith(b"dm-")
        assert not late.notes
    for name in ("after-full", "empty"):
        assert read_writes(output / f"{name}.native").writes.summary()["lost"] == 0


def check_stream(stream: Stream) -> None:
    """Two trackers' 3000 writes each, from two CPUs at once: none is missing, none is torn."""
    assert (stream.version, stream.dropped) == (2, 0)
    events = stream.events
    assert len(events) == 6000
    assert events["seq"].tolist() == list(range(1, 6001))
    assert stream.next_seq == 6001
    seq = stream.records["seq"].astype(np.int64)
    assert (np.diff(seq) < 0).any(), "one ring held all: nothing was merged"
    for tracker in stream.trackers["id"]:
        own = events[events["tracker"] == tracker]
        offsets, count = np.unique(own["offset"], return_counts=True)
        assert offsets.tolist() == [4096 * block for block in range(1500)]
        assert set(count.tolist()) == {2}
    raw = np.sort(stream.records, order="seq")["time_ns"].astype(np.int64)
    # Neighbours on two CPUs may have read the clock in the other order, though hardly ever.
    assert (np.diff(raw) < 0).sum() < 60
