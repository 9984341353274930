"""The map of XFS images against the kernel's own view of them, mounted."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import ext_images as ext
import numpy as np
import pytest
import xfs_content as content
import xfs_images as xfs

from cbtlab.files import map_volume
from cbtlab.files.extents import DATA, META, UNWRITTEN
from cbtlab.images import open_image

pytestmark = [pytest.mark.root, xfs.needs_xfsprogs]

#: Size in MiB, options of mkfs.xfs, whether there are reflinks, and how many extents the most
#: fragmented file has.
KINDS: dict[str, tuple[int, str, bool, int]] = {
    "default": (64, "", True, 150),
    "fragmented": (96, "-m rmapbt=1 -d agcount=4", True, 200),
    "1k": (96, "-b size=1024 -d agcount=3 -m rmapbt=1,inobtcount=0 -i sparse=0", True, 1300),
    "8k-folders": (64, "-n size=8192 -i size=2048,nrext64=1 -m rmapbt=1", True, 200),
    "many-groups": (
        512,
        "-d agcount=32,su=64k,sw=2 -l size=8m,su=32k -m bigtime=0,reflink=0,finobt=0 -i sparse=0",
        False,
        60,
    ),
    "parents": (64, "-m rmapbt=1 -i nrext64=1", True, 60),
    "64k": (520, "-b size=65536 -m rmapbt=1 -d agcount=2", True, 60),
}
#: Features that a newer mkfs.xfs sets: links to parents as attributes, which the kernel then
#: makes for every name; and exchange-range, which changes nothing on the disk.
PARENTS, EXCHANGE = 0x80, 0x40


class Pair:
    """The map of an image, and the truth."""

    def __init__(self, path: Path, kind: str) -> None:
        size, options, reflink, many = KINDS[kind]
        self.path = xfs.make(path, size * xfs.MIB, *options.split())
        if kind == "parents":
            xfs.add_features(self.path, PARENTS | EXCHANGE)
        with ext.mounted(path, "-o", "noatime") as root:
            if kind == "fragmented":
                content.fragment(root)
            content.fill(root, reflink=reflink, many=many)
        with ext.mounted(path, "-o", "ro,noatime") as root:
            self.truth = content.Truth(root)
        self.image = open_image(path)
        self.volume = map_volume(self.image)
        names = self.volume.names
        self.inode = dict(zip(names["raw"], names["inode"].tolist(), strict=True))


@pytest.fixture(scope="module", params=list(KINDS))
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    path = tmp_path_factory.mktemp("xfs") / f"{request.param}.img"
    made = Pair(path, request.param)
    yield made
    made.image.close()
    path.unlink()


def test_nothing_is_odd_and_the_checker_agrees(pair: Pair) -> None:
    volume = pair.volume
    assert (volume.notes, volume.damaged, volume.hidden) == ([], {}, [])
    if pair.path.stem != "parents":  # which xfsprogs older than 6.10 do not know
        ext.run("xfs_repair", "-n", str(pair.path))


def test_names_and_types_are_those_of_the_kernel(pair: Pair) -> None:
    volume, truth = pair.volume, pair.truth
    assert len(pair.inode) == len(volume.names)
    assert pair.inode == {raw: info.st_ino for raw, info in truth.stat.items()}
    kinds = dict(zip(volume.names["raw"], volume.names["type"], strict=True))
    for raw, info in truth.stat.items():
        kind = {stat.S_IFREG: "file", stat.S_IFDIR: "directory", stat.S_IFLNK: "symlink"}
        assert kinds[raw] == kind.get(stat.S_IFMT(info.st_mode), "other")


def test_inodes_say_what_stat_says(pair: Pair) -> None:
    for raw, info in pair.truth.stat.items():
        row = pair.volume.inodes.loc[info.st_ino]
        assert row["size"] == info.st_size or stat.S_ISDIR(info.st_mode), raw
        assert (row["mode"], row["uid"], row["gid"]) == (info.st_mode, info.st_uid, info.st_gid)
        assert row["nlink"] == info.st_nlink
        times = (row["mtime_ns"], row["atime_ns"], row["ctime_ns"])
        assert times == (info.st_mtime_ns, info.st_atime_ns, info.st_ctime_ns), raw
        device = os.major(info.st_rdev) << 20 | os.minor(info.st_rdev)
        assert row["device"] == device, raw


def test_content_is_what_the_kernel_reads(pair: Pair) -> None:
    for raw, theirs in pair.truth.content.items():
        assert pair.volume.read_file(pair.inode[raw]) == theirs, raw


def test_attributes_are_what_getxattr_returns(pair: Pair) -> None:
    for raw, attributes in pair.truth.xattrs.items():
        assert pair.volume.xattrs(pair.inode[raw]) == attributes, raw
    assert any("system.posix_acl_access" in found for found in pair.truth.xattrs.values())


def test_links_to_parents_are_no_attributes(pair: Pair) -> None:
    if pair.path.stem != "parents":
        pytest.skip("this kind has no links to parents")
    text = xfs.xfs_db(pair.path, f"inode {pair.inode[b'/tiny']}", "print a.sfattr.hdr.count")
    assert text.strip() == "a.sfattr.hdr.count = 2"
    assert len(pair.truth.xattrs[b"/tiny"]) == len(pair.volume.xattrs(pair.inode[b"/tiny"])) == 1


def test_extents_are_those_of_fiemap_and_xfs_bmap(pair: Pair) -> None:
    for raw, listed in pair.truth.bmap.items():
        mine = pair.volume.rows(pair.inode[raw])
        mine = mine[np.isin(mine.kind, (DATA, UNWRITTEN))]
        rows = xfs.expand(
            zip(mine.logical, mine.physical, mine.length, mine.kind == UNWRITTEN, strict=True)
        )
        # A folder's leaves and lists of free space find names and hold none: they are meta here.
        assert rows == {row for row in xfs.expand(listed) if row[0] < 1 << 35}, raw
        if raw in pair.truth.fiemap:
            assert rows == xfs.expand(pair.truth.fiemap[raw]), raw


def test_attribute_blocks_are_those_of_xfs_bmap(pair: Pair) -> None:
    for raw, listed in pair.truth.attribute_map.items():
        mine = pair.volume.rows(pair.inode[raw])
        mine = mine[mine.kind == META]
        meta = {place for _, place, _ in xfs.expand((0, *row, False) for row in pairs(mine))}
        assert {at for _, at, _ in xfs.expand((0, *row[1:]) for row in listed)} <= meta, raw
    assert any(pair.truth.attribute_map.values())


def pairs(extents):
    return zip(extents.physical.tolist(), extents.length.tolist(), strict=True)


def test_in_use_is_what_is_not_free_less_what_cannot_be_read(pair: Pair) -> None:
    volume, truth, size = pair.volume, pair.truth, pair.volume.block_size
    free, apart = xfs.free_by_db(pair.path)
    used = ~free
    kernels = np.ones(len(used), np.bool_)
    for _, physical, owner, _, length in truth.fsmap:
        if content.OWNERS.get(owner) == "free":
            kernels[physical // size : (physical + length) // size] = False
    assert np.array_equal(used, kernels)  # xfs_db and the kernel agree
    readable = np.zeros(len(used), np.bool_)
    for raw, listed in truth.bmap.items():
        info = truth.stat[raw]
        past = -(-info.st_size // size) * size if stat.S_ISREG(info.st_mode) else 1 << 62
        for logical, physical, length, flags in listed:
            kept = 0 if flags else min(max(past - logical, 0), length)
            used[(physical + kept) // size : (physical + length) // size] = False
            readable[physical // size : (physical + kept) // size] = True
    used |= readable  # a shared block that one of its owners can read
    used[apart] = False  # allocated, and never read
    mine = volume.in_use.to_bool()
    assert np.array_equal(mine[: len(used)], used)
    assert mine[len(used) :].all()


def test_every_allocated_block_has_an_owner(pair: Pair) -> None:
    volume = pair.volume
    free, apart = xfs.free_by_db(pair.path)
    owners = volume.owners(np.arange(len(free)) * volume.block_size)
    assert "<allocated, no owner>" not in owners
    assert np.array_equal(owners == "<free>", free)
    assert np.array_equal(owners == "<set apart for trees>", apart)


def test_owners_are_those_of_getfsmap(pair: Pair) -> None:
    if "rmapbt=1" not in KINDS[pair.path.stem][1]:
        pytest.skip("without a reverse mapping tree the kernel knows no owners")
    volume, size = pair.volume, pair.volume.block_size
    regions: dict[str, str] = {}
    for kernels, names in {
        "free": ["<free>"],
        "headers": ["<superblock>"],
        "log": ["<log>"],
        "group": [
            "<free space tree, by block>",
            "<free space tree, by size>",
            "<reverse mapping tree>",
            "<set apart for trees>",
        ],
        "inode trees": ["<inode tree>", "<free inode tree>"],
        "inodes": ["<inodes>"],
        "reference counts": ["<reference count tree>"],
    }.items():
        regions |= dict.fromkeys(names, kernels)
    mine: dict[int, set[int]] = {}
    arrays = volume.arrays
    for inode, place, length, kind in zip(
        arrays.inode.tolist(),
        arrays.physical.tolist(),
        arrays.length.tolist(),
        arrays.kind.tolist(),
        strict=True,
    ):
        if kind in (DATA, UNWRITTEN, META):
            blocks = range(place // size, -(-(place + length) // size))
            mine.setdefault(inode, set()).update(blocks)
    kernels_files: dict[int, set[int]] = {}
    seen = set()
    for flags, physical, owner, _, length in pair.truth.fsmap:
        blocks = range(physical // size, (physical + length) // size)
        if flags & content.SPECIAL or owner in content.OWNERS:
            own = set(volume.owners(np.array(blocks) * size))
            if content.OWNERS[owner] == "headers" and size < 2048:
                own -= {"<AGF>", "<AGI>", "<AGFL>"}
            assert {regions.get(name, name) for name in own} == {content.OWNERS[owner]}, own
            seen.add(content.OWNERS[owner])
        else:
            kernels_files.setdefault(owner, set()).update(blocks)
    assert mine == kernels_files
    assert len(seen) >= 6


def test_shared_blocks_belong_to_both(pair: Pair) -> None:
    if not KINDS[pair.path.stem][2]:
        pytest.skip("this kind has no reflinks")
    volume = pair.volume
    pieces = volume.pieces
    both = pieces[pieces["path"].isin(["/many-extents", "/clone"]) & (pieces["kind"] == "data")]
    places = {path: set(rows["physical"]) for path, rows in both.groupby("path")}
    shared = places["/many-extents"] & places["/clone"]
    assert shared and places["/many-extents"] != places["/clone"]
    assert volume.owner(min(shared)) in ("/many-extents", "/clone")
