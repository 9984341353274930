"""XFS without a mount: other readers of the same image, and states that no mount leaves behind."""

from __future__ import annotations

import os
import struct
import subprocess
from pathlib import Path

import ext_images as ext
import numpy as np
import pytest
import xfs_images as xfs

from cbtlab.errors import InputError
from cbtlab.files import VolumeMap, map_volume
from cbtlab.files.extents import DATA, INLINE
from cbtlab.files.volume import Volume
from cbtlab.files.xfs import layout as on_disk
from cbtlab.files.xfs.checksum import made as checksum
from cbtlab.files.xfs.superblock import Xfs

pytestmark = xfs.needs_xfsprogs

KINDS = {
    "v4": "-m crc=0,finobt=0 -b size=512 -i size=256",
    "v4-large-folders": "-m crc=0,finobt=0 -n ftype=0,size=16384 -i size=2048",
    "v5": "-b size=1024 -m rmapbt=1",
    "v5-4k": "-i size=512",
}


class Made:
    """An image that mkfs.xfs filled from a folder."""

    def __init__(self, folder: Path, options: str) -> None:
        self.tree = xfs.tree(folder / "tree")
        files = xfs.prototype(self.tree)
        self.path = xfs.make(folder / "a.img", 32 * xfs.MIB, *options.split(), files=files)
        self.data = self.path.read_bytes()
        self.volume = map_volume(xfs.Memory(self.data))


@pytest.fixture(scope="module", params=list(KINDS))
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    return Made(tmp_path_factory.mktemp("xfs"), KINDS[request.param])


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return Made(tmp_path_factory.mktemp("xfs"), "-i size=512")


def test_names_and_content_are_those_of_the_folder(made: Made) -> None:
    volume = made.volume
    assert (volume.notes, volume.hidden, volume.damaged) == ([], [], {})
    there = {b"/" + os.fsencode(path.relative_to(made.tree)) for path in made.tree.rglob("*")}
    assert set(volume.names["raw"]) == there | {b"/"}
    for raw, inode, kind in volume.names[["raw", "inode", "type"]].itertuples(index=False):
        path = made.tree / os.fsdecode(raw[1:])
        if kind == "symlink":
            assert volume.read_file(inode) == os.fsencode(path.readlink())
        elif kind == "file":
            assert volume.read_file(inode) == path.read_bytes()


def test_space_is_that_of_xfs_db(made: Made) -> None:
    free, apart = xfs.free_by_db(made.path)
    owners = made.volume.owners(np.arange(len(free)) * made.volume.block_size)
    assert np.array_equal(owners == "<free>", free)
    assert np.array_equal(owners == "<set apart for trees>", apart)
    assert "<allocated, no owner>" not in owners
    assert np.array_equal(made.volume.in_use.to_bool()[: len(free)], ~free & ~apart)
    ext.run("xfs_repair", "-n", str(made.path))


def test_places_are_those_of_libfsxfs(made: Made) -> None:
    pyfsxfs = pytest.importorskip("pyfsxfs", reason="libfsxfs-python is not installed")
    with made.path.open("rb") as file:
        theirs = pyfsxfs.volume()
        theirs.open_file_object(file)
        volume = made.volume
        files = volume.names[volume.names["type"] == "file"]
        for raw, inode in files[["raw", "inode"]].itertuples(index=False):
            entry = theirs.get_file_entry_by_path(os.fsdecode(raw))
            assert entry.inode_number == inode and entry.size == volume.inodes.loc[inode, "size"]
            rows = [entry.get_extent(n)[:2] for n in range(entry.number_of_extents)]
            mine = volume.rows(inode)
            mine = mine[mine.kind == DATA]
            assert rows == list(zip(mine.physical.tolist(), mine.length.tolist(), strict=True)), raw
        theirs.close()


@pytest.mark.parametrize("offset", [63 * 512, xfs.MIB])
def test_a_file_system_inside_of_an_image(plain: Made, offset: int) -> None:
    moved = map_volume(xfs.Memory(bytes(offset) + plain.data + bytes(5000)), offset)
    one, two = plain.volume.extents, moved.extents
    assert (two["physical"].dropna() - one["physical"].dropna() == offset).all()
    inode = int(moved.names.set_index("path").loc["/f-large", "inode"])
    assert moved.read_file(inode) == (plain.tree / "f-large").read_bytes()
    link = int(moved.names.set_index("path").loc["/long-link", "inode"])
    assert moved.read_file(link) == b"y" * 240
    assert moved.owner(offset) == "<superblock>"
    assert moved.owner(offset - 1) == "<outside the file system>"
    assert moved.in_use.to_bool()[: offset // moved.in_use.granularity].all()


# States that no mount leaves behind -------------------------------------------------------------


class Edited:
    """A copy of an image whose structures can be changed, checksums made anew."""

    def __init__(self, image: Made) -> None:
        self.data = bytearray(image.data)
        self.xfs = Xfs(Volume(xfs.Memory(image.data)))
        self.xfs.read_groups()

    def pack(self, place: int, at: int, form: str, *values: int) -> None:
        struct.pack_into(form, self.data, place + at, *values)

    def seal(self, place: int, size: int, at: int) -> None:
        row = np.frombuffer(bytes(self.data[place : place + size]), np.uint8)[None]
        struct.pack_into("<I", self.data, place + at, int(checksum(row, at)[0]))

    def inode(self, number: int) -> int:
        return int(self.xfs.inode_places(np.array([number]))[0])

    def seal_inode(self, number: int) -> None:
        self.seal(self.inode(number), self.xfs.inode_size, on_disk.INODE_CHECKSUM)

    def mapped(self) -> VolumeMap:
        return map_volume(xfs.Memory(self.data))


def number_of(volume: VolumeMap, path: str) -> int:
    return int(volume.names.set_index("path").loc[path, "inode"])


def test_space_set_apart_for_copy_on_write(plain: Made, tmp_path: Path) -> None:
    edited, size = Edited(plain), plain.volume.block_size
    heads = edited.xfs.agf[1]
    block = edited.xfs.ag_blocks * size
    by_block, by_size, shares = (
        block + int(heads[name]) * size for name in ("by_block_root", "by_size_root", "shares_root")
    )
    start, count = struct.unpack_from(">II", edited.data, by_block + 56)
    assert struct.unpack_from(">II", edited.data, by_size + 56) == (start, count)
    for place in (by_block, by_size):
        edited.pack(place, 56, ">II", start + 8, count - 8)
        edited.seal(place, size, 52)
    edited.pack(shares, 6, ">H", 1)
    edited.pack(shares, 56, ">III", start | on_disk.STAGED, 8, 1)
    edited.seal(shares, size, 52)
    edited.pack(block + 512, 52, ">II", int(heads["free_blocks"]) - 8, count - 8)
    edited.seal(block + 512, 512, 216)
    free = struct.unpack_from(">Q", edited.data, 144)[0]
    edited.pack(0, 144, ">Q", free - 8)
    edited.seal(0, 512, on_disk.SUPERBLOCK_CHECKSUM)
    volume = edited.mapped()
    places = np.arange(start - 1, start + 9) + edited.xfs.ag_blocks
    owners = volume.owners(places * size).tolist()
    assert owners[1:9] == ["<copy-on-write reservation>"] * 8 and owners[9] == "<free>"
    assert not volume.in_use.to_bool()[places[1:9]].any()
    path = tmp_path / "staged.img"
    path.write_bytes(edited.data)
    done = subprocess.run(["xfs_repair", "-n", path], capture_output=True, text=True, check=False)
    odd = [
        line for line in done.stderr.splitlines() if line.startswith(("leftover", "would", "bad"))
    ]
    assert odd == [f"leftover CoW extent (1/{start}) len 8"]


def test_an_inode_that_waits_to_be_freed(plain: Made) -> None:
    edited, number = Edited(plain), number_of(plain.volume, "/f-large")
    place = edited.inode(number)
    edited.pack(place, 16, ">I", 0)  # no links
    edited.seal_inode(number)
    edited.pack(1024, 40 + 4 * (number % 64), ">I", number)  # of the first group
    edited.seal(1024, 512, 312)
    volume = edited.mapped()
    assert volume.notes == ["1 inodes without a name wait for the next mount to free them"]


def test_an_inode_without_a_name_is_told(plain: Made) -> None:
    edited, root = Edited(plain), plain.volume.root
    place = edited.inode(root)
    inline = plain.volume.rows(root)
    assert inline.kind.tolist() == [INLINE]
    edited.pack(place, 176, ">BB", 0, 0)
    edited.pack(place, 56, ">Q", 6)
    edited.seal_inode(root)
    volume = edited.mapped()
    assert volume.names["path"].tolist() == ["/"]
    assert any("has no name" in line for line in volume.hidden)
    assert any("nothing leads to" in line for line in volume.hidden)


def test_two_files_that_claim_one_block(plain: Made) -> None:
    edited = Edited(plain)
    one, two = (
        number_of(plain.volume, f"/{name}") for name in ("f-large", "one-block/f008" + "n" * 56)
    )
    record = slice(edited.inode(one) + 176, edited.inode(one) + 192)
    target = edited.inode(two) + 176
    high, low = struct.unpack(">QQ", edited.data[record])
    edited.pack(target, 0, ">QQ", high, low & ~0x1FFFFF | 1)
    edited.seal_inode(two)
    volume = edited.mapped()
    assert {one, two} <= set(volume.damaged)
    with pytest.raises(InputError, match="another owner"):
        volume.read_file(two)


def test_a_tree_that_leads_to_itself(plain: Made) -> None:
    edited, size = Edited(plain), plain.volume.block_size
    root = int(edited.xfs.agf[0]["by_block_root"])
    edited.pack(root * size, 4, ">HH", 2, 9)
    pointers = 56 + (size - 56) // 12 * 8
    edited.pack(root * size, pointers, ">9I", *[root] * 9)
    edited.seal(root * size, size, 52)
    edited.pack(512, 28, ">I", 3)
    edited.seal(512, 512, 216)
    with pytest.raises(InputError, match="points to a wrong block"):
        edited.mapped()


def test_a_folder_within_itself(plain: Made) -> None:
    edited = Edited(plain)
    inner, root = number_of(plain.volume, "/in-inode"), plain.volume.root
    place = edited.inode(inner) + 176
    length = edited.data[place + 6]
    at = place + 6 + 3 + length  # the first entry's type and inode
    edited.pack(at, 0, ">BI", 2, root)
    edited.seal_inode(inner)
    volume = edited.mapped()
    assert len(volume.names) == len(plain.volume.names)
    assert volume.hidden  # the file whose entry that was
