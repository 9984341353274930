"""pytsk3's opinion of mapped files: the same places, and a planted difference is told."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import ext_images as ext
import pytest

from cbtlab.files import map_volume
from cbtlab.files.extents import DATA
from cbtlab.files.second_opinion import joined, second_opinion
from cbtlab.files.volume import Volume
from cbtlab.images import open_image

pytestmark = ext.needs_e2fsprogs


@pytest.fixture(scope="module", params=["-t ext4 -b 1024", "-t ext3 -b 1024", "-t ext4 -b 4096"])
def image(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("second")
    tree = folder / "tree"
    tree.mkdir()
    ext.fill(tree, attributes=False)
    return ext.make(folder / "a.img", 40 * ext.MIB, *request.param.split(), source=tree)


def test_both_agree_on_every_file(image: Path) -> None:
    with open_image(image) as opened:
        volume = map_volume(opened)
        found = second_opinion(volume, Volume(opened), volume.names["raw"].tolist())
    assert found.differences == [] and found.reason == ""
    assert found.compared == (volume.names["type"] == "file").sum() > 200
    assert str(found) == f"pytsk3 maps {found.compared} files to the same places"


def test_a_difference_is_told(image: Path) -> None:
    with open_image(image) as opened:
        volume = map_volume(opened)
        inode = int(volume.names.set_index("path").loc["/fragments", "inode"])
        wrong = volume.arrays.physical.copy()
        rows = (volume.arrays.inode == inode) & (volume.arrays.kind == DATA)
        wrong[rows.nonzero()[0][3]] += volume.block_size
        volume._extents = replace(volume.arrays, physical=wrong)
        found = second_opinion(volume, Volume(opened), [b"/fragments", b"/tiny"])
    assert len(found.differences) == 1 and found.compared == 2
    assert found.differences[0].startswith("/fragments: byte ")


def test_what_takes_too_long_is_given_up(image: Path) -> None:
    with open_image(image) as opened:
        volume = map_volume(opened)
        found = second_opinion(volume, Volume(opened), [b"/tiny"], seconds=0.0)
    assert found.compared == 0 and "0 s were over" in str(found)


def test_runs_that_continue_each_other_are_one() -> None:
    assert joined([(4, 14, 4), (0, 10, 4), (8, 30, 4)]) == [(0, 10, 8), (8, 30, 4)]
