"""The map of a btrfs image against the kernel's view of it and what btrfs-progs print."""

from __future__ import annotations

import re
import stat
from pathlib import Path

import btrfs_images as btrfs
import ext_images as ext
import numpy as np
import pytest

from cbtlab.files import map_volume
from cbtlab.files.extents import DATA, INLINE, META
from cbtlab.images import open_image

pytestmark = [pytest.mark.root, btrfs.needs_btrfs]

KINDS = {
    "plain": ["-n", "16384"],
    "single": ["-d", "single", "-m", "single", "-n", "4096", "--csum", "xxhash"],
    "dup": ["-d", "dup", "-m", "dup", "--csum", "sha256", "-R", "quota"],
    "mixed": ["-M", "-d", "dup", "-m", "dup", "-n", "4096", "--csum", "blake2"],
    "old": ["-O", "^no-holes,^skinny-metadata,^extref", "-R", "^free-space-tree", "-n", "65536"],
    "groups": ["-O", "block-group-tree"],
}
SIZE = 256 * btrfs.MIB
NODE = {"single": 4096, "mixed": 4096, "old": 65536}


class Pair:
    """The map of an image, and what others say of it."""

    def __init__(self, path: Path, kind: str) -> None:
        if kind == "groups" and not btrfs.knows("block-group-tree"):
            pytest.skip("this mkfs.btrfs makes no block group tree")
        btrfs.make(path, SIZE, *KINDS[kind])
        with btrfs.mounted(path, "-o", "noatime") as root:
            btrfs.fill(root)
        with btrfs.mounted(path, "-o", "ro,noatime") as root:
            self.truth = btrfs.Truth(root)
            self.subvolumes = {
                name: int(ext.run("btrfs", "inspect-internal", "rootid", str(root) + name))
                for name in ("/", "/sub", "/sub/folder/nested", "/snapshot", "/folder/writable")
            }
        self.path, self.node = path, NODE.get(kind, 16384)
        self.chunks = btrfs.DumpedChunks(path)
        self.allocated = btrfs.dumped_allocated(path, self.node)
        self.data = btrfs.private(path)
        self.free_space = btrfs.dumped_free_space(path)
        self.data_address = next(at for at, (_, tree) in self.allocated.items() if not tree)


@pytest.fixture(scope="module", params=list(KINDS))
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    path = tmp_path_factory.mktemp("btrfs") / f"{request.param}.img"
    made = Pair(path, request.param)
    with open_image(path) as image:
        yield map_volume(image), made
    path.unlink()


def test_nothing_is_odd_and_the_checker_agrees(pair) -> None:
    volume, made = pair
    assert volume.notes == [] and volume.damaged == {}
    assert "no error found" in ext.run("btrfs", "check", "--readonly", str(made.path))
    assert volume.uuid in ext.run("btrfs", "inspect-internal", "dump-super", str(made.path))


def test_names_and_types_are_those_of_the_kernel(pair) -> None:
    volume, made = pair
    names = dict(zip(volume.names["raw"], volume.names["inode"].tolist(), strict=True))
    within = {raw: inode & btrfs.INODE for raw, inode in names.items()}
    assert within == {raw: info.st_ino for raw, info in made.truth.stat.items()}
    kinds = dict(zip(volume.names["raw"], volume.names["type"], strict=True))
    for raw, info in made.truth.stat.items():
        kind = {stat.S_IFREG: "file", stat.S_IFDIR: "directory", stat.S_IFLNK: "symlink"}
        assert kinds[raw] == kind.get(stat.S_IFMT(info.st_mode), "other")
    for name, tree in made.subvolumes.items():
        assert names[name.encode()] >> 48 == (tree if tree != 5 else 0)


def test_inodes_say_what_stat_says(pair) -> None:
    volume, made = pair
    for raw, info in made.truth.stat.items():
        row = volume.inodes.loc[btrfs.inode_of(volume, raw)]
        if info.st_ino == 2:  # a nested subvolume that the snapshot does not hold
            assert row["type"] == "directory" and raw.endswith(b"/folder/nested")
            continue
        assert row["size"] == info.st_size, raw
        assert (row["mode"], row["uid"], row["gid"]) == (info.st_mode, info.st_uid, info.st_gid)
        assert row["nlink"] == info.st_nlink
        times = (row["mtime_ns"], row["atime_ns"], row["ctime_ns"])
        assert times == (info.st_mtime_ns, info.st_atime_ns, info.st_ctime_ns), raw


def test_content_and_attributes_are_what_the_kernel_reads(pair) -> None:
    volume, made = pair
    for raw, content in made.truth.content.items():
        assert volume.read_file(btrfs.inode_of(volume, raw)) == content, raw
    for raw, attributes in made.truth.xattrs.items():
        assert volume.xattrs(btrfs.inode_of(volume, raw)) == attributes, raw
    assert made.truth.xattrs[b"/folder"].keys() >= {"system.posix_acl_access", "security.label"}
    assert made.truth.xattrs[b"/zlib"] == {"btrfs.compression": b"zlib"}


def test_extents_are_those_of_fiemap(pair) -> None:
    """FIEMAP tells logical addresses, and of compressed extents the length of the content."""
    volume, made = pair
    everything = dict(list(volume.extents.groupby("inode")))
    nothing = volume.extents[:0]
    for raw, listed in made.truth.fiemap.items():
        mine = everything.get(btrfs.inode_of(volume, raw), nothing)
        plain = mine[mine["kind"].isin(["data", "unwritten"]) & ~mine["encoded"]]
        blocks = {
            (row.logical + at, row.physical + at, row.kind == "unwritten")
            for row in plain.itertuples()
            for at in range(0, row.length, 4096)
        }
        expected = {
            (logical + at, place + at, bool(flags & ext.UNWRITTEN))
            for logical, physical, length, flags in listed
            if not flags & (ext.INLINE | btrfs.ENCODED)
            for place in made.chunks.places(physical)[:1]
            for at in range(0, length, 4096)
        }
        assert blocks == expected, raw
        packed = mine[mine["encoded"] & (mine["kind"] == "data")]
        assert {(row.logical, row.physical) for row in packed.itertuples()} >= {
            (logical, made.chunks.places(physical)[0])
            for logical, physical, _, flags in listed
            if flags & btrfs.ENCODED and not flags & ext.INLINE
        }, raw
        assert (mine["kind"] == "inline").any() == any(row[3] & ext.INLINE for row in listed)


def test_the_bytes_lie_where_the_extents_say(pair) -> None:
    volume, made = pair
    seen = set()
    for raw, content in made.truth.content.items():
        found = volume.rows(btrfs.inode_of(volume, raw))
        rows = (found.kind, found.logical, found.physical, found.length, found.encoded)
        copies = []
        for kind, logical, physical, length, encoded in zip(
            *(column.tolist() for column in rows), strict=True
        ):
            if kind == META:
                copies.append(made.data[physical : physical + length])
            elif kind in (DATA, INLINE) and not encoded:
                expected = content[logical : logical + length]
                assert made.data[physical : physical + len(expected)] == expected, raw
                seen.add(kind)
        firsts = {
            made.data[physical : physical + length]
            for kind, _, physical, length, _ in zip(*(c.tolist() for c in rows), strict=True)
            if kind == DATA
        }
        if copies and len(copies) == len(firsts):
            assert set(copies) == firsts, raw
            seen.add(META)
    assert {DATA, INLINE} <= seen
    assert (META in seen) == (len(made.chunks.places(made.data_address)) == 2)


def test_the_owners_of_tree_blocks(pair) -> None:
    volume, made = pair
    blocks = btrfs.dumped_tree_blocks(made.path)
    assert set(blocks) == {at for at, (_, tree) in made.allocated.items() if tree}
    names = {
        "ROOT_TREE": "<root tree>",
        "EXTENT_TREE": "<extent tree>",
        "CHUNK_TREE": "<chunk tree>",
        "DEV_TREE": "<device tree>",
        "CSUM_TREE": "<checksum tree>",
        "QUOTA_TREE": "<quota tree>",
        "UUID_TREE": "<uuid tree>",
        "BLOCK_GROUP_TREE": "<block group tree>",
        "FREE_SPACE_TREE": "<free space tree>",
        "DATA_RELOC_TREE": "<data relocation tree>",
    }
    for block, tree in blocks.items():
        for place in made.chunks.places(block):
            for at in (place, place + made.node - 1):
                assert volume.owner(at) == names.get(tree, "<fs tree>")


def test_what_is_in_use(pair) -> None:
    """Tree blocks, superblocks, what FIEMAP says can be read, and what no file reads of an extent.

    Of an extent a part may be left that no file reads: a scrub does.
    """
    volume, made = pair
    named = set()
    ranges = [(0, 1 << 20), (64 << 20, 4096)]
    for at, (length, tree) in made.allocated.items():
        if tree:
            ranges += [(place, length) for place in made.chunks.places(at)]
    for raw, listed in made.truth.fiemap.items():
        size = -(-made.truth.stat[raw].st_size // 4096) * 4096
        for logical, physical, length, flags in listed:
            if flags & ext.INLINE:
                continue
            if flags & btrfs.ENCODED:
                # FIEMAP joins compressed extents; their true lengths are in the extent tree.
                length = made.allocated[physical][0]
            named |= set(range(physical, physical + length, 4096))
            if flags & ext.UNWRITTEN:
                continue
            if not flags & btrfs.ENCODED:
                length = min(length, size - logical)
            ranges += [(place, length) for place in made.chunks.places(physical)]
    for at, (length, tree) in made.allocated.items():
        for block in () if tree else range(at, at + length, 4096):
            if block not in named:
                ranges += [(place, 4096) for place in made.chunks.places(block)]
    expected = btrfs.covered(ranges, SIZE, 4096)
    assert np.array_equal(volume.in_use.to_bool(), expected)


def test_what_is_free_is_what_the_free_space_tree_says(pair) -> None:
    volume, made = pair
    free = np.ones(SIZE // 4096, np.bool_)
    free[:256] = False
    for at, (length, _) in made.allocated.items():
        for place in made.chunks.places(at):
            free[place // 4096 : (place + length) // 4096] = False
    owners = volume.owners(np.arange(0, SIZE, 4096))
    assert "<allocated, no owner>" not in set(owners.tolist())
    free[(64 << 20) // 4096] = False
    assert np.array_equal(owners == "<free>", free)
    listed = made.free_space
    if listed is None:
        return
    starts = [start for start, _, _ in made.chunks.chunks]
    # mkfs.btrfs leaves the free space of a first chunk that it took back.
    listed = [(start, length) for start, length in listed if start >= min(starts)]
    for start, length in listed:
        for place in made.chunks.places(start):
            mine = free[place // 4096 : (place + length) // 4096]
            # A mirror of the superblock counts as free there.
            assert mine.all() or ((~mine).sum() == 1 and place <= 64 << 20 < place + length)
    chunks = sum(length for _, length, _ in made.chunks.chunks)
    taken = sum(length for length, _ in made.allocated.values())
    assert sum(length for _, length in listed) == chunks - taken


def test_what_is_left_of_an_extent_has_an_owner(pair) -> None:
    volume, made = pair
    extent = next(row for row in made.truth.fiemap[b"/bookend"] if row[0] == 0)
    rest = made.chunks.places(extent[1])[0] + 65536  # overwritten since, and not shared
    assert made.allocated[extent[1]][0] > 65536
    assert volume.owner(rest) in ("/bookend", "/part")
    assert volume.in_use.to_bool()[rest // 4096]  # it has checksums, which a scrub verifies
    kinds = volume.extents
    kinds = kinds[(kinds["physical"] <= rest) & (kinds["physical"] + kinds["length"] > rest)]
    assert kinds["kind"].tolist() == ["reserved"]
    shared = made.chunks.places(made.truth.fiemap[b"/middle"][0][1])[0]
    pieces = volume.pieces
    pieces = pieces[(pieces["physical"] <= shared) & (pieces["kind"] == "data")]
    pieces = pieces[pieces["physical"] + pieces["length"] > shared]
    assert {"/whole", "/reflink", "/middle"} <= set(pieces["path"])


def test_without_names_the_rest_is_the_same(pair) -> None:
    volume, made = pair
    with open_image(made.path) as image:
        bare = map_volume(image, names=False)
    assert bare.names["path"].tolist() == []
    assert bare.in_use == volume.in_use
    assert bare.extents.equals(volume.extents)


def test_the_kinds_differ_as_they_should(pair) -> None:
    volume, made = pair
    text = ext.run("btrfs", "inspect-internal", "dump-super", str(made.path))
    assert re.search(rf"nodesize\s+{made.node}\n", text)
    kinds = set(volume.extents["kind"])
    assert {"data", "hole", "unwritten", "inline", "reserved"} <= kinds
    packed = volume.extents[volume.extents["encoded"]]
    assert {"data", "inline"} <= set(packed["kind"])
