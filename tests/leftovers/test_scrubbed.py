"""Overwriting leftovers: nothing of what was deleted is left, and the drivers read the same."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import volumes
from volumes import MIB, SECRET

from cbtlab.leftovers import Places, leftovers, scrub

EXT = {
    "ext2": ["mke2fs", "-q", "-F", "-t", "ext2", "-b", "1024"],
    "ext3": ["mke2fs", "-q", "-F", "-t", "ext3", "-b", "4096"],
    "ext4": ["mke2fs", "-q", "-F", "-t", "ext4", "-b", "1024", "-I", "256"],
    "ext4, 4 KiB, 64 bit": ["mke2fs", "-q", "-F", "-t", "ext4", "-b", "4096", "-O", "64bit"],
}


def fill(root: Path, many: int) -> None:
    """Kept and secret files, a folder large enough for a hash tree, symlinks and attributes."""
    (root / "docs").mkdir()
    (root / "docs/kept.txt").write_bytes(b"kept\n" * 700)
    (root / "docs/link").symlink_to("kept.txt")
    (root / "cache").mkdir()
    for n in range(40):
        (root / "cache" / f"secret-file-{n:03d}").write_bytes(SECRET * (n + 1))
    (root / "many").mkdir()
    for n in range(many):
        (root / "many" / f"a-name-of-some-length-{n:05d}").write_bytes(b"%d" % n)


def empty(root: Path, many: int) -> None:
    """Delete what is secret, and every other file of the large folder."""
    shutil.rmtree(root / "cache")
    for n in range(0, many, 2):
        (root / "many" / f"a-name-of-some-length-{n:05d}").unlink()


@pytest.mark.root
@pytest.mark.parametrize("kind", EXT)
def test_ext_by_the_kernel(tmp_path: Path, kind: str) -> None:
    """With the data in the journal, where there is one: all of the secret is there."""
    image = volumes.make(tmp_path / "v.img", 32 * MIB, *EXT[kind])
    options = "rw" if kind == "ext2" else "rw,data=journal"
    many = 900 if "1024" in EXT[kind] else 300  # more would wrap the journal round
    with volumes.by_kernel(image, options) as root:
        fill(root, many)
    with volumes.by_kernel(image, options) as root:
        empty(root, many)
        was = volumes.tree(root)
    made, patches = volumes.scrubbed(image)
    volumes.run("e2fsck", "-fn", made)
    old, new = image.read_bytes(), made.read_bytes()
    volume, source = volumes.mapped(image)
    at = [n for n in places_of(old, SECRET[:24]) if in_use(volume, n)]
    kinds = {kind for kind, _ in Places(volume, source).of(at)} if at else set()
    assert kind == "ext2" or "journal" in kinds
    assert not [n for n in places_of(new, SECRET[:24]) if in_use(volume, n)]
    assert not [n for n in places_of(new, b"secret-file-0") if in_use(volume, n)]
    assert patches.items and not scrub(*volumes.mapped(made)).items[:1]
    with volumes.by_kernel(made) as root:  # and it can be written to again
        assert volumes.tree(root) == was
        fill_again(root)
        now = volumes.tree(root)
    volumes.run("e2fsck", "-fn", made)
    assert {name: now[name] for name in was} == was


def fill_again(root: Path) -> None:
    for n in range(300):
        (root / "many" / f"new-{n:05d}").write_bytes(SECRET)


def places_of(data: bytes, piece: bytes) -> list[int]:
    found, at = [], data.find(piece)
    while at >= 0:
        found.append(at)
        at = data.find(piece, at + 1)
    return found


def in_use(volume, at: int) -> bool:  # type: ignore[no-untyped-def]
    return at // volume.in_use.granularity in volume.in_use


@pytest.mark.root
@volumes.needs("mkntfs", "ntfs-3g", "ntfsfix")
def test_ntfs_by_ntfs_3g(tmp_path: Path) -> None:
    """Small files lie in records, which keep them when they are free; names lie in indexes."""
    image = volumes.make(tmp_path / "v.img", 16 * MIB, "mkntfs", "-F", "-q", "-Q")
    with volumes.by_ntfs_3g(image) as root:
        fill(root, 200)
        (root / "small secret").write_bytes(SECRET)
    with volumes.by_ntfs_3g(image) as root:
        empty(root, 200)
        (root / "small secret").unlink()
        was = volumes.tree(root)
    made, patches = volumes.scrubbed(image)
    old, new = image.read_bytes(), made.read_bytes()
    volume, source = volumes.mapped(image)
    at = [n for n in places_of(old, SECRET) if in_use(volume, n)]
    found = Places(volume, source).of(at)
    assert at and {kind for kind, _ in found} == {"MFT record"}
    assert all(owner.startswith("<free MFT record ") for _, owner in found)
    assert not [n for n in places_of(new, SECRET) if in_use(volume, n)]
    for name in ("secret-file-001", "small secret", "a-name-of-some-length-00002"):
        units = name.encode("utf-16-le")
        assert places_of(old, units)
        assert not [n for n in places_of(new, units) if in_use(volume, n)]
    assert {patch.kind for patch in patches.items} >= {"MFT record", "directory slack"}
    for at in places_of(new, b"FILE"):  # a free record ends where its head does
        head = int.from_bytes(new[at + 20 : at + 22], "little")
        if new[at : at + 1024] != old[at : at + 1024] and not new[at + 22] & 1:
            assert new[at + head : at + head + 8] == b"\xff" * 4 + bytes(4)
            assert int.from_bytes(new[at + 24 : at + 28], "little") == head + 8
    volumes.run("ntfsfix", "-n", made)
    assert not scrub(*volumes.mapped(made)).items
    with volumes.by_ntfs_3g(made) as root:
        assert volumes.tree(root) == was
        fill_again(root)
        now = volumes.tree(root)
    assert {name: now[name] for name in was} == was
    assert volumes.mapped(made)[0].notes == volume.notes


@volumes.needs("mkfs.fat", "fsck.fat", "mcopy", "mdel")
@pytest.mark.parametrize("bits", [12, 16, 32])
def test_fat_by_mtools(tmp_path: Path, bits: int) -> None:
    """A deleted record keeps its name, and the last cluster of a file what was there before."""
    size = {12: 4, 16: 20, 32: 40}[bits] * MIB
    image = volumes.make(
        tmp_path / "v.img", size, "mkfs.fat", "-F", bits, "-s", 1 if bits == 32 else 4
    )
    source = tmp_path / "source"
    source.mkdir()
    for name in ("a long secret name.txt", "SECRET.TXT", "kept.txt"):
        (source / name).write_bytes(SECRET * 40 if "kept" not in name else b"kept\n" * 30)
    volumes.run("mcopy", "-i", image, *sorted(source.iterdir()), "::/")
    volumes.run("mdel", "-i", image, "::/a long secret name.txt", "::/SECRET.TXT")
    (source / "after.txt").write_bytes(b"after\n")
    volumes.run("mcopy", "-i", image, source / "after.txt", "::/")
    data = bytearray(image.read_bytes())
    volume, _ = volumes.mapped(image)
    rows = volume.rows(int(volume.names.set_index("path")["inode"]["/kept.txt"]))
    slack = int(rows.physical[0]) + 200  # of a file of 150 bytes
    data[slack : slack + len(SECRET)] = SECRET
    image.write_bytes(data)
    volume, opened = volumes.mapped(image)
    assert Places(volume, opened).of([slack]) == [("slack", "/kept.txt")]
    name = data.find("g secr".encode("utf-16-le"))
    assert Places(volume, opened).of([name]) == [("directory entry", "/")]
    made, patches = volumes.scrubbed(image)
    assert {"slack", "directory entry"} <= {patch.kind for patch in patches.items}
    new = made.read_bytes()
    assert not [n for n in places_of(new, SECRET) if in_use(volume, n)]
    for piece in (b"LONGS~1TXT", "g secr".encode("utf-16-le")):  # a record has 5, 6 and 2 units
        assert piece in data and piece not in new
    volumes.run("fsck.fat", "-n", made)
    assert volumes.run("mdir", "-i", made, "-b", "::/") == volumes.run(
        "mdir", "-i", image, "-b", "::/"
    )
    for name in ("kept.txt", "after.txt"):
        volumes.run("mcopy", "-n", "-i", made, f"::/{name}", tmp_path / name)
        assert (tmp_path / name).read_bytes() == (source / name).read_bytes()


@pytest.mark.root
@volumes.needs("mkfs.xfs", "xfs_repair")
def test_xfs_by_the_kernel(tmp_path: Path) -> None:
    """Of XFS only what lies behind the end of files is overwritten."""
    image = volumes.make(tmp_path / "v.img", 320 * MIB, "mkfs.xfs", "-q", "-m", "crc=1")
    with volumes.by_kernel(image, "rw,nouuid") as root:
        fill(root, 50)
    with volumes.by_kernel(image, "rw,nouuid") as root:
        empty(root, 50)
        was = volumes.tree(root)
    volume, _ = volumes.mapped(image)
    rows = volume.rows(int(volume.names.set_index("path")["inode"]["/docs/kept.txt"]))
    slack = int(rows.physical[-1] + rows.length[-1]) - len(SECRET)
    with image.open("r+b") as file:
        file.seek(slack)
        file.write(SECRET)
    volume, opened = volumes.mapped(image)
    assert Places(volume, opened).of([slack]) == [("slack", "/docs/kept.txt")]
    made, patches = volumes.scrubbed(image)
    assert {patch.kind for patch in patches.items} == {"slack"}
    assert made.read_bytes()[slack : slack + len(SECRET)] == bytes(len(SECRET))
    volumes.run("xfs_repair", "-n", made)
    with volumes.by_kernel(made, "rw,nouuid") as root:
        assert volumes.tree(root) == was


@pytest.mark.root
@volumes.needs("mkfs.btrfs", "btrfs")
def test_of_btrfs_nothing_is_overwritten(tmp_path: Path) -> None:
    """Every block has a checksum, the rest of a file's last block too."""
    image = volumes.make(tmp_path / "v.img", 160 * MIB, "mkfs.btrfs", "-q", "-f")
    with volumes.by_kernel(image) as root:
        fill(root, 20)
    volume, opened = volumes.mapped(image)
    assert not leftovers(volume, opened).removable.any()
    assert not scrub(volume, opened).items


def test_patches_of_two_backups_that_differ_are_found() -> None:
    """Parts of fills that both have cancel each other out; bytes that differ do not."""
    from cbtlab.leftovers.scrub import Patch, Patches

    def fill_at(offset: int, length: int, value: int = 0) -> Patch:
        return Patch(offset, length, "slack", "/a", value)

    one = Patches((fill_at(0, 4096), fill_at(8192, 100), Patch(9000, 2, "x", "y", data=b"ab")))
    two = Patches((fill_at(0, 512), fill_at(512, 3584), fill_at(8192, 100, 255),
                   Patch(9000, 2, "x", "y", data=b"ab")))  # fmt: skip
    assert one.changed(two, 16384, 512).indices().tolist() == [16]
    rng = np.random.default_rng(1)
    for _ in range(200):
        masks = rng.random((2, 64)) < 0.4
        lists = [Patches(tuple(fill_at(int(n) * 512, 512) for n in np.flatnonzero(mask)))
                 for mask in masks]  # fmt: skip
        found = lists[0].changed(lists[1], 64 * 512, 512).to_bool()
        assert found.tolist() == (masks[0] ^ masks[1]).tolist()
