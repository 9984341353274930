"""Run in a guest: what cbtctl's stop and start carry over a restart, and what they refuse.

Each function is one behaviour; it asserts, and an assertion ends the guest
with a failure.  Needs the tools of the file systems in ``crash_unseen.py``, and
the kernel's modules for them.
"""

from __future__ import annotations

import subprocess
from random import Random

import volumes
from crash_disk import cbtctl, mapper
from crash_folders import FOLDERS
from crash_stream import streams_rise_and_are_whole
from crash_unseen import writing_without_a_tracker_is_found
from crash_volume import (
    DISK,
    FOLDER,
    KINDS,
    PLACE,
    SIZE,
    bits,
    detach,
    locked,
    make,
    put_back,
    refuses,
    save,
    start,
    status,
    stop,
    switch,
    volume,
)

from cbtlab.record.device_mapper import Target
from cbtlab.record.mounted import mounted


def all_bits_come_back() -> None:
    for size, granularity in (SIZE, 4096), (SIZE - 512, 1024), (5 * 4096, 512):
        with volume(size) as node:
            options = ("physical", str(granularity), "--interval", "7")
            told = start(node, *options, expected="new")
            volumes.write(node, 0, b"x" * 1024)
            volumes.write(node, size - 1024, b"x" * 1024)
            if size == SIZE:
                subprocess.run(["/sbin/blkdiscard", "-o", "8388608", "-l", "65536", node])
            before = [bits(told, "active", kind) for kind in KINDS]
            assert stop(told).endswith("states=\n")
            again = start(node, *options, expected="clean")
            assert [bits(again, "active", kind) for kind in KINDS] == before
            assert (again["generation"], again["interval"]) == (told["generation"], "7")
            assert status(again)["states"] == ""
            volumes.write(node, 2048, b"y" * 512)
            now = volumes.marked(bits(again, "active", "changed"))
            assert now == volumes.marked(before[0]) | {2048 // granularity}
            detach(again)


def what_was_not_stopped_is_unclean() -> None:
    with volume() as node:
        told = start(node, expected="new")
        detach(told)
        again = start(node, expected="unclean", because="not stopped in order")
        assert again["generation"] != told["generation"]
        assert status(again)["states"] == "unclean"
        assert status(again)["next_backup"] == "full"
        assert "name=unclean next_backup=full " in cbtctl("status")
        # It lasts until an interval has ended: only then can there be a full backup.
        stop(again)
        again = start(node, expected="unclean", because="no interval has ended")
        switch(again)
        assert status(again)["next_backup"] == "full", "it is not made yet"
        cbtctl("clear", again["id"])
        assert status(again)["next_backup"] == "incremental"
        stop(again)
        told = start(node, expected="clean")
        assert told["generation"] == again["generation"] and told["interval"] == "1"
        stop(told)
        detach(start(node, "physical", "4096", "--unclean", expected="unclean", because="asked"))


def frozen_bitmaps_are_kept() -> None:
    with volume() as node:
        told = start(node, expected="new")
        volumes.write(node, 40960, b"x" * 8192)
        switch(told)
        volumes.write(node, 0, b"x" * 4096)
        frozen = [bits(told, "frozen", kind) for kind in KINDS]
        stop(told)
        again = start(node, expected="clean")
        assert again["frozen"] == "0" and again["interval"] == "1"
        for kind, expected in zip(KINDS, frozen, strict=True):
            path = FOLDER / f"frozen-{told['generation']}-0.{kind}"
            assert path.read_bytes() == expected
        assert volumes.marked(bits(again, "active", "changed")) == {0}
        stop(again)
        again = start(node, expected="clean")
        assert "frozen" not in again
        detach(again)


def altered_states_are_unclean() -> None:
    rng = Random(5)
    with volume() as node:
        stop(start(node, expected="new"))
        copy = save()
        for number in range(24):
            put_back(copy)
            path = FOLDER / ("state" if number % 4 else "clean")
            data = bytearray(path.read_bytes())
            if number % 3:
                data[rng.randrange(min(len(data), 256 if number % 2 else 1 << 30))] ^= 1
            else:
                del data[rng.randrange(len(data)) :]
            path.write_bytes(data)
            detach(start(node, expected="unclean", because="the saved state is"))
        for name in "state", "clean":
            put_back(copy)
            (FOLDER / name).unlink()
            detach(start(node, expected="unclean"))
        put_back(copy)
        stop(start(node, expected="clean"))


def what_does_not_fit_is_unclean() -> None:
    with volume() as node:
        stop(start(node, expected="new"))
        copy = save()
        for words, because in (
            (("snapshot", "4096"), "the role was physical"),
            (("physical", "8192"), "the granularity was 4096"),
        ):
            put_back(copy)
            detach(start(node, *words, expected="unclean", because=because))
        put_back(copy)
        told = start(node, expected="clean")
        put_back(copy)
        again = start(node, expected="unclean", because="has this generation already")
        detach(told)
        detach(again)
        put_back(copy)
        mapper.suspend("volume")
        mapper.load("volume", [Target(0, SIZE // 1024, "linear", f"{DISK} 0")])
        mapper.resume("volume")
        detach(start(node, expected="unclean", because=f"the volume had {SIZE} bytes"))


def faults_outlast_the_restart() -> None:
    with volume() as node:
        told = start(node, expected="new")
        cbtctl("switch", "--running", told["id"])
        cbtctl("clear", told["id"])
        assert "states=running-switch\n" in stop(told)
        told = start(node, expected="unclean", because="running-switch")
        mapper.suspend("volume")
        mapper.load("volume", [Target(0, SIZE // 512, "linear", f"{DISK} 8")])
        mapper.resume("volume")
        if "tables_seen=yes" in cbtctl("status"):
            assert "states=table,unclean\n" in stop(told)
            detach(start(node, expected="unclean", because="table"))
        else:
            detach(told)


def writes_after_the_seal_void_the_stop() -> None:
    with volume() as node:
        told = start(node, expected="new")
        cbtctl("seal", told["id"])
        stop(told)  # as after a stop that was ended in its middle
        told = start(node, expected="clean")
        cbtctl("seal", told["id"])
        volumes.write(node, 4096, b"x" * 512)
        assert "written after it was sealed" in refuses("stop", str(FOLDER), told["id"])
        assert "trackers=0" in cbtctl("status")
        detach(start(node, expected="unclean"))


def volumes_in_use_are_refused() -> None:
    with volume() as node:
        make("ext4", node)
        told = start(node, expected="new")
        with mounted(node, PLACE, "ext4"):
            assert "in use" in refuses("stop", str(FOLDER), told["id"])
            assert status(told)["states"] == "", "sealed all the same"
            on_it = PLACE / "state"
            on_it.mkdir()
            refuses("stop", str(on_it), told["id"])
            assert "in use" in refuses("start", str(FOLDER), node, "physical", "4096")
            refuses("start", str(on_it), node, "physical", "4096")  # in use
        with locked():
            assert "another stop or start" in refuses("stop", str(FOLDER), told["id"])
        stop(told)
        detach(start(node, expected="clean"))
        assert "make it first" in refuses("start", "/tmp/missing", node, "physical", "4096")
        refuses("start", str(FOLDER), "/dev/lab/missing", "physical", "4096")
        refuses("stop", str(FOLDER), "99")
        for words in ("stop",), ("start", str(FOLDER), node, "physical"):
            refuses(*words, status=2)


def a_folder_that_was_put_back_is_found() -> None:
    with volume() as node:
        make("ext4", node)
        stop(start(node, expected="new"))
        copy = save()
        told = start(node, expected="clean")
        with mounted(node, PLACE, "ext4"):
            (PLACE / "file").write_bytes(b"x" * 8192)
        stop(told)
        put_back(copy)
        detach(start(node, expected="unclean", because="without a tracker"))


def main() -> None:
    PLACE.mkdir(parents=True, exist_ok=True)
    for behaviour in (
        all_bits_come_back,
        what_was_not_stopped_is_unclean,
        frozen_bitmaps_are_kept,
        altered_states_are_unclean,
        what_does_not_fit_is_unclean,
        faults_outlast_the_restart,
        writes_after_the_seal_void_the_stop,
        volumes_in_use_are_refused,
        a_folder_that_was_put_back_is_found,
        *FOLDERS,
        writing_without_a_tracker_is_found,
        streams_rise_and_are_whole,
    ):
        print(f"cbtlab: {behaviour.__name__.replace('_', ' ')}", flush=True)
        behaviour()
        assert "trackers=0" in cbtctl("status"), "a tracker was left"


if __name__ == "__main__":
    main()
