"""Second opinions on NTFS volumes: pytsk3 and libfsntfs, file by file; LZNT1 by its own words."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import ntfs_images as ntfs
import pytest

from cbtlab.files import VolumeMap, map_volume
from cbtlab.files.extents import DATA, HOLE
from cbtlab.files.ntfs.lznt1 import decompress
from cbtlab.files.second_opinion import second_opinion
from cbtlab.files.volume import Volume
from cbtlab.images import open_image

pytestmark = [pytest.mark.root, ntfs.needs_ntfs3g]


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = ntfs.make(tmp_path_factory.mktemp("seconds") / "a.img", 24 * ntfs.MIB, "-c", "1024")
    with ntfs.mounted(path) as root:
        ntfs.fill(root)
        ntfs.thousands(root)
    return path


@pytest.fixture(scope="module")
def volume(image: Path) -> VolumeMap:
    return map_volume(open_image(image))


def test_pytsk3_maps_every_file_to_the_same_places(image: Path, volume: VolumeMap) -> None:
    with open_image(image) as opened:
        found = second_opinion(volume, Volume(opened), volume.names["raw"].tolist(), 120)
    assert found.differences == [] and found.reason == "" and found.compared > 200


def test_libfsntfs_reads_the_same_files(image: Path, volume: VolumeMap) -> None:
    """Names, sizes and content, and the runs of what is neither sparse nor compressed."""
    pyfsntfs = pytest.importorskip("pyfsntfs", reason="needs libfsntfs-python")
    opened = pyfsntfs.volume()
    opened.open(str(image))
    compared = 0
    names = volume.names[volume.names["type"] == "file"].drop_duplicates("inode")
    for row in names.itertuples():
        theirs = opened.get_file_entry(row.inode)
        assert theirs.size == volume.inodes.loc[row.inode, "size"]
        assert theirs.number_of_alternate_data_streams == len(volume.streams.codes_of(row.inode))
        content = volume.read_file(row.inode)
        if theirs.size:
            theirs.seek(0)
            assert theirs.read(theirs.size) == content, row.path
        compared += runs_agree(theirs, volume, row.inode)
    opened.close()
    assert compared >= 4


def runs_agree(theirs: Any, volume: VolumeMap, inode: int) -> bool:
    """libfsntfs gives extents in order: offset, size, and flag 1 for a hole."""
    own = volume.rows(inode)
    own = own[(own.stream == 0) & ((own.kind == DATA) | (own.kind == HOLE))]
    if own.encoded.any() or not len(own) or (own.kind == HOLE).any():
        return False
    count = theirs.number_of_extents
    mine = [(at // 1024 + n) for at, many in zip(own.physical, own.length, strict=True)
            for n in range(many // 1024)]  # fmt: skip
    found = [theirs.get_extent(n) for n in range(count)]
    assert [at // 1024 + n for at, many, *_ in found for n in range(many // 1024)] == mine
    return True


def test_lznt1_by_the_example_of_its_specification() -> None:
    """[MS-XCA] 3.3: the text, compressed."""
    packed = bytes.fromhex(
        "38b088462320002047204100 10a24701a045204400084501507900c0452005"
        "24138805b4024a44ef0358028c091601484500be009e000401189000"
    )
    text = b"F# F# G A A G F# E D D E F# F# E E F# F# G A A G F# E D D E F# E D D E E "
    text += b"F# D E F# G F# D E F# G F# E D E A F# F# G A A G F# E D D E F# E D D\0"
    assert decompress(packed, len(text)) == text


def test_lznt1_damage_is_told() -> None:
    rng = random.Random(3)
    told = 0
    for _ in range(500):
        data = bytearray(b"\x38\xb0" + rng.randbytes(80))
        try:
            assert len(decompress(bytes(data), 8192)) == 8192
        except ValueError:
            told += 1
    assert told > 100
