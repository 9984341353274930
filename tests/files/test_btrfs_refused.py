"""What of btrfs is not mapped is refused by name, in one line; what is damaged is never guessed."""

from __future__ import annotations

import mmap
import os
import struct
import subprocess
from pathlib import Path

import btrfs_images as btrfs
import ext_images as ext
import pytest

from cbtlab.errors import InputError, NotAtRest
from cbtlab.files import map_volume

pytestmark = btrfs.needs_btrfs
SUPER = 64 << 10
SIZE = 110 * btrfs.MIB


class Made:
    """A small image, filled without a mount, and where its tree blocks lie."""

    def __init__(self, folder: Path) -> None:
        tree = folder / "tree"
        (tree / "folder").mkdir(parents=True)
        (tree / "folder" / "file").write_bytes(b"content " * 9000)
        (tree / "small").write_bytes(b"small")
        os.link(tree / "small", tree / "link")
        self.path = btrfs.make(folder / "a.img", SIZE, "-r", str(tree), "-n", "4096")
        self.data = btrfs.private(self.path)
        self.blocks = btrfs.Blocks(self.path, 4096)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return Made(tmp_path_factory.mktemp("refused"))


def refusal(data: mmap.mmap, kind: type[InputError] = InputError, size: int | None = None) -> str:
    with pytest.raises(InputError) as caught:
        map_volume(btrfs.Memory(data, size))
    line = str(caught.value)
    assert type(caught.value) is kind
    assert "\n" not in line and "e2fsck" not in line
    return line


def with_super(made: Made, change: dict[int, bytes]) -> mmap.mmap:
    data = btrfs.private(made.path)
    btrfs.reseal(data, SUPER, 4096, change)
    return data


def test_the_image_itself_is_mapped(made: Made) -> None:
    volume = map_volume(btrfs.Memory(made.data))
    assert volume.notes == []
    assert set(volume.names["path"]) == {"/", "/folder", "/folder/file", "/small", "/link"}


@pytest.mark.parametrize(
    ("at", "value", "words"),
    [
        (0xBC, 0x2000 | 0x341, "extent tree v2"),
        (0xBC, 0x4000 | 0x341, "raid stripe tree"),
        (0xBC, 0x1000 | 0x341, "zoned"),
        (0xBC, 1 << 40, "0x10000000000"),
        (0xB4, 1 << 20 | 3, "compat_ro 0x100000"),
        (0x88, 2, "lies on 2 devices"),
        (0x38, 1 << 32 | 1, "seed device"),
        (0x38, 1 << 34 | 1, "metadata dump"),
        (0xD1, 1 << 40, "cut short"),
        (0xD1, 4096, "device size is impossible"),
        (0x58, 4096, "lies in no chunk"),
        (0x50, 12345, "lies in no chunk"),
        (0x48, 1, "generation"),
        (0x78, 4096, "counts other bytes"),
    ],
)
def test_superblocks_that_are_refused(made: Made, at: int, value: int, words: str) -> None:
    assert words in refusal(with_super(made, {at: struct.pack("<Q", value)}))


@pytest.mark.parametrize("flag", [35, 36, 38, 39, 40])
def test_a_change_that_was_not_ended(made: Made, flag: int) -> None:
    data = with_super(made, {0x38: struct.pack("<Q", 1 << flag | 1)})
    assert "btrfstune" in refusal(data, NotAtRest)


@pytest.mark.parametrize("at", [0x40, 0x90, 0x94, 0xA0, 0xC4, 0xC6, 0x700])
def test_a_flipped_superblock(made: Made, at: int) -> None:
    data = btrfs.private(made.path)
    data[SUPER + at] ^= 0x11
    if at == 0x40:
        assert "no file system" in refusal(data)
    else:
        assert "checksum" in refusal(data)
    if at not in (0x40, 0x700):
        refusal(with_super(made, {at: bytes([made.data[SUPER + at] ^ 0x11])}))


def test_mirrors_of_the_superblock(made: Made) -> None:
    data, mirror = btrfs.private(made.path), 64 << 20
    data[mirror + 100] ^= 1
    assert map_volume(btrfs.Memory(data)).notes == [
        f"the superblock's mirror at {mirror} is damaged"
    ]
    data = btrfs.private(made.path)
    newer = int.from_bytes(made.data[SUPER + 0x48 : SUPER + 0x50], "little") + 1
    btrfs.reseal(data, mirror, 4096, {0x48: struct.pack("<Q", newer)})
    assert map_volume(btrfs.Memory(data)).notes == [
        f"the superblock's mirror at {mirror} is newer than it, which is what counts"
    ]


def test_a_volume_that_was_cut(made: Made) -> None:
    assert "cut short" in refusal(made.data, size=80 << 20)
    assert "too small" in refusal(made.data, size=SUPER + 2000)


def test_one_damaged_copy_is_told_and_two_are_refused(made: Made) -> None:
    data = btrfs.private(made.path)
    block = made.blocks.of("FS_TREE")[0]
    first, second = made.blocks.places[block]
    data[first + 3000] ^= 0xFF
    volume = map_volume(btrfs.Memory(data))
    assert volume.notes == [f"the first copy of tree block {block} has a wrong checksum"]
    assert volume.read_file(btrfs.inode_of(volume, b"/small")) == b"small"
    data[second + 3000] ^= 0xFF
    assert f"tree block {block} has a wrong checksum" in refusal(data)


@pytest.mark.parametrize(
    ("tree", "change", "words"),
    [
        ("FS_TREE", {0x20: b"\1\2\3\4"}, "another file system"),
        ("FS_TREE", {0x30: b"\0\0\0\0\0\0\1"}, "another file system or place"),
        ("FS_TREE", {0x50: b"\1"}, "generation"),
        ("EXTENT_TREE", {0x58: b"\5"}, "not what its parent says"),
        ("FS_TREE", {0x60: b"\xff\xff"}, "number of entries"),
        ("FS_TREE", {0x64: b"\3"}, "wrong level"),
        ("FS_TREE", {101 + 25 + 8: b"\0"}, "disorder"),
        ("FS_TREE", {101 + 25 + 17: b"\x20\x01"}, "overlap"),
    ],
)
def test_tree_blocks_with_a_right_checksum(
    made: Made, tree: str, change: dict[int, bytes], words: str
) -> None:
    data = btrfs.private(made.path)
    made.blocks.change(data, made.blocks.of(tree)[-1], change)
    assert words in refusal(data)


def place_of_item(made: Made, tree: str, kind: int, number: int = 0) -> tuple[int, int, int]:
    """A tree block, and where in it the head and the bytes of an item of this type lie."""
    found = [
        (block, 101 + 25 * at, item[3])
        for block in made.blocks.of(tree)
        for at, item in enumerate(btrfs.items(made.data, made.blocks.places[block][0]))
        if item[1] == kind
    ]
    return found[number]


@pytest.mark.parametrize(
    ("tree", "kind", "change", "words"),
    [
        # (where: within the item's bytes, or from its key on if negative)
        ("FS_TREE", 84, {30: b"X"}, "cannot be found by its name"),
        ("FS_TREE", 96, {30: b"X"}, "not what is found in it by name"),
        ("FS_TREE", 96, {0: b"\xff\1"}, "not what is found in it by name"),
        ("FS_TREE", 96, {8: b"\x20"}, "neither to an inode nor to a subvolume"),
        ("FS_TREE", 96, {27: b"\xff\xff"}, "an entry is damaged"),
        ("EXTENT_TREE", 168, {16: b"\3"}, "extent item"),
        ("EXTENT_TREE", 192, {0: b"\0\0\1"}, "bytes in use, and its extents"),
        ("DEV_TREE", 204, {16: b"\1"}, "device extents are not its chunks"),
        ("CHUNK_TREE", 228, {24: b"\x10"}, "RAID1"),
        ("CHUNK_TREE", 228, {48: b"\2"}, "a device that is not here"),
        ("CHUNK_TREE", 228, {56: b"\1"}, "the chunk at"),
        ("ROOT_TREE", 132, {238: b"\x0a"}, "root item of tree 2"),
        ("ROOT_TREE", 132, {176: b"\1"}, "in no chunk"),
    ],
)
def test_items_with_a_right_checksum(
    made: Made, tree: str, kind: int, change: dict[int, bytes], words: str
) -> None:
    data = btrfs.private(made.path)
    block, _, place = place_of_item(made, tree, kind, 1 if tree == "CHUNK_TREE" else 0)
    made.blocks.change(data, block, {place + at: value for at, value in change.items()})
    assert words in refusal(data)


def test_a_balance_that_was_cut_off(made: Made) -> None:
    data = btrfs.private(made.path)
    block, head, _ = place_of_item(made, "ROOT_TREE", 132, -1)
    made.blocks.change(data, block, {head: struct.pack("<q", -8)})
    assert "balance" in refusal(data, NotAtRest)


def test_a_tree_that_is_not_known(made: Made) -> None:
    data = btrfs.private(made.path)
    block, head, _ = place_of_item(made, "ROOT_TREE", 132, -1)
    made.blocks.change(data, block, {head: struct.pack("<q", -30)})
    assert "a tree that is not known" in refusal(data)


def test_a_damaged_file_is_told(made: Made) -> None:
    """A file extent that names what is not allocated, or makes no sense."""
    for change, words in (
        ({21: struct.pack("<Q", 1 << 50)}, "its file extents are damaged"),
        ({29: struct.pack("<Q", 4096)}, "its file extents are damaged"),
        ({20: b"\7"}, "its file extents are damaged"),
        ({16: b"\1"}, "content"),
    ):
        data = btrfs.private(made.path)
        blocks = made.blocks
        block, _, place = next(
            (block, 0, item[3])
            for block in blocks.of("FS_TREE")
            for item in btrfs.items(made.data, blocks.places[block][0])
            if item[1] == 108 and item[4] == 53
        )
        blocks.change(data, block, {place + at: value for at, value in change.items()})
        volume = map_volume(btrfs.Memory(data))
        inode = btrfs.inode_of(volume, b"/folder/file")
        if words != "content":
            assert words in volume.damaged[inode]
            assert any("no file names" in note for note in volume.notes)
        with pytest.raises(InputError):
            volume.read_file(inode)


def test_blocks_past_the_end_of_a_file_are_not_in_use(made: Made) -> None:
    """As after a crash between the write of a file and that of its size."""
    sound = map_volume(btrfs.Memory(made.data))
    inode = btrfs.inode_of(sound, b"/folder/file")
    data = btrfs.private(made.path)
    for block in made.blocks.of("FS_TREE"):
        for number, kind, _, place, _ in btrfs.items(data, made.blocks.places[block][0]):
            if (number, kind) == (inode, 1):
                made.blocks.change(data, block, {place + 16: struct.pack("<Q", 5000)})
    volume = map_volume(btrfs.Memory(data))
    assert volume.read_file(inode) == (b"content " * 9000)[:5000]
    rows = volume.rows(inode)
    assert rows.length.tolist() == [73728]
    block = int(rows.physical[0]) // 4096
    assert volume.in_use.to_bool()[block : block + 18].tolist() == [True] * 2 + [False] * 16
    assert sound.in_use.to_bool()[block : block + 18].all()


def test_several_devices(tmp_path: Path) -> None:
    paths = [tmp_path / "a.img", tmp_path / "b.img"]
    for path in paths:
        with path.open("wb") as file:
            file.truncate(256 * btrfs.MIB)
    ext.run("mkfs.btrfs", "-q", "-m", "raid1", "-d", "single", *map(str, paths))
    for path in paths:
        assert "lies on 2 devices" in refusal(btrfs.private(path))


@pytest.mark.root
def test_a_log_that_waits_for_its_replay(tmp_path: Path) -> None:
    path = btrfs.make(tmp_path / "a.img", 128 * btrfs.MIB)
    with btrfs.mounted(path) as root:
        (root / "first").write_bytes(b"x" * 5000)
        ext.run("btrfs", "filesystem", "sync", str(root))
        with (root / "second").open("wb") as file:
            file.write(b"y" * 100_000)
            os.fsync(file.fileno())
        copy = tmp_path / "copy.img"
        ext.run("cp", "--sparse=always", str(path), str(copy))
    assert "log tree waits for a replay" in refusal(btrfs.private(copy), NotAtRest)
    with btrfs.mounted(copy):
        pass  # the remedy
    volume = map_volume(btrfs.Memory(btrfs.private(copy)))
    assert volume.read_file(btrfs.inode_of(volume, b"/second")) == b"y" * 100_000


def test_a_seed_device(tmp_path: Path) -> None:
    path = btrfs.make(tmp_path / "a.img", 110 * btrfs.MIB)
    subprocess.run(["btrfstune", "-f", "-S", "1", str(path)], check=True, capture_output=True)
    assert "seed device" in refusal(btrfs.private(path))
