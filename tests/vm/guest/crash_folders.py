"""For ``crash_states.py``: what stop and start refuse, and which tracker a folder is of."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import volumes
from crash_disk import cbtctl, mapper
from crash_volume import FOLDER, detach, refuses, start, status, stop, volume

from cbtlab.record.mounted import unmount

OTHER = Path("/tmp/other")


def the_folder_says_which_tracker() -> None:
    """Two products on one volume: their ids cannot be mixed up."""
    with volume() as node:
        shutil.rmtree(OTHER, ignore_errors=True)
        OTHER.mkdir()
        mine = start(node, expected="new")
        other = cbtctl("start", str(OTHER), node, "physical", "65536").split()[0][len("id=") :]
        generation = mine["generation"]
        assert (FOLDER / "started").read_text() == (
            f"tracker id={mine['id']} generation={generation}\n"
        )
        for folder, number in (FOLDER, other), (OTHER, mine["id"]):
            assert "is not the one" in refuses("stop", str(folder), number)
        empty = OTHER / "empty"
        empty.mkdir()
        for words in (str(empty), mine["id"]), (str(empty),):
            assert "no tracker was started with" in refuses("stop", *words)
        assert status(mine)["states"] == "", "sealed all the same"
        volumes.write(node, 4096, b"x" * 512)
        assert generation in cbtctl("stop", str(FOLDER))  # without an id
        assert "stopped already" in refuses("stop", str(FOLDER))
        cbtctl("stop", str(OTHER), other)
        mine = start(node, expected="clean")
        assert mine["generation"] == generation
        detach(mine)
        assert "is not attached any more" in refuses("stop", str(FOLDER))
        detach(start(node, expected="unclean"))


def a_suspended_volume_is_refused() -> None:
    """Else the program hangs, and nobody can end it."""
    with volume() as node:
        told = start(node, expected="new")
        mapper.suspend("volume")
        assert "is suspended" in refuses("stop", str(FOLDER))
        assert "is suspended" in refuses("start", str(FOLDER), node, "physical", "4096")
        mapper.resume("volume")
        assert status(told)["states"] == ""
        stop(told)


def a_full_disk_says_what_to_do() -> None:
    with volume() as node:
        words = ["mount", "-t", "tmpfs", "-o", "size=8k", "tmpfs", str(FOLDER)]
        subprocess.run(["/lab/busybox", *words], check=True)
        told = start(node, expected="new")
        said = refuses("stop", str(FOLDER))
        assert f"{FOLDER}/state.new: No space left" in said
        assert f"tracker {told['id']} stays sealed" in said and "stop again" in said
        assert "sealed" in status(told)["states"]
        words = ["mount", "-o", "remount,size=4m", str(FOLDER)]
        subprocess.run(["/lab/busybox", *words], check=True)
        stop(told)
        detach(start(node, expected="clean"))
        unmount(FOLDER)


FOLDERS = (
    the_folder_says_which_tracker,
    a_suspended_volume_is_refused,
    a_full_disk_says_what_to_do,
)
