"""Damaged and hostile images: an InputError or a bounded answer, and no traceback."""

from __future__ import annotations

import random
import struct
import time
from pathlib import Path

import ext_images as ext
import numpy as np
import pytest

from cbtlab.errors import InputError
from cbtlab.files import VolumeMap, map_volume
from cbtlab.files.ext.inodes import inode_place
from cbtlab.files.ext.superblock import Ext
from cbtlab.files.extents import META
from cbtlab.files.volume import Volume

pytestmark = ext.needs_e2fsprogs


class Memory:
    """An image in memory."""

    name = "memory"

    def __init__(self, data: bytes | bytearray) -> None:
        self.data, self.size = data, len(data)

    def read(self, offset: int, length: int) -> bytes:
        return bytes(self.data[offset : offset + length])


def made(folder: Path, *options: str) -> bytearray:
    tree = folder / "tree"
    tree.mkdir()
    ext.fill(tree, attributes=False)
    return bytearray(ext.make(folder / "a.img", 16 * ext.MIB, *options, source=tree).read_bytes())


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> bytearray:
    options = "-t ext4 -b 1024 -O ^metadata_csum,^64bit,^has_journal,inline_data"
    return made(tmp_path_factory.mktemp("plain"), *options.split())


@pytest.fixture(scope="module")
def pointers(tmp_path_factory: pytest.TempPathFactory) -> bytearray:
    return made(tmp_path_factory.mktemp("pointers"), "-t", "ext2", "-b", "1024")


def look_at(data: bytearray, names: bool = True) -> VolumeMap:
    """Map it, and use every part of the map."""
    volume = map_volume(Memory(data), names=names)
    assert len(volume.extents) == len(volume.arrays)
    volume.owners(np.arange(0, volume.size, 50_000))
    for inode, size in volume.inodes["size"].items():
        try:
            volume.xattrs(inode)
            if size < 1 << 20:
                assert len(volume.read_file(inode)) <= size
        except InputError as error:
            assert "\n" not in str(error)
    return volume


def place_of(data: bytearray, path: str) -> tuple[int, int]:
    """The inode of a path, and its place."""
    image = Memory(data)
    inode = int(map_volume(image).names.set_index("path").loc[path, "inode"])
    return inode, int(inode_place(Ext(Volume(image)), np.array([inode]))[0])


def test_an_extent_tree_that_leads_to_itself(plain: bytearray) -> None:
    data = bytearray(plain)
    inode, place = place_of(data, "/fragments")
    _, _, _, depth = struct.unpack_from("<4H", data, place + 40)
    assert depth
    node = struct.unpack_from("<I", data, place + 40 + 12 + 4)[0]
    # The node becomes an index node full of entries that point to itself.
    entries = b"".join(struct.pack("<IIHH", n, node, 0, 0) for n in range(80))
    data[node * 1024 : node * 1024 + 12] = struct.pack("<4HI", 0xF30A, 80, 84, 3, 0)
    data[node * 1024 + 12 : node * 1024 + 12 + len(entries)] = entries
    struct.pack_into("<H", data, place + 46, 4)
    start = time.monotonic()
    volume = look_at(data, names=False)
    assert time.monotonic() - start < 5
    assert inode in volume.damaged
    meta = volume.rows(inode)
    assert meta.physical[meta.kind == META].tolist() == [node * 1024]  # followed once
    with pytest.raises(InputError, match="map"):
        volume.read_file(inode)


def test_a_node_that_two_entries_of_one_level_name(plain: bytearray) -> None:
    data = bytearray(plain)
    inode, place = place_of(data, "/fragments")
    root = place + 40
    struct.pack_into("<H", data, root + 2, 2)
    data[root + 24 : root + 36] = data[root + 12 : root + 24]
    volume = look_at(data, names=False)
    meta = volume.rows(inode)
    nodes = meta.physical[meta.kind == META]
    assert len(nodes) == len(np.unique(nodes))
    assert inode in volume.damaged


def test_pointer_blocks_that_lead_to_themselves(pointers: bytearray) -> None:
    data = bytearray(pointers)
    inode, place = place_of(data, "/fragments")
    node = struct.unpack_from("<15I", data, place + 40)[13]
    assert node
    data[node * 1024 : node * 1024 + 1024] = struct.pack("<I", node) * 256
    struct.pack_into("<I", data, place + 40 + 14 * 4, node)
    volume = look_at(data)
    assert inode in volume.damaged


@pytest.mark.parametrize(
    ("at", "value"),
    [
        (0, b"\0\0"),  # no magic
        (2, b"\xff\xff"),  # entries
        (6, b"\x09\0"),  # depth
        (12 + 8, b"\xff\xff\xff\xff"),  # where an extent lies
        (12 + 4, b"\0\0"),  # an extent without length
    ],
)
def test_a_damaged_extent_root(plain: bytearray, at: int, value: bytes) -> None:
    data = bytearray(plain)
    inode, place = place_of(data, "/folder/text.txt")
    data[place + 40 + at : place + 40 + at + len(value)] = value
    volume = look_at(data)
    assert inode in volume.damaged
    assert any(f"inode {inode}" in note for note in volume.notes)


def test_one_place_mapped_twice(plain: bytearray) -> None:
    data = bytearray(plain)
    inode, place = place_of(data, "/sparse")
    struct.pack_into("<I", data, place + 40 + 24, struct.unpack_from("<I", data, place + 52)[0])
    assert inode in look_at(data).damaged


def test_two_files_with_one_block_keep_it_in_use(plain: bytearray) -> None:
    data = bytearray(plain)
    _, place = place_of(data, "/folder/text.txt")
    _, other = place_of(data, "/sparse")
    # The first extent of one becomes unwritten, and lies where the other has data.
    shared = data[other + 40 + 12 + 6 : other + 40 + 24]
    data[place + 40 + 12 + 6 : place + 40 + 24] = shared
    length = struct.unpack_from("<H", data, place + 40 + 16)[0]
    struct.pack_into("<H", data, place + 40 + 16, length + 32768)
    block = struct.unpack_from("<I", shared, 2)[0]
    volume = look_at(data)
    assert volume.in_use.bits[block]


def test_a_folder_that_holds_itself(pointers: bytearray) -> None:
    data = bytearray(pointers)
    _, place = place_of(data, "/many")
    inode, _ = place_of(data, "/folder")
    folder = struct.unpack_from("<I", data, place + 40)[0] * 1024
    many, _ = place_of(data, "/many")
    struct.pack_into("<I", data, folder + 24, many)  # the first entry behind "." and ".."
    volume = look_at(data)
    assert len(volume.names) < 1000
    assert inode in set(volume.names["inode"])


def test_an_attribute_area_of_nonsense(plain: bytearray) -> None:
    data = bytearray(plain)
    inode, place = place_of(data, "/folder")
    start = place + 128 + struct.unpack_from("<H", data, place + 128)[0]
    data[start : place + 256] = b"\x00\x00\x02\xea" + b"\xff" * (place + 256 - start - 4)
    assert look_at(data).xattrs(inode) == {}


@pytest.mark.parametrize("base", ["plain", "pointers"])
def test_random_damage(base: str, request: pytest.FixtureRequest) -> None:
    good: bytearray = request.getfixturevalue(base)
    reader = Ext(Volume(Memory(good)))
    tables = (reader.inode_table * reader.block_size).tolist()
    words = [b"\xff" * 4, b"\0" * 4, b"\xff\xff\xff\x7f", b"\x0a\xf3\x04\x00"]
    rng = random.Random(base)
    mapped = 0
    for round_ in range(60):
        data = bytearray(good)
        for _ in range(rng.choice([1, 2, 20, 200])):
            area = rng.choice(["table", "any", "any", "head"])
            at = rng.randrange(len(data) - 8)
            if area == "table":
                at = rng.choice(tables) + rng.randrange(6000)
            elif area == "head" and round_ % 3 == 0:
                at = 1024 + rng.randrange(2000)
            data[at : at + 4] = rng.choice([*words, rng.randbytes(4)])
        if round_ % 10 == 9:
            del data[rng.randrange(len(data)) :]
        try:
            look_at(data)
            mapped += 1
        except InputError as error:
            assert "\n" not in str(error)
    assert mapped > 15
