"""A sparse volume of 16 TiB at 4 KiB is attached, and switched as fast as one of 16 MiB."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import median
from typing import Any

import pytest
from programs import boot

from cbtlab.lab.initramfs import MODULES

pytestmark = pytest.mark.vm

MIB, MS = 1 << 20, 1e6


@pytest.fixture(scope="module", params=["6.1", "6.12"])
def large(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What ``guest/large.py`` measured on a kernel; it has checked bits and refusals itself."""
    work: Path = tmp_path_factory.mktemp("large")
    done = boot(
        request.param,
        "large.py",
        work,
        disks={"store": 64 * MIB},
        modules=[*MODULES, "dm-zero"],
        memory=4096,
        timeout=300,
    )
    return json.loads((done.output / "large.json").read_text())


def test_memory_is_told(large: dict[str, Any]) -> None:
    """One bit each 4 KiB; changed and discarded, active and frozen."""
    assert large["bitmap_bytes"] == 512 * MIB
    assert large["memory"] == 4 * 512 * MIB


def test_switch_takes_no_longer_than_a_small_ones(large: dict[str, Any]) -> None:
    """Clearing zeroes both bitmaps of 512 MiB; zeroing one of them would take half as long.

    So a quarter of that is the slack for a machine that is emulated and shared.
    """
    slack = min(large["clear_ns"]) / 4
    least = {name: min(large[name]) for name in ("large", "small")}
    middle = {name: median(large[name]) for name in ("large", "small")}
    print(
        f"{large['release']}: attached in {large['attach_seconds']:.1f} s; frozen, median (least):",
        *(f"{name} {middle[name] / MS:.2f} ({least[name] / MS:.2f}) ms" for name in middle),
        f"; cleared in {slack * 4 / MS:.0f} ms",
    )
    assert middle["large"] <= 2 * middle["small"] + slack
    assert least["large"] <= 2 * least["small"] + slack
