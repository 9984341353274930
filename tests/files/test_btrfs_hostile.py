"""Images made to lead a reader astray: bounded answers, or one line that says what is wrong.

Checksums are made anew, so that what is changed reaches the code behind them.  CBTLAB_MUTATIONS
says how many images are changed at random; a few by default.
"""

from __future__ import annotations

import os
import random
import struct
import time
from pathlib import Path

import btrfs_images as btrfs
import numpy as np
import pytest

from cbtlab.errors import InputError
from cbtlab.files import VolumeMap, map_volume

pytestmark = btrfs.needs_btrfs
MUTATIONS = int(os.environ.get("CBTLAB_MUTATIONS", "60"))
NODE = 4096


class Base:
    """A sound image with all that is changed in the tests."""

    def __init__(self, path: Path) -> None:
        self.path, self.data = path, btrfs.private(path)
        self.blocks = btrfs.Blocks(path, NODE)
        self.names = set(map_volume(btrfs.Memory(self.data)).names["raw"])


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Base:
    folder = tmp_path_factory.mktemp("plain")
    tree = folder / "tree"
    (tree / "folder" / "below").mkdir(parents=True)
    for number in range(300):
        (tree / "folder" / f"file-{number}").write_bytes(b"%d" % number * (number % 90 * 30 + 1))
    os.link(tree / "folder" / "file-7", tree / "link")
    return Base(btrfs.make(folder / "a.img", 110 * btrfs.MIB, "-r", str(tree), "-n", str(NODE)))


@pytest.fixture(scope="module")
def rich(tmp_path_factory: pytest.TempPathFactory) -> Base:
    path = tmp_path_factory.mktemp("rich") / "a.img"
    btrfs.make(path, 256 * btrfs.MIB, "-n", str(NODE))
    with btrfs.mounted(path) as root:
        btrfs.fill(root)
    return Base(path)


def look_at(data: object) -> VolumeMap:
    """Map it, and use every part of the map."""
    volume = map_volume(btrfs.Memory(data))  # type: ignore[arg-type]
    assert len(volume.extents) == len(volume.arrays)
    volume.owners(np.arange(0, volume.size, 50_000))
    plain = volume.inodes[volume.inodes["type"] == "file"]
    for inode, size in plain["size"].items():
        try:
            volume.xattrs(inode)
            if size < 1 << 20:
                assert len(volume.read_file(inode)) == size
        except InputError as error:
            assert "\n" not in str(error)
    return volume


def node_above(base: Base, tree: str) -> tuple[int, int]:
    """A node of this tree that has children, and its place."""
    for block in base.blocks.of(tree):
        place = base.blocks.places[block][0]
        if base.data[place + 100]:
            return block, place
    raise AssertionError(f"{tree} is too small")


def test_a_node_that_leads_to_itself(plain: Base) -> None:
    block, place = node_above(plain, "FS_TREE")
    generation = plain.data[place + 0x50 : place + 0x58]
    pointer = struct.pack("<Q", block) + generation
    data = btrfs.private(plain.path)
    plain.blocks.change(data, block, {101 + 17: pointer})
    with pytest.raises(InputError, match="wrong level"):
        look_at(data)


def test_a_child_that_is_named_twice(plain: Base) -> None:
    block, place = node_above(plain, "FS_TREE")
    first = plain.data[place + 101 + 17 : place + 101 + 33]
    data = btrfs.private(plain.path)
    plain.blocks.change(data, block, {101 + 33 + 17: first})
    with pytest.raises(InputError, match="met twice"):
        look_at(data)


def test_a_root_of_another_tree(plain: Base) -> None:
    """Every subvolume's tree could be another's: the extent tree's nodes are no file tree."""
    extent, place = node_above(plain, "EXTENT_TREE")
    root = plain.blocks.of("ROOT_TREE")[0]
    item = next(
        item
        for item in btrfs.items(plain.data, plain.blocks.places[root][0])
        if item[:2] == (5, 132)
    )
    change = {
        item[3] + 160: plain.data[place + 0x50 : place + 0x58],  # its generation
        item[3] + 176: struct.pack("<Q", extent),
        item[3] + 238: plain.data[place + 100 : place + 101],
    }
    data = btrfs.private(plain.path)
    plain.blocks.change(data, root, change)
    with pytest.raises(InputError):
        look_at(data)


def test_a_folder_that_holds_the_one_above_it(plain: Base) -> None:
    """Both entries of a folder lead to the root: named once more, and not followed."""
    data, changed = btrfs.private(plain.path), 0
    for block in plain.blocks.of("FS_TREE"):
        place = plain.blocks.places[block][0]
        if plain.data[place + 100]:
            continue
        for _, kind, _, at, size in btrfs.items(plain.data, place):
            if (
                kind in (84, 96)
                and plain.data[place + at + size - 5 : place + at + size] == b"below"
            ):
                plain.blocks.change(data, block, {at: struct.pack("<Q", 256)})
                changed += 1
    assert changed == 2
    volume = look_at(data)
    assert set(volume.names["raw"]) == plain.names
    assert btrfs.inode_of(volume, b"/folder/below") == 256
    assert any("names lead to it" in note for note in volume.notes)


def mutate(rng: random.Random, base: Base, data: object) -> None:
    """Change some bytes of one tree block, mostly where they mean something."""
    block = rng.choice(list(base.blocks.trees))
    place = base.blocks.places[block][0]
    count = min(int.from_bytes(base.data[place + 96 : place + 100], "little"), 60)
    leaf = not base.data[place + 100]
    entry = 25 if leaf else 33
    others = list(base.blocks.trees)
    values = [
        b"\0",
        b"\xff" * 8,
        b"\xff\xff\xff\x7f",
        bytes(8),
        rng.randbytes(1),
        rng.randbytes(8),
        struct.pack("<Q", rng.choice(others)),
        struct.pack("<Q", rng.randrange(1 << 20) * 4096),
        struct.pack("<Q", 1 << 63),
        bytes([base.data[place + 101] ^ 1 << rng.randrange(8)]),
    ]
    where = rng.randrange(4)
    if where == 0:
        at = rng.choice([0x20, 0x30, 0x38, 0x50, 0x58, 0x60, 0x64])
    elif where == 1 or not leaf or not count:
        at = 101 + entry * rng.randrange(max(count, 1)) + rng.choice([0, 8, 9, 17, 21, 25])
    else:
        item = rng.choice(btrfs.items(base.data, place))
        at = item[3] + rng.randrange(min(item[4], rng.choice([20, 60, 500]))) if item[4] else 101
    value = rng.choice(values)[: max(1, min(8, NODE - at))]
    base.blocks.change(data, block, {at: value}, copies=rng.choice([1, 2, 2]))  # type: ignore[arg-type]


def attack(base: Base, seed: str) -> int:
    rng = random.Random(seed)
    mapped = 0
    for round_ in range(MUTATIONS // 2):
        data = btrfs.private(base.path)
        changes = rng.choice([1, 1, 1, 2, 8])
        for _ in range(changes):
            mutate(rng, base, data)
        start = time.monotonic()
        try:
            volume = look_at(data)
        except InputError as error:
            assert "\n" not in str(error)
        else:
            mapped += 1
            # Nothing is lost without a word.
            if set(volume.names["raw"]) != base.names:
                assert volume.notes, (seed, round_)
        assert time.monotonic() - start < 20, (seed, round_)
    return mapped


def test_random_damage(plain: Base) -> None:
    assert attack(plain, "plain") > MUTATIONS // 50


@pytest.mark.root
def test_random_damage_of_subvolumes_and_compressed_files(rich: Base) -> None:
    assert attack(rich, "rich") > MUTATIONS // 50


def test_random_damage_of_the_superblock(plain: Base) -> None:
    rng = random.Random("super")
    for _ in range(MUTATIONS // 4):
        data = btrfs.private(plain.path)
        at = rng.choice([*range(0x20, 0x130), *range(0x32B, 0x32B + 200)])
        value = rng.choice([b"\0", b"\xff", b"\xff" * 8, bytes(8), rng.randbytes(1)])
        btrfs.reseal(data, 64 << 10, 4096, {at: value})
        try:
            look_at(data)
        except InputError as error:
            assert "\n" not in str(error)
