"""Whole recordings in real kernels, and guests that fail."""

from __future__ import annotations

import json
import os
import runpy
from pathlib import Path

import numpy as np
import pytest

from cbtlab import lab
from cbtlab.case import Case
from cbtlab.errors import InputError
from cbtlab.files import map_volume
from cbtlab.images import differing
from cbtlab.lab import guest, laboratory
from cbtlab.lab.file_systems import FILE_SYSTEMS
from cbtlab.lab.qemu import GuestError


def test_the_scenarios_are_listed() -> None:
    assert [one["name"] for one in lab.scenarios()] == [
        *("btrfs", "exfat", "ext4-broken", "ext4-office", "ntfs-3g", "ntfs-ntfs3", "vfat", "xfs"),
    ]


def test_an_unknown_scenario_and_a_taken_place_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="use btrfs, exfat, ext4-broken"):
        lab.run("ext4", "6.1", tmp_path / "case")
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="exists; choose another name, or replace"):
        lab.run("ext4-office", "6.1", tmp_path)
    with pytest.raises(InputError, match="is no case"):
        lab.run("ext4-office", "6.1", tmp_path, force=True)
    with pytest.raises(InputError, match="does not exist"):
        lab.run("ext4-office", "6.1", tmp_path / "no" / "case")


@pytest.mark.parametrize("name", ["btrfs", "ntfs-ntfs3"])
def test_a_kernel_that_cannot_is_refused(name: str, tmp_path: Path) -> None:
    """6.1 would take a btrfs snapshot for its volume, and Debian's has no ntfs3."""
    with pytest.raises(InputError, match=r"cannot be recorded on kernel 6\.1; use --kernel 6\.12"):
        lab.run(name, "6.1", tmp_path / "case")
    assert not (tmp_path / "case").exists()


def check_recording(case: Case, backups: int) -> None:
    """Hold a case to the blocks' own content: no changed block is missing from a bitmap."""
    assert case.verify() == []
    assert len(case.intervals) == backups
    assert len(case.writes.writes.missing()) == 0
    assert case.recorded["events_lost"] == 0
    for interval in case.intervals:
        assert interval.unusable == ()
        log = interval.record["log"]
        assert log["suspended"]
        assert log["store"]["valid"]
        assert log["writer"]["covered"]
        assert log["writer"]["longest"] > 0
        assert {one["path"] for one in log["deleted"]} >= {"/pagefile.sys"}
        for volume in ("physical", "snapshot") if interval.k else ("snapshot",):
            bitmap, writes = interval.bitmap(volume), interval.writes(volume)
            assert bitmap is not None and writes is not None
            assert writes.writes.bitmap(case.volume_size, case.granularity) == bitmap
            with interval.snapshot() as snapshot:
                before = case.intervals[interval.k - 1].snapshot()
                other = before if volume == "physical" else interval.stored()
                changed = differing(other, snapshot, case.granularity)
            assert changed.issubset(bitmap)
            assert changed.count() > 3  # exFAT writes seven for a delete


@pytest.mark.vm
def test_a_short_recording_on_6_1(tmp_path: Path) -> None:
    case = lab.run("ext4-broken", "6.1", tmp_path / "case", steps=2)
    check_recording(case, 2)
    assert case.recorded["release"].startswith("6.1.")


@pytest.mark.vm
@pytest.mark.slow
def test_a_whole_recording_on_6_12(tmp_path: Path) -> None:
    case = lab.run("ext4-office", "6.12", tmp_path / "case")
    check_recording(case, 6)
    assert case.recorded["release"].startswith("6.12.")
    assert [interval.k for interval in case.intervals if not interval.kept] == [3]
    for interval in case.intervals:
        seq = {mark["name"]: mark["seq"] for mark in interval.marks}
        writes = interval.writes("snapshot")
        assert writes is not None
        own = writes["seq"].to_numpy(np.uint64)
        assert (own >= seq["mount"]).all(), "nobody wrote to the snapshot before its mount"
        assert (own < seq["unmounted"]).all()
        deleting = (own >= seq["delete"]) & (own < seq["unmount"])
        assert 5 < deleting.sum() < len(own)


@pytest.mark.vm
@pytest.mark.slow
@pytest.mark.skipif("CBTLAB_LONG" not in os.environ, reason="takes ten minutes: CBTLAB_LONG=1")
@pytest.mark.parametrize("name", sorted(set(FILE_SYSTEMS) - {"ext4"}))
def test_a_short_recording_of_each_file_system(name: str, tmp_path: Path) -> None:
    """On each kernel that has it; the snapshot that is deleted on is at rest before."""
    for kernel in FILE_SYSTEMS[name].kernels:
        place = tmp_path / kernel
        case = lab.run("ntfs-ntfs3" if name == "ntfs3" else name, kernel, place, steps=2)
        check_recording(case, 2)
        for interval in case.intervals:
            with interval.mended() as image:
                assert map_volume(image).names["path"].isin(["/pagefile.sys"]).any()


@pytest.mark.vm
@pytest.mark.slow
def test_a_late_switch_loses_blocks(tmp_path: Path) -> None:
    case = lab.run("ext4-broken", "6.1", tmp_path / "case", steps=5)
    lost = case.intervals[4]
    bitmap = lost.bitmap("physical")
    assert bitmap is not None
    with case.intervals[3].snapshot() as before, lost.snapshot() as after:
        changed = differing(before, after, case.granularity)
    assert (changed - bitmap).count() > 0
    assert case.intervals[3].record["log"]["suspended"] is False

    script = runpy.run_path(str(laboratory.folder() / "ext4-broken" / "break.py"))
    broken = script["break_case"](tmp_path / "case", tmp_path / "broken")
    assert broken.verify() == []
    assert broken.writes.writes.missing()["count"].tolist() == [script["LOST"]]
    good, cleared = case.intervals[2].bitmap("physical"), broken.intervals[2].bitmap("physical")
    assert good is not None
    assert (good - cleared).count() == script["CLEARED"]


@pytest.mark.vm
def test_a_guest_that_fails_is_told_with_its_last_words_and_its_console(tmp_path: Path) -> None:
    result = guest.boot("6.1", "echo it is broken; exit 7", work=tmp_path, module=False)
    assert result.exit_status == 7
    with pytest.raises(GuestError, match="status 7: its last words: it is broken") as error:
        result.check()
    assert error.value.piece == str(tmp_path / "console")
    assert "it is broken" in Path(error.value.piece).read_text()


@pytest.mark.vm
def test_a_guest_that_hangs_is_stopped_at_the_time_limit(tmp_path: Path) -> None:
    with pytest.raises(GuestError, match="did not end within 20 seconds") as error:
        guest.boot("6.1", "echo now; sleep 1000", work=tmp_path, module=False, timeout=20)
    assert "now" in Path(error.value.piece).read_text()


@pytest.mark.vm
def test_a_guest_that_ends_without_its_closing_line_has_failed(tmp_path: Path) -> None:
    with pytest.raises(GuestError, match="without its closing line"):
        guest.boot("6.1", "/lab/busybox poweroff -f", work=tmp_path, module=False, timeout=60)


@pytest.mark.vm
def test_files_go_in_and_output_comes_back(tmp_path: Path) -> None:
    result = guest.boot(
        "6.12",
        "cp /in/words /out && dd if=/dev/lab/data of=/out/data bs=4 count=1 && uname -r",
        files={"in/words": "some"},
        disks={"data": 1 << 20},
        work=tmp_path,
        module=False,
    ).check()
    assert (result.output / "words").read_text() == "some"
    assert (result.output / "data").read_bytes() == bytes(4)
    assert result.release in result.console.read_text()


def test_every_scenario_defines_one() -> None:
    for one in laboratory.described():
        scenario = laboratory.load(one.path)
        assert scenario.name == one.path.parent.name
        assert len(scenario.steps) >= 4


@pytest.mark.vm
@pytest.mark.parametrize("kernel", ["6.1", "6.12"])
def test_the_recorder_survives_a_full_store_and_the_watchdog_thaws(
    kernel: str, tmp_path: Path
) -> None:
    done = guest.boot(
        kernel,
        "insmod /lab/cbt.ko && python3.11 /tests/edges.py",
        files={"tests": Path(__file__).parent / "guest"},
        disks={"data": 16 << 20, "store": 5 << 20},
        work=tmp_path,
    )
    # The kernel complains of the snapshot that ran full; nothing else may be said.
    assert done.exit_status == 0, done.console.read_text()
    results = json.loads((done.output / "edges.json").read_text())
    first, torn, last = results["backups"]
    assert [one["k"] for one in results["backups"]] == [0, 1, 2]
    assert first["kept"] and first["complete"]
    assert not torn["kept"]
    assert any("torn" in reason for reason in torn["reasons"])
    assert torn["marked"] > 256, "what was written before it stays recorded"
    assert last["kept"] and last["complete"], "the next one has an empty store"
    assert last["marked"] > 6 << 8
    assert len(results["held"]) == 1
    assert "Device or resource busy" in results["held"][0]
    assert results["watchdog"] == {"thawed": True, "late": True, "timely": False}
    assert results["left"] == ["base", "volume"]
    assert "its table is linear" in results["refused"]["no origin"]
    assert "not suspended" in results["refused"]["running"]
