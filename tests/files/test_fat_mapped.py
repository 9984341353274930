"""FAT12, FAT16 and FAT32 file by file: extents, names, sizes, content and what is in use.

Truth: mshowfat (clusters), mcopy (names and content), fsck.fat (clusters in use), pytsk3.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from pathlib import Path

import fat_images as fat
import numpy as np
import pytest

from cbtlab.exclude import excluded
from cbtlab.files import VolumeMap, map_volume
from cbtlab.files.fat.boot import Boot
from cbtlab.files.volume import Volume
from cbtlab.images import open_image

pytestmark = fat.needs_mtools

GEOMETRIES = {  # name: MiB, options of mkfs.fat, bits, cluster size
    "fat12": (2, "-F 12 -s 1", 12, 512),
    "fat12-floppy": (2, "-F 12 -s 4 -f 1 -r 240 -a", 12, 2048),
    "fat16": (24, "-F 16 -s 2 -a", 16, 1024),
    "fat16-64k": (290, "-F 16 -s 128", 16, 65536),
    "fat16-2048": (64, "-F 16 -S 2048 -s 2 -R 3 -a", 16, 4096),
    "fat32": (40, "-F 32 -s 1", 32, 512),
    "fat32-unaligned": (40, "-F 32 -s 1 -a -R 33", 32, 512),
    "fat32-4096": (280, "-F 32 -S 4096 -s 1", 32, 4096),
    "fat32-32k": (2200, "-F 32 -s 64 -a -R 35", 32, 32768),
}


@dataclass
class Made:
    path: Path
    source: Path
    bits: int
    cluster: int
    boot: Boot


@pytest.fixture(scope="module", params=list(GEOMETRIES))
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    size, options, bits, cluster = GEOMETRIES[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    path = fat.make(folder / "a.img", size * fat.MIB, "-n", "LABEL", *options.split())
    source = folder / "tree"
    source.mkdir()
    fat.tree(source, cluster)
    fat.fill(path, source, cluster)
    with open_image(path) as image:
        return Made(path, source, bits, cluster, Boot(Volume(image)))


def mapped(made: Made) -> VolumeMap:
    with open_image(made.path) as image:
        return map_volume(image)


def test_geometry_and_notes(made: Made) -> None:
    volume = mapped(made)
    assert volume.fs == f"fat{made.bits}" and volume.block_size == made.cluster
    text = fat.run("fsck.fat", "-n", "-v", made.path)
    assert made.boot.heap == int(re.search(r"Data area starts at byte (\d+)", text)[1])
    assert volume.uuid.replace("-", "") in fat.run("minfo", "-i", made.path, "::").upper()
    few = "FAT32 with fewer clusters than FAT32 must have"
    assert [note for note in volume.notes if note != few] == []
    assert volume.damaged == {}


def test_names_sizes_and_content_are_those_of_mtools(made: Made, tmp_path: Path) -> None:
    fat.run("mcopy", "-i", made.path, "-s", "-Q", "-n", "::/*", tmp_path)
    with open_image(made.path) as image:
        volume = map_volume(image)
        names = volume.names.set_index("path")
        theirs = {"/" + str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*")}
        assert set(names.index) == theirs | {"/"}
        assert len(theirs) > 90
        for path in theirs:
            row, there = names.loc[path], tmp_path / path[1:]
            assert (row["type"] == "directory") == there.is_dir()
            if there.is_file():
                assert volume.read_file(row["inode"]) == there.read_bytes()
    assert fat.LONG in {Path(path).name for path in theirs}


def test_clusters_are_those_of_mshowfat(made: Made) -> None:
    volume = mapped(made)
    names = volume.names[volume.names["inode"] != 1].set_index("path")["inode"]
    chosen = [path for path in names.index if "number" not in path or path.endswith("1")]
    theirs = fat.shown(made.path, chosen)
    for path in chosen:
        assert fat.clusters_of(volume, names[path], made.boot.heap) == theirs[path], path
    runs = volume.rows(int(names["/fragments"]))
    assert len(runs) > 5, "nothing was in fragments"


def test_in_use_is_what_fsck_counts(made: Made) -> None:
    volume = mapped(made)
    text = fat.run("fsck.fat", "-n", "-v", made.path)
    used, total = map(int, re.search(r"files, (\d+)/(\d+) clusters", text).groups())
    assert total == made.boot.clusters
    around = volume.size - total * made.cluster
    assert fat.used_bytes(volume) == around + used * made.cluster
    fat.check_owners(volume)
    heap = made.boot.heap
    granularity = volume.in_use.granularity
    assert heap % granularity == 0 and made.cluster % granularity == 0
    assert granularity == made.cluster or heap % (2 * granularity)


def test_pytsk3_sees_the_same(made: Made) -> None:
    with open_image(made.path) as image:
        volume = map_volume(image)
        theirs = fat.by_tsk(image, made.boot.sector)
        names = volume.names[volume.names["inode"] != 1]
        for raw, inode in zip(names["raw"], names["inode"], strict=True):
            size, sectors, content = theirs.pop(raw)
            rows = volume.rows(inode)
            first, many = rows.physical // made.boot.sector, rows.length // made.boot.sector
            mine = [s for a, n in zip(first, many, strict=True) for s in range(a, a + n)]
            assert sectors == mine[: len(sectors)] and len(mine) - len(sectors) < max(
                1, made.cluster // made.boot.sector
            )
            assert size == volume.inodes.loc[inode, "size"]
            if content:
                assert content == volume.read_file(inode)
    # The volume's label is a file for pytsk3, and none here.
    assert [raw for raw in theirs if b"LABEL" not in raw] == []


def test_what_is_excluded_is_the_clusters_of_the_files(made: Made, tmp_path: Path) -> None:
    if made.path.stat().st_size > 64 * fat.MIB:
        pytest.skip("a small one is enough")
    after = tmp_path / "after.img"
    after.write_bytes(made.path.read_bytes())
    gone = ["/fragments", "/folder/lower.txt", *(f"/many/file number {n:03d}" for n in (1, 5, 149))]
    fat.run("mdel", "-i", after, *("::" + name for name in gone))
    with open_image(after) as image:
        found = excluded(mapped(made), map_volume(image), gone)
    theirs = [c for clusters in fat.shown(made.path, gone).values() for c in clusters]
    grain = found.mask.granularity
    places = {made.boot.heap + (c - 2) * made.cluster for c in theirs}
    mine = set((found.mask.indices().astype(np.int64) * grain).tolist())
    assert mine == {p + n for p in places for n in range(0, made.cluster, grain)}
    assert len(found.files) == 5 and found.files["gone"].all() and not len(found.subtracted)


def test_times_are_those_of_the_files(made: Made) -> None:
    volume = mapped(made)
    inode = volume.names.set_index("path")["inode"]
    for path in ("/SIZE3.BIN", "/folder/lower.txt", "/a long folder name/漢字かな"):
        there = (made.source / path[1:]).stat().st_mtime_ns // 10**9
        assert volume.inodes.loc[inode[path], "mtime_ns"] // 10**9 == there & ~1


def test_an_offset_moves_everything_and_no_inode(made: Made) -> None:
    if made.path.stat().st_size > 64 * fat.MIB:
        pytest.skip("a small one is enough")
    data = made.path.read_bytes()
    alone = map_volume(fat.Memory(data))
    inside = map_volume(fat.Memory(bytes(3584) + data + bytes(512)), 3584)
    assert inside.names.equals(alone.names) and inside.inodes.equals(alone.inodes)
    assert (inside.arrays.physical == alone.arrays.physical + 3584).all()
    assert inside.in_use.granularity == 512
    place = np.arange(0, len(data), 512)
    assert (inside.owners(place + 3584) == alone.owners(place)).all()
    assert (inside._marked(place + 3584) == alone._marked(place)).all()
    assert inside.in_use.bits[:7].all() and inside.in_use.bits[-1]


def test_ten_thousand_files(tmp_path: Path) -> None:
    for number in range(100):
        (tmp_path / f"a file {number}.text").write_bytes(b"x" * number)
    path = fat.make(tmp_path / "a.img", 64 * fat.MIB, "-F", "16", "-s", "8")
    folders = [f"::/folder {number}" for number in range(100)]
    fat.run("mmd", "-i", path, *folders)
    for folder in folders:
        fat.run("mcopy", "-i", path, "-Q", *sorted(tmp_path.glob("*.text")), folder)
    start = time.monotonic()
    with open_image(path) as image:
        volume = map_volume(image)
        seconds = time.monotonic() - start
        assert len(volume.names) == 10_101 and volume.notes == []
        inode = volume.names.set_index("path")["inode"]
        assert volume.read_file(inode["/folder 7/a file 99.text"]) == b"x" * 99
    print(f"10,000 files in {seconds:.2f} s")
    assert seconds < 3
