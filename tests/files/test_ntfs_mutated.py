"""NTFS images with bytes changed in their metadata: refused, told of, or the same answer.

NTFS has no checksums, so a change may make another sound volume; but a name that is gone, or
an extent that moved, must not go without a word.  ``CBTLAB_MUTATIONS`` sets how many.
"""

from __future__ import annotations

import random
import time

import ntfs_images as ntfs
import numpy as np
import pytest

from cbtlab.errors import InputError
from cbtlab.files import VolumeMap, map_volume
from cbtlab.files.extents import PLACED

pytestmark = [pytest.mark.root, ntfs.needs_ntfs3g]
LONGEST = 20  # seconds for one image, on a busy machine


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = ntfs.make(tmp_path_factory.mktemp("mutated") / "a.img", 20 * ntfs.MIB, "-c", "1024")
    with ntfs.mounted(path) as root:
        ntfs.fill(root)
        with (root / "runs").open("wb") as file:
            for number in range(400):  # needs an attribute list
                file.seek(number * 40_000)
                file.write(b"%d" % number)
    return path.read_bytes()


@pytest.fixture(scope="module")
def targets(sound: bytes) -> list[tuple[int, int]]:
    """Where metadata lies: the boot sector, records, indexes, bitmaps, the log's head."""
    volume = map_volume(ntfs.Memory(sound))
    ranges = [(0, 96)]
    for inode in volume.inodes.index.tolist():
        place = ntfs.record_place(sound, inode)
        used = int.from_bytes(sound[place + 24 : place + 28], "little")
        ranges.append((place, place + used))
        rows = volume.rows(inode)
        kinds = volume.inodes.loc[inode, "type"] == "directory", inode in (6, 9)
        for at, many, kind in zip(rows.physical, rows.length, rows.kind, strict=True):
            if at >= 0 and (any(kinds) or kind not in (0, 3)):
                ranges.append((int(at), int(at) + min(int(many), 4096)))
    return ranges


def look_at(data: bytearray) -> VolumeMap:
    """Map it, and use every part of the map."""
    volume = map_volume(ntfs.Memory(data))
    assert len(volume.extents) == len(volume.arrays)
    volume.owners(np.arange(0, volume.size, 7000))
    for inode, size in volume.inodes["size"].items():
        try:
            volume.xattrs(inode)
            if size < 1 << 20:
                assert len(volume.read_file(inode)) == size
                for code in volume.streams.codes_of(inode):
                    volume.read_file(inode, code)
        except InputError as error:
            assert "\n" not in str(error)
    return volume


def places(volume: VolumeMap) -> set[tuple[int, ...]]:
    found = volume.arrays[np.isin(volume.arrays.kind, PLACED)]
    found = found[found.inode >= 64]
    return set(
        zip(found.inode.tolist(), found.physical.tolist(), found.length.tolist(), strict=True)
    )


def test_mutations(sound: bytes, targets: list[tuple[int, int]]) -> None:
    before = map_volume(ntfs.Memory(sound))
    names, extents = set(before.names["raw"]), places(before)
    assert before.notes == [] and len(extents) > 400
    refused = told = same = 0
    for seed in range(ntfs.ROUNDS):
        rng = random.Random(seed)
        data = bytearray(sound)
        for _ in range(rng.choice((1, 1, 2, 5, 30))):
            low, high = rng.choice(targets)
            data[rng.randrange(low, high)] = rng.choice((0, 1, 0x7F, 0xFF, rng.randrange(256)))
        start = time.monotonic()
        try:
            volume = look_at(data)
        except InputError as error:
            refused += 1
            assert "\n" not in str(error), seed
            continue
        finally:
            assert time.monotonic() - start < LONGEST, seed
        quiet = not (volume.damaged or volume.hidden or volume.notes)
        told += not quiet
        same += quiet
        # A name that a mutation takes away is told of; the same of clusters.
        if not names <= set(volume.names["raw"]):
            assert volume.hidden or volume.notes, seed
        if places(volume) != extents:
            assert not quiet, seed
    print(f"{refused} refused, {told} told of, {same} as before")
    assert refused and told
