"""Allocation and structures against dumpe2fs, over the ways mke2fs can lay out a volume."""

from __future__ import annotations

from pathlib import Path

import ext_images as ext
import numpy as np
import pytest

from cbtlab.files import map_volume
from cbtlab.files.ext.alloc import allocated, structures
from cbtlab.files.ext.superblock import Ext
from cbtlab.files.extents import META
from cbtlab.files.volume import Volume
from cbtlab.images import open_image

pytestmark = ext.needs_e2fsprogs

LAYOUTS = [
    "-t ext2 -b 1024",
    "-t ext2 -b 4096 -r 0",
    "-t ext3 -b 2048",
    "-t ext4 -b 1024",
    "-t ext4 -b 2048",
    "-t ext4 -b 4096",
    "-t ext4 -b 65536",
    "-t ext4 -b 1024 -O ^64bit",
    "-t ext4 -b 1024 -O 64bit,^metadata_csum",
    "-t ext4 -b 1024 -O ^flex_bg",
    "-t ext4 -b 1024 -G 2",
    "-t ext4 -b 1024 -O meta_bg,^resize_inode",
    "-t ext4 -b 1024 -g 256 -N 2048 -O meta_bg,^resize_inode",
    "-t ext4 -b 1024 -g 512 -O meta_bg,^resize_inode,^flex_bg,^sparse_super",
    "-t ext4 -b 1024 -g 1024",
    "-t ext4 -b 1024 -O ^metadata_csum,uninit_bg",
    "-t ext4 -b 1024 -O ^metadata_csum,^uninit_bg",
    "-t ext4 -b 1024 -O sparse_super2",
    "-t ext4 -b 1024 -O ^sparse_super,^resize_inode",
    "-t ext4 -b 4096 -O ^has_journal",
    "-t ext4 -b 1024 -O mmp,quota,project",
    "-t ext4 -b 1024 -O metadata_csum_seed,orphan_file",
    "-t ext4 -b 4096 -O inline_data,ea_inode,encrypt,casefold,verity,large_dir",
    "-t ext4 -b 1024 -I 128",
    "-t ext4 -b 1024 -O bigalloc,^resize_inode -C 4096",
    "-t ext4 -b 4096 -O bigalloc,^resize_inode -C 65536",
    "-t ext4 -b 4096 -O bigalloc,^resize_inode,^metadata_csum -C 1048576",
]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_allocation_is_what_dumpe2fs_lists(tmp_path: Path, layout: str) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "file").write_bytes(b"x" * 3_000_000)
    (tree / "other").write_bytes(b"y" * 70_000)
    size = 37 * ext.MIB + 5 * 512  # no whole number of groups or blocks
    path = ext.make(tmp_path / "a.img", size, *layout.split(), source=tree)
    ext.debugfs(path, "rm file")
    with open_image(path) as image:
        reader = Ext(Volume(image))
        bits = np.array(allocated(reader, structures(reader)).tolist(), np.bool_)
        expected = ext.dumped_in_use(path)
        assert np.array_equal(bits, expected)
        volume = map_volume(image)
    assert volume.names["path"].tolist() == ["/", "/lost+found", "/other"]
    assert volume.notes == []
    owners = set(volume.owners(np.flatnonzero(expected) * reader.block_size))
    assert "<allocated, no owner>" not in owners
    mine = volume.in_use.to_bool()
    rest = volume.extents[volume.extents["kind"] == "reserved"]  # allocated, and never read
    assert len(rest) > 0 or "bigalloc" not in layout
    for place, length in zip(rest["physical"].tolist(), rest["length"].tolist(), strict=True):
        expected[place // reader.block_size : (place + length) // reader.block_size] = False
    assert np.array_equal(mine[: len(expected)], expected)
    assert mine[len(expected) :].all()  # the tail belongs to nobody, and is in use
    assert len(mine) * volume.block_size >= size


def test_a_volume_larger_than_its_file_system(tmp_path: Path) -> None:
    path = ext.make(tmp_path / "a.img", 8 * ext.MIB, "-t", "ext4", "-b", "1024")
    with path.open("r+b") as file:
        file.truncate(12 * ext.MIB + 100)
    with open_image(path) as image:
        volume = map_volume(image)
    assert volume.size == 8 * ext.MIB
    assert volume.in_use.to_bool()[8192:].all()
    assert volume.owner(8 * ext.MIB) == "<outside the file system>"
    assert volume.owner(0) == "<boot area>"


@pytest.mark.parametrize("offset", [512 * 63, 1 << 20])
def test_a_file_system_inside_of_an_image(tmp_path: Path, offset: int) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "file").write_bytes(b"content " * 5000)
    path = ext.make(tmp_path / "a.img", 8 * ext.MIB, "-t", "ext4", "-b", "4096", source=tree)
    whole = tmp_path / "b.img"
    whole.write_bytes(bytes(offset) + path.read_bytes() + bytes(5000))
    with open_image(path) as image, open_image(whole) as moved:
        plain, volume = map_volume(image), map_volume(moved, offset)
        inode = int(volume.names.set_index("path").loc["/file", "inode"])
        assert volume.read_file(inode) == b"content " * 5000
    first, second = plain.extents, volume.extents
    assert (second["physical"].dropna() - first["physical"].dropna() == offset).all()
    grain = volume.in_use.granularity
    assert grain == min(4096, offset & -offset)
    inner = volume.in_use.to_bool()[offset // grain : (offset + plain.size) // grain]
    assert np.array_equal(inner, np.repeat(plain.in_use.to_bool(), 4096 // grain))
    assert volume.in_use.to_bool()[: offset // grain].all()
    place = int(second.loc[second["inode"] == inode, "physical"].iloc[0])
    assert volume.owner(place) == "/file"
    assert volume.owner(offset - 1) == "<outside the file system>"


@pytest.mark.parametrize("kind", ["ext2", "ext4"])
def test_written_blocks_past_the_end_are_not_in_use(tmp_path: Path, kind: str) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "file").write_bytes(b"x" * 20_000)
    path = ext.make(tmp_path / "a.img", 8 * ext.MIB, "-t", kind, "-b", "1024", source=tree)
    ext.debugfs(path, "sif file size 3000")
    with open_image(path) as image:
        volume = map_volume(image)
        inode = int(volume.names.set_index("path").loc["/file", "inode"])
        assert len(volume.read_file(inode)) == 3000
    words = ext.debugfs(path, "blocks file").split()
    blocks = [int(word) for word in words if word.isdigit()]
    nodes = set(volume.rows(inode).physical[volume.rows(inode).kind == META] // 1024)
    data = [block for block in blocks if block not in nodes]
    expected = ext.dumped_in_use(path)
    expected[data[3:]] = False
    assert len(data) == 20
    assert np.array_equal(volume.in_use.to_bool(), expected)


def test_structures_are_named(tmp_path: Path) -> None:
    path = ext.make(tmp_path / "a.img", 16 * ext.MIB, "-t", "ext4", "-b", "1024")
    with open_image(path) as image:
        volume = map_volume(image)
        reader = Ext(Volume(image))
    places = {
        1: "<superblock>",
        2: "<group descriptors>",
        int(reader.block_bitmap[0]): "<block bitmap>",
        int(reader.inode_bitmap[0]): "<inode bitmap>",
        int(reader.inode_table[1]): "<inode table>",
        16383: "<free>",
    }
    owners = volume.owners(np.array(list(places)) * 1024).tolist()
    assert owners == list(places.values())
    blocks = ext.debugfs(path, "blocks <8>").split()
    number = next(int(word) for word in blocks if word.isdigit())
    assert volume.owner(number * 1024) == "<journal>"
    number = next(int(w) for w in ext.debugfs(path, "blocks /lost+found").split() if w.isdigit())
    assert volume.owner(number * 1024 + 1023) == "/lost+found"


def test_the_rest_of_a_cluster_belongs_to_the_file_whose_it_is(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "small").write_bytes(b"x" * 5000)
    options = ["-t", "ext4", "-b", "4096", "-O", "bigalloc,^resize_inode", "-C", "65536"]
    path = ext.make(tmp_path / "a.img", 64 * ext.MIB, *options, source=tree)
    with open_image(path) as image:
        volume = map_volume(image)
    inode = int(volume.names.set_index("path").loc["/small", "inode"])
    mine = volume.extents[volume.extents["inode"] == inode]
    assert mine["kind"].tolist() == ["data", "reserved"]
    assert mine["length"].tolist() == [8192, 65536 - 8192]
    place = int(mine["physical"].iloc[1])
    assert volume.owner(place) == volume.owner(place + 50_000) == "/small"
    used = volume.in_use.to_bool()
    assert used[place // 4096 - 2 : place // 4096].all()
    assert not used[place // 4096 : place // 4096 + 14].any()  # no reading returns it
    allocated = np.flatnonzero(ext.dumped_in_use(path))
    assert "<allocated, no owner>" not in set(volume.owners(allocated * 4096))
