"""Two sources, one answer: pytsk3's files against the own reader's."""

from __future__ import annotations

import time
from pathlib import Path

import ext_images as ext
import numpy as np
import pytest
import pytsk3

from cbtlab.errors import InputError
from cbtlab.files import map_volume, tsk
from cbtlab.files.volume import Volume
from cbtlab.images import open_image

pytestmark = ext.needs_e2fsprogs


LAYOUTS = [
    "-t ext4 -b 1024",
    "-t ext4 -b 1024 -O inline_data",
    "-t ext3 -b 1024",
    "-t ext2 -b 4096",
]


@pytest.fixture(scope="module", params=LAYOUTS)
def image(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tsk")
    tree = folder / "tree"
    tree.mkdir()
    ext.fill(tree, attributes=False)
    return ext.make(folder / "a.img", 40 * ext.MIB, *request.param.split(), source=tree)


def test_both_see_the_same_runs_sizes_and_content(image: Path) -> None:
    with open_image(image) as opened:
        volume = map_volume(opened)
        other = tsk.open_file_system(Volume(opened))
        size = volume.block_size
        names = volume.names[volume.names["type"].isin(["file", "symlink", "directory"])]
        assert len(names) > 200
        for inode in names["inode"].unique():
            file = other.open_meta(inode=int(inode))
            mine = volume.extents[volume.extents["inode"] == inode]
            assert file.info.meta.size == volume.inodes.loc[inode, "size"]
            if (mine["kind"] == "inline").any():
                continue
            runs = set()
            for attribute in file:
                if attribute.info.type != pytsk3.TSK_FS_ATTR_TYPE_DEFAULT:
                    continue
                for run in attribute:
                    if int(run.flags) & 3 == 0:
                        blocks = range(run.len)
                        runs |= {(run.offset + n, run.addr + n) for n in blocks}
            data = mine[mine["kind"] == "data"]
            own = {
                (row.logical // size + n, row.physical // size + n)
                for row in data.itertuples()
                for n in range(row.length // size)
            }
            assert own == runs
            count = int(file.info.meta.size)
            if count:
                assert volume.read_file(int(inode)) == file.read_random(0, count)


def test_both_see_the_same_names(image: Path) -> None:
    with open_image(image) as opened:
        volume = map_volume(opened)
        found = tsk.walk(Volume(opened), len(volume.inodes))
    own = sorted(zip(volume.names["raw"], volume.names["inode"].tolist(), strict=True))[1:]
    assert sorted(zip(found.paths, found.inodes.tolist(), strict=True)) == own
    assert len(own) > 200
    assert volume.hidden == found.faults == []


def test_deleted_names_are_not_listed(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    for name in ("kept", "gone", "last"):
        (tree / name).write_bytes(b"x" * 5000)
    path = ext.make(tmp_path / "a.img", 8 * ext.MIB, "-t", "ext4", source=tree)
    ext.debugfs(path, "rm gone")
    with open_image(path) as opened:
        volume = map_volume(opened)
    assert volume.names["path"].tolist() == ["/", "/kept", "/last", "/lost+found"]


def test_hard_links_come_once_a_name(tmp_path: Path) -> None:
    path = ext.make(tmp_path / "a.img", 8 * ext.MIB, "-t", "ext4")
    ext.debugfs(path, "mkdir d", "write /etc/hostname one", "ln one d/two", "sif one links_count 2")
    with open_image(path) as opened:
        names = map_volume(opened).names.set_index("path")
    assert names.loc["/one", "inode"] == names.loc["/d/two", "inode"]


@pytest.mark.parametrize("kind", ["ext2", "ext4"])
@pytest.mark.parametrize("name", ["file", "folder"])
def test_a_corrupt_size_does_not_hold_the_walk_up(tmp_path: Path, kind: str, name: str) -> None:
    tree = tmp_path / "tree"
    (tree / "folder").mkdir(parents=True)
    (tree / "folder" / "below").touch()
    (tree / "file").write_bytes(b"x" * 100_000)
    path = ext.make(tmp_path / "a.img", 8 * ext.MIB, "-t", kind, source=tree)
    ext.debugfs(path, f"sif {name} size 0x7fffffff7ffff400")
    start = time.monotonic()
    with open_image(path) as opened:
        volume = map_volume(opened)
    assert time.monotonic() - start < 5
    assert "/folder/below" in set(volume.names["path"])


def test_a_walk_that_takes_too_long_is_an_error(image: Path) -> None:
    with open_image(image) as opened, pytest.raises(InputError, match="more than 0 s"):
        tsk.walk(Volume(opened), 0, seconds=0.0)


def test_without_names_everything_else_is_there(image: Path) -> None:
    with open_image(image) as opened:
        full, bare = map_volume(opened), map_volume(opened, names=False)
    assert len(bare.names) == 0
    assert bare.in_use == full.in_use
    assert np.array_equal(bare.arrays.physical, full.arrays.physical)
    place = int(bare.arrays.physical[bare.arrays.kind == 0][0])
    assert bare.owner(place).startswith("<")
