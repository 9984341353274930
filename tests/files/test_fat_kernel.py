"""Volumes that the kernel's vfat and exfat wrote: where each block lies, as FIBMAP says it.

One guest for all of them, with Linux 6.12, whose exFAT keeps how much of a file is valid.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import fat_images as fat
import numpy as np
import pytest

from cbtlab.errors import NotAtRest
from cbtlab.files import map_volume
from cbtlab.images import open_image
from cbtlab.lab import guest
from cbtlab.lab.initramfs import MODULES

pytestmark = [pytest.mark.vm, fat.needs_mtools, fat.needs_exfatprogs]

DISKS = {  # name: MiB, the program and its options
    "fat12": (4, "mkfs.fat -F 12 -s 2"),
    "fat16": (32, "mkfs.fat -F 16 -S 2048 -s 2 -a -R 3"),
    "fat32": (40, "mkfs.fat -F 32 -s 1"),
    "exfat": (16, "mkfs.exfat -c 4K"),
}
MODULES_OF_FAT = ("nls_cp437", "nls_ascii", "nls_utf8", "vfat", "exfat")
Kernel = tuple[dict[str, dict[str, Any]], dict[str, Path], Path]


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Kernel:
    folder = tmp_path_factory.mktemp("kernel")
    images = {}
    for name, (size, words) in DISKS.items():
        program, *options = words.split()
        path = folder / f"{name}.img"
        images[name] = fat.make(path, size * fat.MIB, *options, program=program)
    done = guest.boot(
        "6.12",
        f"python3.11 -B /tests/fat_guest.py {' '.join(DISKS)}",
        files={"tests/fat_guest.py": Path(__file__).with_name("fat_guest.py")},
        disks=images,
        module=False,
        modules=[*MODULES, *MODULES_OF_FAT],
        work=folder / "work",
        timeout=300,
    ).check()
    print(f"the guest took {done.seconds:.0f} s")
    return json.loads((done.output / "files.json").read_text()), images, done.output


@pytest.mark.parametrize("name", list(DISKS))
def test_every_block_is_where_the_kernel_says(kernel: Kernel, name: str) -> None:
    answers, images, _ = kernel
    theirs = answers[name]
    with open_image(images[name]) as image:
        volume = map_volume(image)
        inode = volume.names.set_index("path")["inode"]
        assert set(inode.index) == {*theirs, "/"} and len(theirs) > 30
        assert volume.damaged == {}
        for path, there in theirs.items():
            row, rows = volume.inodes.loc[inode[path]], volume.rows(int(inode[path]))
            assert (row["type"] == "directory") == there["folder"], path
            assert row["mtime_ns"] == there["modified"], path
            if there["folder"]:
                continue
            assert row["size"] == there["size"], path
            assert hashlib.sha256(volume.read_file(inode[path])).hexdigest() == there["digest"]
            if not there["size"]:
                continue
            step = -(-int(there["size"]) // len(there["blocks"]))
            step = 1 << (step - 1).bit_length() if step > 512 else 512
            mine = np.concatenate(
                [np.arange(p, p + n, step) for p, n in zip(rows.physical, rows.length, strict=True)]
            )
            assert mine[: len(there["blocks"])].tolist() == there["blocks"], path
        assert len(volume.rows(int(inode["/one"]))) > 3, "nothing was in fragments"
    fat.check_owners(volume)
    checker = "fsck.exfat" if name.startswith("exfat") else "fsck.fat"
    fat.run(checker, "-n", images[name])


def test_what_was_never_written(kernel: Kernel) -> None:
    """A file that only grew: FAT writes zeros, exFAT of Linux 6.12 remembers."""
    _, images, _ = kernel
    for name in ("fat16", "exfat"):
        with open_image(images[name]) as image:
            volume = map_volume(image)
        number = int(volume.names.set_index("path").loc["/grown", "inode"])
        kinds = volume.extents[volume.extents["inode"] == number]["kind"].tolist()
        if name == "exfat":
            assert kinds == ["data", "unwritten"]
            assert volume.inodes.loc[number, "valid"] == 512  # it counts whole sectors
            place = int(volume.rows(number).physical[1])
            assert not volume._marked(np.array([place]))[0]
        else:
            assert set(kinds) == {"data"}


@pytest.mark.parametrize("kind", ["vfat", "exfat"])
def test_a_copy_of_a_mounted_volume_is_not_at_rest(kernel: Kernel, kind: str) -> None:
    _, images, output = kernel
    disk = "exfat" if kind == "exfat" else "fat12"
    data = bytearray(images[disk].read_bytes())
    head = (output / f"{kind}.dirty").read_bytes()
    data[: len(head)] = head
    with pytest.raises(NotAtRest, match="marked dirty"):
        map_volume(fat.Memory(data))
