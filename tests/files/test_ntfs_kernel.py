"""Volumes that the kernel's ntfs3 wrote: names, content and places as it says them itself."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import ntfs_images as ntfs
import numpy as np
import pytest

from cbtlab.errors import NotAtRest
from cbtlab.files import map_volume
from cbtlab.files.extents import DATA, UNWRITTEN
from cbtlab.images import open_image
from cbtlab.lab import guest
from cbtlab.lab.initramfs import MODULES

pytestmark = [pytest.mark.vm, ntfs.needs_ntfs3g]

DISKS = {"plain": (16, "-c 4096"), "sparse": (16, "-c 1024")}
INLINE = 0x200
Kernel = tuple[dict[str, dict[str, Any]], dict[str, Path], Path]


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Kernel:
    folder = tmp_path_factory.mktemp("ntfs3")
    images = {
        name: ntfs.make(folder / f"{name}.img", size * ntfs.MIB, *words.split())
        for name, (size, words) in DISKS.items()
    }
    done = guest.boot(
        "6.12",
        f"python3.11 -B /tests/ntfs_guest.py {' '.join(DISKS)}",
        files={"tests/ntfs_guest.py": Path(__file__).with_name("ntfs_guest.py")},
        disks=images,
        module=False,
        modules=[*MODULES, "ntfs3"],
        work=folder / "work",
        timeout=300,
    ).check()
    print(f"the guest took {done.seconds:.0f} s")
    return json.loads((done.output / "files.json").read_text()), images, done.output


@pytest.mark.parametrize("name", list(DISKS))
def test_files_are_as_the_kernel_says(kernel: Kernel, name: str) -> None:
    answers, images, _ = kernel
    theirs = answers[name]
    with open_image(images[name]) as image:
        volume = map_volume(image)
        assert (volume.damaged, volume.hidden, volume.notes) == ({}, [], [])
        leaves = volume.names[volume.names["type"] != "directory"]
        assert set(leaves["path"]) == set(theirs) and len(theirs) > 40
        for row in leaves.itertuples():
            there, about = theirs[row.path], volume.inodes.loc[row.inode]
            assert (there["inode"], there["links"]) == (row.inode, about["nlink"])
            content = volume.read_file(row.inode)
            if "target" in there:
                assert row.type == "symlink" and content.decode() == there["target"]
                continue
            assert there["size"] == about["size"] == len(content)
            assert hashlib.sha256(content).hexdigest() == there["digest"], row.path
            places_agree(volume, row.inode, there["extents"])
        inode = ntfs.inode_of(volume, "/one")
        assert b"an extended attribute" in volume.xattrs(inode).values()
        used = ntfs.bitmap(images[name], image.size // volume.block_size)
        spare = volume.arrays[volume.arrays.kind == UNWRITTEN]
        assert len(spare) > 0
        for place, length in zip(spare.physical, spare.length, strict=True):
            used[place // volume.block_size : (place + length) // volume.block_size] = False
        assert (volume.in_use.to_bool()[: len(used)] == used).all()


@pytest.mark.parametrize("name", list(DISKS))
def test_a_copy_of_a_mounted_volume_is_not_at_rest(kernel: Kernel, name: str) -> None:
    """Until a sync: ntfs3 takes its mark back when everything is on the disk."""
    copy = kernel[2] / f"{name}.live"
    with open_image(copy) as image, pytest.raises(NotAtRest, match="marked dirty"):
        map_volume(image)
    with open_image(copy.with_suffix(".synced")) as image:
        volume = map_volume(image)
    assert set(kernel[0][name]) <= set(volume.names["path"])
    assert (volume.damaged, volume.hidden, volume.notes) == ({}, [], [])


def places_agree(volume: Any, inode: int, extents: list[list[int]]) -> None:
    """FIEMAP and the map, block by block; it ends at the file's size, and has no holes."""
    size, own = volume.block_size, volume.rows(inode)
    own = own[np.isin(own.kind, (DATA, UNWRITTEN)) & (own.stream == 0)]
    mine = {
        (int(at) // size + n, int(place) // size + n)
        for at, place, many in zip(own.logical, own.physical, own.length, strict=True)
        for n in range(int(many) // size)
    }
    there = {
        (logical // size + n, physical // size + n)
        for logical, physical, length, flags in extents
        for n in range(-(-length // size))
        if not flags & INLINE
    }
    assert there <= mine, inode
    limit = -(-int(volume.inodes.loc[inode, "size"]) // size)
    assert {cell for cell in mine if cell[0] < limit} <= there | {
        cell for cell in mine if volume_unwritten(own, cell[0] * size)
    }


def volume_unwritten(own: Any, logical: int) -> bool:
    hit = (own.logical <= logical) & (own.logical + own.length > logical)
    return bool((own.kind[hit] == UNWRITTEN).all())
