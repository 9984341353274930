"""The kernel's own map of a mounted file system against our map of its image."""

from __future__ import annotations

import subprocess
from pathlib import Path

import ext_images as ext
import pytest

from cbtlab.errors import InputError
from cbtlab.files.fiemap import mounted_listing
from cbtlab.files.listing import listing
from cbtlab.images import open_image

pytestmark = [pytest.mark.root, ext.needs_e2fsprogs]


@pytest.mark.parametrize(
    "options", ["-t ext4 -b 4096", "-t ext4 -b 1024", "-t ext4 -b 4096 -O bigalloc -C 16384"]
)
def test_both_list_the_same_extents(tmp_path: Path, options: str) -> None:
    path = ext.make(tmp_path / "a.img", 64 * ext.MIB, *options.split())
    with ext.mounted(path) as root:
        ext.fill(root)
        ext.preallocate(root)
    with ext.mounted(path, "-o", "ro") as root:
        told = mounted_listing(root)["files"]
        some = mounted_listing(root, ["tiny", "/folder/"])["files"]
    with open_image(path) as image:
        own = listing(image)["files"]
    assert [file["path"] for file in told] == [file["path"] for file in own]
    for theirs, mine in zip(told, own, strict=True):
        if "symlink" not in mine["path"]:  # nobody can ask the kernel for a symlink's place
            assert theirs == mine
    assert [file["path"] for file in some] == ["/folder/link.txt", "/folder/text.txt", "/tiny"]


def test_btrfs_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "b.img"
    with path.open("wb") as file:
        file.truncate(128 * ext.MIB)
    if subprocess.run(["mkfs.btrfs", "-q", str(path)], check=False).returncode:
        pytest.skip("needs btrfs-progs")
    with ext.mounted(path) as root, pytest.raises(InputError, match="addresses of its own"):
        mounted_listing(root)
