"""Small file systems on loop devices for the tests of the delete; each skips where it cannot."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

MIB = 1 << 20
SIZES = {"ext4": 16 * MIB, "btrfs": 128 * MIB, "xfs": 300 * MIB, "ntfs-3g": 16 * MIB}
MAKE = {
    "ext4": ["mkfs.ext4", "-q", "-F"],
    "btrfs": ["mkfs.btrfs", "-q"],
    "xfs": ["mkfs.xfs", "-q"],
    "ntfs-3g": ["mkfs.ntfs", "-q", "-F", "-f"],
}


def run(*command: object) -> str:
    """Run a program and return its output; its failure fails the test, its absence skips it."""
    try:
        done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip(f"needs {command[0]}")
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return done.stdout


def _may(*command: object) -> str:
    """Run a program that this machine may not allow."""
    try:
        done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip(f"needs {command[0]}")
    if done.returncode:
        pytest.skip(f"{command[0]}: {done.stderr.strip()}")
    return done.stdout.strip()


def bind(source: Path, place: Path) -> None:
    """Bind-mount a file or folder over another."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    _may("mount", "--bind", source, place)


def unbind(place: Path) -> None:
    """Undo `bind`."""
    subprocess.run(["umount", str(place)], check=False, capture_output=True)


@contextmanager
def bound(source: Path, place: Path) -> Iterator[None]:
    """A bind mount for the length of a ``with``."""
    bind(source, place)
    try:
        yield
    finally:
        unbind(place)


@contextmanager
def looped(image: Path) -> Iterator[str]:
    """A loop device of an image."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    device = _may("losetup", "-f", "--show", image)
    try:
        yield device
    finally:
        run("losetup", "-d", device)


@contextmanager
def volume(folder: Path, kind: str, name: str = "volume") -> Iterator[Path]:
    """A new file system of a kind, mounted."""
    image, place = folder / f"{name}.img", folder / f"{name}.mnt"
    with image.open("wb") as file:
        file.truncate(SIZES[kind])
    run(*MAKE[kind], image)
    place.mkdir()
    with looped(image) as device:
        _may("mount", "-t", kind, device, place)
        try:
            yield place
        finally:
            run("umount", place)


@contextmanager
def twins(folder: Path, kind: str) -> Iterator[tuple[Path, str]]:
    """A mounted file system with the file ``secret``, and the device of a frozen copy of it."""
    with ExitStack() as stack:
        live = stack.enter_context(volume(folder, kind, "live"))
        (live / "secret").write_text("live")
        run("fsfreeze", "-f", live)
        try:
            run("cp", "--sparse=always", folder / "live.img", folder / "copy.img")
        finally:
            run("fsfreeze", "-u", live)
        yield live, stack.enter_context(looped(folder / "copy.img"))


def device_of(place: Path) -> str:
    """The device that is mounted at a place."""
    return run("findmnt", "-n", "-o", "SOURCE", place).strip()
