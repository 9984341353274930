"""NTFS volumes that ntfs-3g wrote: names, content and places as itself and others say them."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import ntfs_images as ntfs
import numpy as np
import pytest

from cbtlab.files import VolumeMap, map_volume
from cbtlab.files.extents import DATA, HOLE, INLINE, META, UNWRITTEN
from cbtlab.images import open_image

pytestmark = [pytest.mark.root, ntfs.needs_ntfs3g]

GEOMETRIES = {  # MiB, options of mkntfs, files that share what is free
    "512": (24, "-c 512", True),
    "4096": (24, "-c 4096", False),
    "sectors of 4096": (24, "-s 4096 -c 4096", False),
    "64K": (64, "-c 65536", False),
    "2M": (200, "-c 2097152", False),
}


@pytest.fixture(scope="module", params=list(GEOMETRIES))
def image(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    size, options, fragmented = GEOMETRIES[request.param]
    path = tmp_path_factory.mktemp("ntfs") / "a.img"
    ntfs.make(path, size * ntfs.MIB, *options.split())
    with ntfs.mounted(path) as root:
        ntfs.fill(root)
        if fragmented:
            ntfs.fragment(root, 700)
            ntfs.thousands(root)
    preallocate(path)
    return path


def preallocate(path: Path) -> None:
    """Clusters that were never written: inside of a file, and behind its end."""
    length = str(max(100_000, 3 * map_volume(open_image(path)).block_size))
    ntfs.run("ntfsfallocate", "-f", "-l", length, path, "/empty")
    ntfs.run("ntfsfallocate", "-f", "-n", "-o", "17600", "-l", length, path, "/outside.txt")


@pytest.fixture(scope="module")
def volume(image: Path) -> VolumeMap:
    return map_volume(open_image(image))


def test_names_and_content_as_on_the_mount(image: Path, volume: VolumeMap) -> None:
    assert (volume.damaged, volume.hidden, volume.notes) == ({}, [], [])
    with ntfs.mounted(image, "ro") as root:
        top = os.fsencode(root)
        theirs = {b"/"}
        for folder, below, files in os.walk(top):
            theirs |= {(folder + b"/" + name)[len(top) :] for name in below + files}
        own = volume.names[volume.names["stream"] == 0]
        assert set(own["raw"]) == theirs and len(own) == len(theirs) > 250
        inodes = volume.inodes.to_dict("index")
        for row in own.itertuples():
            there, about = os.lstat(top + row.raw), inodes[row.inode]
            assert there.st_ino == row.inode
            assert (there.st_mtime_ns, there.st_atime_ns) == (about["mtime_ns"], about["atime_ns"])
            if row.type == "symlink":
                assert there.st_size == about["size"]
                target = Path(os.fsdecode(top + row.raw)).readlink()
                assert os.fsencode(target) == volume.read_file(row.inode).replace(b"\\", b"/")
            elif stat.S_ISREG(there.st_mode):
                assert row.type == "file" and there.st_size == about["size"], row.raw
                content = Path(os.fsdecode(top + row.raw)).read_bytes()
                assert volume.read_file(row.inode) == content, row.raw
        streams = volume.names[volume.names["stream"] != 0]
        assert len(streams) == 3
        for row in streams.itertuples():
            path, _, name = row.raw.rpartition(b":")
            value = os.getxattr(top + path, b"user." + name)
            assert value and volume.read_file(row.inode, row.stream) == value


def test_links_are_counted_without_short_names(image: Path, volume: VolumeMap) -> None:
    """Known disagreement: ntfs-3g counts the 8.3 name as one more link."""
    for path, theirs, ours in (("a long name.txt", 2, 1), ("outside.txt", 3, 3)):
        inode = ntfs.inode_of(volume, "/" + path)
        with ntfs.mounted(image, "ro") as root:
            assert (root / path).stat().st_nlink == theirs
        assert volume.inodes.loc[inode, "nlink"] == ours
        assert (volume.names["inode"] == inode).sum() == ours


def test_a_symlink_of_interix_is_a_file(volume: VolumeMap) -> None:
    """Known disagreement: ntfs-3g shows as a symlink what to Windows is a system file."""
    inode = ntfs.inode_of(volume, "/symlink")
    assert volume.read_file(inode) == b"IntxLNK\1" + "tiny".encode("utf-16-le")
    assert volume.inodes.loc[inode, "type"] == "file"


def test_runs_as_ntfsinfo_says(image: Path, volume: VolumeMap) -> None:
    inodes = set(volume.inodes.index[volume.inodes.index < 40])
    inodes |= {ntfs.inode_of(volume, path) for path in volume.names["path"] if path.count("/") < 2}
    inodes |= {ntfs.inode_of(volume, p) for p in volume.names["path"] if p.startswith("/packed/")}
    for inode in sorted(inodes - {volume.root}):
        compare_runs(image, volume, inode)


def compare_runs(image: Path, volume: VolumeMap, inode: int) -> None:
    """Every cluster of every attribute, content or not, once and in its place."""
    size, own = volume.block_size, volume.rows(inode)
    rest = set(range(len(own)))
    for attribute in ntfs.described(image, inode):
        if attribute.resident:
            continue
        content = attribute.kind in ("$DATA", "$INDEX_ALLOCATION", "$REPARSE_POINT")
        theirs = cells((vcn, lcn, n) for vcn, lcn, n in attribute.runs if lcn >= 0)
        code = names_of(volume).index(attribute.name) if attribute.kind == "$DATA" else 0
        rows = [n for n in rest if own.kind[n] in ((DATA, UNWRITTEN) if content else (META,))]
        rows = [n for n in rows if own.stream[n] == code]
        if content:
            found = ((own.logical[n], own.physical[n], own.length[n]) for n in rows)
            mine = cells((a // size, b // size, -(-c // size)) for a, b, c in found)
            assert mine == theirs, (inode, attribute.kind, attribute.name)
            rest -= set(rows)
        else:
            blocks = {lcn for _, lcn in theirs}
            held = {n for n in rows if own.physical[n] // size in blocks}
            places = ((0, own.physical[n] // size, own.length[n] // size) for n in held)
            assert {lcn for _, lcn in cells(places)} == blocks
            rest -= held
        if content and not attribute.flags & 0xFF:
            limit = -(-attribute.sizes["Initialized"] // size) * size
            late = [n for n in rows if own.kind[n] == UNWRITTEN]
            if inode >= 64:
                assert all(own.logical[n] >= limit for n in late)
                assert all(own.logical[n] < limit for n in set(rows) - set(late))
    assert all(own.kind[n] in (HOLE, INLINE) for n in rest), inode


def names_of(volume: VolumeMap) -> list[str]:
    return [name.decode() for name in volume.streams.names]


def cells(runs) -> set[tuple[int, int]]:  # type: ignore[no-untyped-def]
    return {(vcn + n, lcn + n) for vcn, lcn, count in runs for n in range(count)}


def test_what_is_in_use_is_the_bitmap_less_what_was_never_written(
    image: Path, volume: VolumeMap
) -> None:
    clusters = image.stat().st_size // volume.block_size
    used = ntfs.bitmap(image, clusters)
    unwritten = 0
    for path in ("/empty", "/outside.txt"):
        for attribute in ntfs.described(image, ntfs.inode_of(volume, path)):
            if attribute.kind == "$DATA" and not attribute.resident and not attribute.name:
                limit = -(-attribute.sizes["Initialized"] // volume.block_size)
                for vcn, lcn, count in attribute.runs:
                    late = [lcn + n for n in range(count) if vcn + n >= limit and lcn >= 0]
                    assert used[late].all()
                    used[late] = False
                    unwritten += len(late)
    assert unwritten > 0
    ours = volume.in_use.to_bool()
    assert (ours[:clusters] == used).all() and ours[clusters:].all()


def test_every_cluster_has_an_owner(image: Path, volume: VolumeMap) -> None:
    """And the owner is free only where the cluster is, but for what was never written."""
    clusters = image.stat().st_size // volume.block_size
    owner = volume.owners(np.arange(clusters) * volume.block_size)
    free = ~ntfs.bitmap(image, clusters)
    assert (owner[free] == "<free>").all() and not (owner[~free] == "<free>").any()
    assert "<allocated, no owner>" not in set(owner.tolist())
    for name in ("$MFT", "$MFTMirr", "$LogFile", "$Bitmap", "$Boot", "$Secure", "$UpCase"):
        assert f"<{name}>" in set(owner.tolist())
    last = image.stat().st_size - 512
    assert volume.owner(last) == "<backup boot sector>"


def test_inline_content_lies_where_its_bytes_are(image: Path, volume: VolumeMap) -> None:
    """Also across the end of a sector, whose last bytes the update sequence holds."""
    raw, split = image.read_bytes(), 0
    found = volume.arrays[(volume.arrays.kind == INLINE) & ~volume.arrays.encoded]
    for inode in np.unique(found.inode).tolist():
        for code in np.unique(found.stream[found.inode == inode]).tolist():
            rows = found[(found.inode == inode) & (found.stream == code)]
            split += len(rows) > 1
            places = zip(rows.physical.tolist(), rows.length.tolist(), strict=True)
            data = b"".join(raw[at : at + many] for at, many in places)
            assert data == volume.read_file(inode, code)
    assert len(found) > 150 and split >= (0 if volume.block_size > 65536 else 1)


def test_other_attributes(image: Path, volume: VolumeMap) -> None:
    about = volume.xattrs(ntfs.inode_of(volume, "/resident"))
    assert about["NAME"] == b"value 1" and about["$OBJECT_ID"] == bytes(range(16))
    link = volume.xattrs(ntfs.inode_of(volume, "/reparse"))
    with ntfs.mounted(image, "ro") as root:
        acl = os.getxattr(root / "tiny", "system.ntfs_acl")
        assert link["$REPARSE_POINT"] == os.getxattr(
            root / "reparse", "system.ntfs_reparse_data", follow_symlinks=False
        )
    assert volume.xattrs(ntfs.inode_of(volume, "/tiny"))["$SECURITY_DESCRIPTOR"] == acl


def test_a_file_in_thousands_of_fragments(image: Path, volume: VolumeMap) -> None:
    if "/thousands" not in set(volume.names["path"]):
        pytest.skip("only with clusters of 512 bytes")
    rows = volume.rows(ntfs.inode_of(volume, "/thousands"))
    assert (rows.kind == DATA).sum() == 2500 and (rows.kind == HOLE).sum() == 2499
    assert (volume.rows(ntfs.inode_of(volume, "/fragments")).kind == DATA).sum() > 20
    assert (volume.rows(0).kind == DATA).sum() > 10  # $MFT itself grew into the gaps
