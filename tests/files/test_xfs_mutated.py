"""Damaged and hostile XFS images: an InputError or a bounded answer, and no traceback.

CBTLAB_MUTATIONS in the environment says how many images are tried of each kind.
"""

from __future__ import annotations

import os
import random
import time

import numpy as np
import pytest
import xfs_images as xfs

from cbtlab.errors import InputError
from cbtlab.files import VolumeMap, map_volume
from cbtlab.files.extents import PLACED
from cbtlab.files.xfs import checksum

pytestmark = xfs.needs_xfsprogs

MUTATIONS = int(os.environ.get("CBTLAB_MUTATIONS", "30"))
KINDS = {
    "v4": (24, "-m crc=0,finobt=0 -b size=512 -i size=256"),
    "v5": (24, "-b size=1024 -m rmapbt=1"),
}


@pytest.fixture(scope="module", params=list(KINDS))
def image(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    folder = tmp_path_factory.mktemp("xfs")
    size, options = KINDS[request.param]
    tree = xfs.tree(folder / "tree")
    path = xfs.make(folder / "a.img", size * xfs.MIB, *options.split(), files=xfs.prototype(tree))
    return path.read_bytes()


@pytest.fixture(autouse=True)
def _checksums_are_right(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if whoever changed the bytes had made the checksums anew."""

    def stored(rows: np.ndarray, at: int) -> np.ndarray:
        return np.ascontiguousarray(rows[:, at : at + 4]).view("<u4")[:, 0]

    monkeypatch.setattr(checksum, "made", stored)


def look_at(data: bytes | bytearray) -> VolumeMap:
    """Map it, and use every part of the map."""
    volume = map_volume(xfs.Memory(data))
    arrays = volume.arrays
    placed = arrays[np.isin(arrays.kind, PLACED)]
    assert (placed.physical >= 0).all() and (placed.length > 0).all()
    assert ((placed.physical + placed.length) <= volume.size).all()
    assert len(volume.extents) == len(arrays) and len(volume.pieces)
    volume.owners(np.arange(0, volume.size, 50_000))
    for inode, size in list(volume.inodes["size"].items())[::7]:
        try:
            volume.xattrs(inode)
            if size < 1 << 20:
                assert len(volume.read_file(inode)) <= size
        except InputError as error:
            assert "\n" not in str(error)
    return volume


def places(volume: VolumeMap) -> np.ndarray:
    """Where metadata lies, in units of 64 bytes; each structure as often as another."""
    pieces = volume.pieces
    kinds = pieces["kind"].isin(["system", "meta", "inline"])
    folders = pieces["inode"].isin(volume.inodes.index[volume.inodes["type"] == "directory"])
    wanted = pieces[(kinds | folders) & (pieces["path"] != "<log>")]
    rows = zip(wanted["physical"].tolist(), wanted["length"].tolist(), strict=True)
    return np.array([at for place, n in rows for at in range(place, place + n, 64)])


def test_changed_bytes(image: bytes) -> None:
    sound = look_at(image)
    assert (sound.notes, sound.hidden, sound.damaged) == ([], [], {})
    where = places(sound)
    whole, refused, told = len(sound.names), 0, 0
    for seed in range(MUTATIONS):
        chance = random.Random(seed)
        data = bytearray(image)
        for _ in range(chance.choice((1, 1, 2, 8))):
            at = int(where[chance.randrange(len(where))]) + chance.randrange(64)
            length = chance.choice((1, 1, 2, 4, 8))
            other = int(where[chance.randrange(len(where))])
            data[at : at + length] = chance.choice(
                (
                    chance.randbytes(length),
                    bytes(length),
                    b"\xff" * length,
                    bytes([data[at] ^ 1 << chance.randrange(8)]),
                    image[other : other + length],
                )
            )
        del data[len(image) :]
        began = time.process_time()
        try:
            volume = look_at(data)
        except InputError as error:
            assert "\n" not in str(error)
            refused += 1
            continue
        finally:
            assert time.process_time() - began < 20, seed
        heard = bool(volume.notes or volume.hidden or volume.damaged)
        told += heard
        assert heard or len(volume.names) >= whole, seed
    print(f"{MUTATIONS} images: {refused} refused, {told} told to be odd")
    assert refused and told
