"""The map of an image against the kernel's own view of it, mounted."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import ext_images as ext
import numpy as np
import pytest

from cbtlab.files import VolumeMap, map_volume
from cbtlab.images import open_image

pytestmark = [pytest.mark.root, ext.needs_e2fsprogs]

KINDS = {
    "ext4": ["-t", "ext4"],
    "ext4-1k": ["-t", "ext4", "-b", "1024", "-O", "^64bit"],
    "ext4-2k-small-inodes": ["-t", "ext4", "-b", "2048", "-I", "128"],
    "ext4-inline": ["-t", "ext4", "-b", "4096", "-O", "inline_data", "-I", "512"],
    "ext4-inline-256": ["-t", "ext4", "-b", "1024", "-O", "inline_data"],
    "ext4-no-extents": ["-t", "ext4", "-O", "^extents,^64bit,^metadata_csum"],
    "ext4-values-in-inodes": ["-t", "ext4", "-O", "ea_inode"],
    "ext3": ["-t", "ext3", "-b", "1024"],
    "ext2": ["-t", "ext2", "-b", "4096"],
}


class Truth:
    """What the kernel says of every name of a mounted image."""

    def __init__(self, root: Path) -> None:
        self.stat: dict[bytes, os.stat_result] = {}
        self.content: dict[bytes, bytes] = {}
        self.fiemap: dict[bytes, list[tuple[int, int, int, int]]] = {}
        self.xattrs: dict[bytes, dict[str, bytes]] = {}
        base = os.fsencode(root)
        self._look(root, b"/")
        for folder, folders, files in os.walk(base):
            for name in folders + files:
                path = folder + b"/" + name
                self._look(Path(os.fsdecode(path)), path[len(base) :])

    def _look(self, path: Path, name: bytes) -> None:
        info = os.lstat(path)
        self.stat[name] = info
        listed = os.listxattr(path, follow_symlinks=False)
        self.xattrs[name] = {
            attribute: os.getxattr(path, attribute, follow_symlinks=False) for attribute in listed
        }
        if stat.S_ISREG(info.st_mode):
            self.fiemap[name] = ext.fiemap(path)
            self.content[name] = path.read_bytes()
        elif stat.S_ISLNK(info.st_mode):
            self.content[name] = os.fsencode(path.readlink())


@pytest.fixture(scope="module", params=list(KINDS))
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    path = tmp_path_factory.mktemp("ext") / f"{request.param}.img"
    ext.make(path, 48 * ext.MIB, *KINDS[request.param])
    with ext.mounted(path, "-o", "noatime") as root:
        ext.fill(root)
        if "extents" not in request.param and not request.param.startswith(("ext2", "ext3")):
            ext.preallocate(root)
        if "values" in request.param:
            os.setxattr(root / "tiny", "user.huge", os.urandom(40000))
    with ext.mounted(path, "-o", "ro,noatime") as root:
        truth = Truth(root)
    with open_image(path) as image:
        yield map_volume(image), truth, path


def inode_of(volume: VolumeMap, raw: bytes) -> int:
    names = volume.names
    return int(names.loc[names["raw"] == raw, "inode"].iloc[0])


def test_names_and_types_are_those_of_the_kernel(pair) -> None:
    volume, truth, _ = pair
    names = dict(zip(volume.names["raw"], volume.names["inode"].tolist(), strict=True))
    assert names == {raw: info.st_ino for raw, info in truth.stat.items()}
    kinds = dict(zip(volume.names["raw"], volume.names["type"], strict=True))
    for raw, info in truth.stat.items():
        kind = {stat.S_IFREG: "file", stat.S_IFDIR: "directory", stat.S_IFLNK: "symlink"}
        assert kinds[raw] == kind.get(stat.S_IFMT(info.st_mode), "other")


def test_inodes_say_what_stat_says(pair) -> None:
    volume, truth, _ = pair
    for raw, info in truth.stat.items():
        row = volume.inodes.loc[info.st_ino]
        assert row["size"] == info.st_size, raw
        assert (row["mode"], row["uid"], row["gid"]) == (info.st_mode, info.st_uid, info.st_gid)
        assert row["nlink"] == info.st_nlink
        times = (row["mtime_ns"], row["atime_ns"], row["ctime_ns"])
        assert times == (info.st_mtime_ns, info.st_atime_ns, info.st_ctime_ns), raw


def test_content_is_what_the_kernel_reads(pair) -> None:
    volume, truth, _ = pair
    for raw, content in truth.content.items():
        assert volume.read_file(inode_of(volume, raw)) == content, raw


def test_extents_are_those_of_fiemap(pair) -> None:
    volume, truth, _ = pair
    for raw, listed in truth.fiemap.items():
        mine = volume.extents[volume.extents["inode"] == inode_of(volume, raw)]
        blocks = expand(
            (row.logical, row.physical, row.length, row.kind == "unwritten")
            for row in mine.itertuples()
            if row.kind in ("data", "unwritten")
        )
        expected = expand(
            (logical, physical, length, bool(flags & ext.UNWRITTEN))
            for logical, physical, length, flags in listed
            if not flags & ext.INLINE
        )
        assert blocks == expected, raw
        inline = mine[mine["kind"] == "inline"]
        if any(flags & ext.INLINE for *_, flags in listed):
            assert inline["physical"].iloc[0] == listed[0][1], raw
            assert inline["length"].sum() == truth.stat[raw].st_size
        else:
            assert inline.empty


def expand(rows) -> set[tuple[int, int, bool]]:
    """Every 512 bytes as (logical, physical, unwritten), however the extents were merged."""
    return {
        (logical + at, physical + at, unwritten)
        for logical, physical, length, unwritten in rows
        for at in range(0, length, 512)
    }


def test_extents_tile_every_file(pair) -> None:
    volume, truth, _ = pair
    for raw, info in truth.stat.items():
        if not stat.S_ISREG(info.st_mode):
            continue
        reached = 0
        mine = volume.extents[volume.extents["inode"] == info.st_ino]
        for row in mine[mine["kind"] != "meta"].itertuples():
            assert row.logical == reached or row.logical >= info.st_size, raw
            reached = row.logical + row.length
        assert reached >= info.st_size, raw


def test_attributes_are_what_getxattr_returns(pair) -> None:
    volume, truth, _ = pair
    for raw, attributes in truth.xattrs.items():
        assert volume.xattrs(inode_of(volume, raw)) == attributes, raw


def test_in_use_is_allocated_less_what_cannot_be_read(pair) -> None:
    volume, truth, path = pair
    used = ext.dumped_in_use(path)
    size = volume.block_size
    for raw, listed in truth.fiemap.items():
        past = -(-truth.stat[raw].st_size // size) * size
        for logical, physical, length, flags in listed:
            if flags & ext.UNWRITTEN:
                used[physical // size : (physical + length) // size] = False
            elif logical + length > past and not flags & ext.INLINE:
                kept = max(past - logical, 0)
                used[(physical + kept) // size : (physical + length) // size] = False
    mine = volume.in_use.to_bool()
    assert np.array_equal(mine[: len(used)], used)
    assert mine[len(used) :].all()
    assert volume.damaged == {}
    assert volume.notes == []


def test_owners_are_the_files(pair) -> None:
    volume, truth, _ = pair
    names = {info.st_ino: raw for raw, info in sorted(truth.stat.items(), key=str, reverse=True)}
    for raw, listed in truth.fiemap.items():
        for _, physical, length, flags in listed[:3]:
            if not flags & ext.INLINE:
                owner = volume.owner(physical + length - 1)
                inode = inode_of(volume, names[truth.stat[raw].st_ino])
                assert owner in set(volume.names.loc[volume.names["inode"] == inode, "path"])
