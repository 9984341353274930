"""Volumes that real drivers wrote and deleted on, and what those drivers read of them."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cbtlab.files import VolumeMap, map_volume
from cbtlab.images import Image, open_image
from cbtlab.leftovers import Patches, Scrubbed, scrub

MIB = 1 << 20
SECRET = b"the launch code is 4711-0815, and nobody outside of this room may read it\n"
PATH = os.pathsep.join([os.environ.get("PATH", ""), "/sbin", "/usr/sbin"])


def needs(*tools: str) -> pytest.MarkDecorator:
    missing = [tool for tool in tools if not shutil.which(tool, path=PATH)]
    return pytest.mark.skipif(bool(missing), reason=f"needs {', '.join(missing)}")


def run(*command: object, status: tuple[int, ...] = (0,)) -> str:
    done = subprocess.run(
        [str(word) for word in command],
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
        env={**os.environ, "PATH": PATH, "LC_ALL": "C.UTF-8", "MTOOLS_SKIP_CHECK": "1"},
    )
    assert done.returncode in status, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


def make(path: Path, size: int, *command: object) -> Path:
    """A new image, with a file system by ``command``."""
    path.unlink(missing_ok=True)
    with path.open("wb") as file:
        file.truncate(size)
    run(*command, path)
    return path


@contextmanager
def by_kernel(path: Path, options: str = "rw") -> Iterator[Path]:
    """Mount an image on a loop device, and unmount it durably."""
    if os.geteuid() != 0 or not Path("/dev/loop-control").exists():
        pytest.skip("needs root and loop devices")
    folder = path.with_suffix(".mount")
    folder.mkdir(exist_ok=True)
    device = run("losetup", "-f", "--show", path).strip()
    try:
        done = subprocess.run(
            ["mount", "-o", options, device, folder], capture_output=True, text=True, check=False
        )
        if done.returncode:
            pytest.skip(f"this kernel does not mount it: {done.stderr.strip()}")
        try:
            yield folder
        finally:
            run("umount", folder)
    finally:
        run("losetup", "-d", device)


@contextmanager
def by_ntfs_3g(path: Path, options: str = "rw") -> Iterator[Path]:
    """Mount an image by ntfs-3g."""
    if os.geteuid() != 0 or not Path("/dev/fuse").exists():
        pytest.skip("needs root and FUSE")
    folder = path.with_suffix(".mount")
    folder.mkdir(exist_ok=True)
    driver = subprocess.Popen(
        ["ntfs-3g", "-n", "-o", f"no_detach,{options}", path, folder], stderr=subprocess.DEVNULL
    )
    try:
        for _ in range(1000):
            if folder.is_mount() or driver.poll() is not None:
                break
            subprocess.run(["sleep", "0.01"], check=False)
        if not folder.is_mount():
            pytest.skip("ntfs-3g does not mount here")
        yield folder
    finally:
        if folder.is_mount():
            run("umount", folder)
        assert driver.wait(60) is not None


def tree(root: Path) -> dict[str, str]:
    """Every path below a folder: the digest of a file, the target of a symlink, or "folder"."""
    found = {}
    for path in sorted(root.rglob("*")):
        name = str(path.relative_to(root))
        if path.is_symlink():
            found[name] = str(path.readlink())
        elif path.is_dir():
            found[name] = "folder"
        else:
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def scrubbed(path: Path) -> tuple[Path, Patches]:
    """A copy of an image with its leftovers overwritten, and what was overwritten."""
    with open_image(path) as image:
        volume = map_volume(image)
        patches = scrub(volume, image, volume.in_use)
        view = Scrubbed(image, patches)
        made = path.with_suffix(".scrubbed")
        made.write_bytes(view.read(0, view.size))
    return made, patches


def mapped(path: Path) -> tuple[VolumeMap, Image]:
    image = open_image(path)
    return map_volume(image), image
