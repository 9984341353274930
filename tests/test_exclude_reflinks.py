"""Blocks that a reflink shares stay, on real file systems; the kernel makes and deletes them."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest
from record import devices

from cbtlab.bitmap import Bitmap
from cbtlab.exclude import excluded, foreseen
from cbtlab.files import VolumeMap, map_volume
from cbtlab.images import open_image
from cbtlab.record.mounted import delete, mounted
from cbtlab.rules import Rules

pytestmark = pytest.mark.root
PART = 1 << 16


def mapped(image: Path) -> VolumeMap:
    with open_image(image) as opened:
        return map_volume(opened)


def fill(place: Path) -> None:
    """A page file of 16 parts; a copy shares it whole, another file shares parts 4 and 5."""
    data = b"".join(bytes([n + 1]) * PART for n in range(16))
    (place / "page").write_bytes(data)
    (place / "alone").write_bytes(b"alone" * 20_000)
    subprocess.run(["sync", "-f", str(place)], check=True)
    (place / "part").touch()
    devices.run("xfs_io", "-c", f"reflink {place}/page {4 * PART} 0 {2 * PART}", place / "part")
    subprocess.run(["sync", "-f", str(place)], check=True)


@pytest.mark.parametrize("kind", ["xfs", "btrfs"])
def test_what_a_reflink_shares_stays_with_its_owner(tmp_path: Path, kind: str) -> None:
    image, before = tmp_path / "volume.img", tmp_path / "before.img"
    with devices.volume(tmp_path, kind) as place:
        fill(place)
    devices.run("cp", "--sparse=always", image, before)
    rules = ["page", "alone"]
    with devices.looped(image) as device, mounted(device, tmp_path / "volume.mnt", kind) as root:
        delete(root, Rules(rules))
    one, other = mapped(before), mapped(image)
    found, real = foreseen(one, rules), excluded(one, other, rules)
    assert found.staying.to_dict("records") == [
        {"path": "/page", "owner": "/part", "why": "shared blocks", "bytes": 2 * PART}
    ]
    assert found.mask.count() * one.block_size == 14 * PART + (100_000 // 4096 + 1) * 4096
    # What the delete itself wrote may lie on a block that it freed.
    reused = real.subtracted[real.subtracted["owner"] != "/part"]
    left = found.mask - real.mask
    if kind == "btrfs":  # frees an extent as a whole: what is shared in part stays whole
        rest = other.extents[other.extents["kind"] == "reserved"]
        left = left - Bitmap.from_ranges(
            rest["physical"].to_numpy(np.int64),
            rest["length"].to_numpy(np.int64),
            volume_size=left.volume_size,
            granularity=left.granularity,
        )
    assert left.count() * one.block_size == reused["length"].sum()
    assert not (real.mask - found.mask).any()
    assert real.subtracted["owner"].isin(["/part"]).any() and not real.remaining
