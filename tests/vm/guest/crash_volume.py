"""For the programs that try cbtctl's stop and start: a volume, its folder, and the commands."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import volumes
from crash_disk import MIB, answer, cbtctl, mapper

from cbtlab.record.device_mapper import Target

DISK = "/dev/lab/disk"
SIZE = 64 * MIB
PLACE = Path("/mnt/files")
FOLDER = Path("/tmp/state")
KINDS = ("changed", "discarded")
Told = dict[str, str]


@contextlib.contextmanager
def volume(size: int = SIZE, name: str = "volume") -> Iterator[str]:
    """Make a linear volume for the length of a ``with``, and an empty folder for its state."""
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir()
    yield mapper.create(name, [Target(0, size // 512, "linear", f"{DISK} 0")]).node
    mapper.remove(name)


def make(kind: str, node: str) -> None:
    """Make a file system."""
    if kind == "ntfs3":
        words: tuple[str, ...] = ("/sbin/mkntfs", "-F", "-Q", "-q")
        words += ("-s", "512", "-p", "0", "-H", "255", "-S", "63")
    else:
        words = volumes.FILE_SYSTEMS[kind].mkfs
    subprocess.run([*words, node], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def refuses(*words: str, status: int = 1) -> str:
    """Run cbtctl, which must refuse in one line, and return that."""
    done = subprocess.run(["/lab/cbtctl", *words], capture_output=True, text=True)
    assert done.returncode == status and not done.stdout, (words, done)
    if status == 1:
        assert done.stderr.count("\n") == 1 and done.stderr.startswith("cbtctl: "), done
    return done.stderr


def start(node: str, *words: str, expected: str, because: str = "") -> Told:
    """Start, and compare what comes of it and why."""
    options = words or ("physical", "4096")
    told = answer(cbtctl("start", str(FOLDER), node, *options))
    assert told["state"] == expected and because in told["reason"], told
    assert not (FOLDER / "clean").exists()
    return told


def stop(told: Told) -> str:
    """Stop in order."""
    return cbtctl("stop", str(FOLDER), told["id"])


def status(told: Told) -> Told:
    """Return what cbtctl says of a tracker."""
    lines = cbtctl("status").splitlines()
    return answer(next(line for line in lines if line.startswith(f"tracker id={told['id']} ")))


def bits(told: Told, which: str, kind: str) -> bytes:
    """Return one bitmap."""
    cbtctl("bits", told["id"], which, kind, "/tmp/bits")
    return Path("/tmp/bits").read_bytes()


def detach(told: Told) -> None:
    """Detach out of order."""
    cbtctl("detach", told["id"])


def switch(told: Told) -> None:
    """End the interval under a suspend."""
    mapper.suspend("volume")
    cbtctl("switch", told["id"])
    mapper.resume("volume")


def save() -> Path:
    """Copy the folder away."""
    copy = Path("/tmp/copy")
    shutil.rmtree(copy, ignore_errors=True)
    return Path(shutil.copytree(FOLDER, copy))


def put_back(copy: Path) -> None:
    """Make the folder what it was."""
    shutil.rmtree(FOLDER)
    shutil.copytree(copy, FOLDER)


@contextlib.contextmanager
def locked() -> Iterator[None]:
    """Hold the folder as another stop or start does."""
    fd = os.open(FOLDER, os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_EX)
    yield
    os.close(fd)
