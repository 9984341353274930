"""What goes is a pair of inode and stream; what stays on shared blocks is told with its owner.

The volumes are constructed where no small file system can be made to order.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from cbtlab.bitmap import Bitmap
from cbtlab.errors import InputError
from cbtlab.exclude import excluded, foreseen, match
from cbtlab.files import VolumeMap, map_volume
from cbtlab.files.extents import DATA, INLINE, META, NOWHERE, PLACED, UNWRITTEN, Extents
from cbtlab.files.volume import Volume
from cbtlab.files.volume_map import TYPES, Regions, Streams
from cbtlab.images import open_image

sys.path.insert(0, str(Path(__file__).parent / "files"))
import ext_images as ext

BLOCK, BLOCKS = 4096, 64
FILE, FOLDER = TYPES.index("file"), TYPES.index("directory")
Row = tuple[int, int, int, int, int]  # inode, stream, kind, first block, blocks


class Zeros:
    """An image of nothing but zeros."""

    name, size = "constructed", BLOCK * BLOCKS

    def read(self, offset: int, length: int) -> bytes:
        return bytes(length)


def constructed(
    names: dict[str, int],
    extents: Sequence[Row],
    streams: Sequence[tuple[int, int]] = (),
    folders: Sequence[int] = (),
    sids: dict[int, str] | None = None,
    fs: str = "ntfs",
) -> VolumeMap:
    """A volume with these names of inodes and these extents; all streams are 100 bytes."""
    numbers = sorted({2, *names.values(), *(row[0] for row in extents)})
    kind = [FOLDER if n == 2 or n in folders else FILE for n in numbers]
    inodes = pd.DataFrame(
        {"type": pd.Categorical.from_codes(kind, TYPES), "size": 5000, "mtime_ns": 0, "uid": 0},
        index=pd.Index(numbers, dtype=np.uint64),
    )
    if sids:
        inodes["sid"] = [sids.get(n, "S-1-5-18") for n in numbers]
    table = np.array(extents, np.int64).reshape(-1, 5)
    placed = np.isin(table[:, 2], PLACED)
    mapped = Extents.of(
        table[:, 0], table[:, 2], np.where(table[:, 2] == META, NOWHERE, 0),
        table[:, 3] * BLOCK, np.where(placed, table[:, 4] * BLOCK, 100), table[:, 1],
    )  # fmt: skip
    mapped = mapped[np.lexsort((mapped.stream, mapped.inode))]
    used = mapped[np.isin(mapped.kind, (DATA, META))]
    size = Zeros.size
    in_use = Bitmap.from_ranges(used.physical, used.length, volume_size=size, granularity=BLOCK)
    nothing = np.empty(0, np.int64)
    pairs = np.array(sorted(streams), np.int64).reshape(-1, 2)
    hundred = np.full(len(pairs), 100)
    volume = VolumeMap(
        volume=Volume(Zeros()), fs=fs, uuid="one", block_size=BLOCK, size=size, in_use=in_use,
        inodes=inodes, extents=mapped, regions=Regions(nothing, nothing, np.empty(0, object)),
        special={}, root=2, xattrs=lambda inode: {}, holders=lambda inode: [], notes=[], damaged={},
        streams=Streams((b"", b"Zone.Identifier", b"other"), pairs[:, 0], pairs[:, 1], hundred,
                        hundred),
    )  # fmt: skip
    volume.set_names([name.encode() for name in names], np.array(list(names.values()), np.int64))
    return volume


NAMES = {"/a.exe": 10, "/b.exe": 11, "/d": 12, "/d/c": 13}
ROWS: list[Row] = [
    (10, 0, DATA, 1, 2),
    (10, 1, DATA, 5, 1),
    (10, 2, DATA, 6, 1),
    (10, 0, META, 7, 1),
    (11, 0, DATA, 10, 2),
    (11, 1, INLINE, 20, 1),
    (12, 1, DATA, 30, 1),
    (13, 0, UNWRITTEN, 40, 3),
]
STREAMS = [(10, 1), (10, 2), (11, 1), (12, 1)]


def volumes(*gone: tuple[int, int]) -> tuple[VolumeMap, VolumeMap]:
    """The volume before and after pairs of inode and stream went; stream 0 takes all along."""
    rows = [row for row in ROWS if (row[0], 0) not in gone and (row[0], row[1]) not in gone]
    names = {name: inode for name, inode in NAMES.items() if (inode, 0) not in gone}
    left = [pair for pair in STREAMS if pair not in gone and (pair[0], 0) not in gone]
    before = constructed(NAMES, ROWS, STREAMS, [12])
    return before, constructed(names, rows, left, [12])


@pytest.mark.parametrize(
    ("rules", "paths"),
    [
        (["*:Zone.Identifier"], ["/a.exe:Zone.Identifier", "/b.exe:Zone.Identifier",
                                 "/d:Zone.Identifier"]),
        (["a.exe"], ["/a.exe", "/a.exe:Zone.Identifier", "/a.exe:other"]),
        (["*.exe", "!*:Zone.Identifier"], ["/a.exe", "/a.exe:Zone.Identifier", "/a.exe:other",
                                           "/b.exe", "/b.exe:Zone.Identifier"]),
        (["*.Identifier"], []),
        (["/a.exe:*", "!/a.exe:other"], ["/a.exe:Zone.Identifier"]),
        (["/d/"], ["/d/c", "/d:Zone.Identifier"]),
        (["/d:*"], ["/d:Zone.Identifier"]),
        (["*:* [size>100]"], []),
        (["*:O* [size=100] [case=ignore]"], ["/a.exe:other"]),
        (["*.exe [size<1K]"], []),
    ],
)  # fmt: skip
def test_a_file_takes_its_streams_along_and_a_colon_names_a_stream(
    rules: list[str], paths: list[str]
) -> None:
    before, _ = volumes()
    named = match(rules, before) & (before.names["type"] != "directory").to_numpy()
    assert sorted(before.names.loc[named, "path"]) == paths


def test_a_stream_that_goes_claims_its_own_blocks_alone() -> None:
    before, after = volumes((10, 1), (11, 1), (12, 1))
    found = excluded(before, after, ["*:Zone.Identifier"])
    assert found.mask.indices().tolist() == [5, 30]
    assert found.files.empty
    assert found.streams["path"].tolist() == [
        "/a.exe:Zone.Identifier", "/b.exe:Zone.Identifier", "/d:Zone.Identifier",
    ]  # fmt: skip
    assert found.streams["blocks"].tolist() == [1, 0, 1]
    assert found.streams["size"].tolist() == [100, 100, 100] and found.streams["gone"].all()
    assert found.pairs[["inode", "stream"]].to_numpy().tolist() == [[10, 1], [11, 1], [12, 1]]
    kinds = dict(zip(found.extents["path"], found.extents["kind"], strict=True))
    assert kinds["/b.exe:Zone.Identifier"] == "inline", "resident content goes too"
    assert found.remaining == []


def test_a_file_that_goes_claims_all_its_streams() -> None:
    before, after = volumes((10, 0), (13, 0))
    found = excluded(before, after, ["a.exe", "/d/c"])
    assert found.mask.indices().tolist() == [1, 2, 5, 6, 7, 40, 41, 42]
    assert found.files["path"].tolist() == ["/a.exe", "/d/c"]
    assert found.files["blocks"].tolist() == [5, 3]
    assert sorted(found.pairs["stream"].tolist()) == [0, 0, 1, 2]


def test_a_stream_that_remains_is_told() -> None:
    before, after = volumes((10, 1))
    found = excluded(before, after, ["*:Zone.Identifier"])
    assert found.remaining == ["/b.exe:Zone.Identifier", "/d:Zone.Identifier"]
    assert found.subtracted["owner"].tolist() == ["/d"]
    assert found.mask.indices().tolist() == [5]


def test_a_stream_with_another_name_stays() -> None:
    names = {**NAMES, "/z.exe": 10}
    before, after = constructed(names, ROWS, STREAMS, [12]), constructed(names, ROWS, STREAMS, [12])
    found = excluded(before, after, ["a.exe:other"])
    assert found.streams["linked"].tolist() == ["/z.exe:other"]
    assert not found.mask.any() and found.pairs.empty


def test_an_owner_is_a_sid_where_the_volume_has_them() -> None:
    before = constructed(NAMES, ROWS, STREAMS, [12], {11: "S-1-5-21-7-7-7-1001"})
    named = match(["* [owner=S-1-5-21-7-7-7-1001]"], before)
    assert before.names.loc[named, "path"].tolist() == ["/b.exe", "/b.exe:Zone.Identifier"]
    with pytest.raises(InputError, match="no owners by number"):
        match(["* [owner=0]"], before)
    with pytest.raises(InputError, match="no SIDs"):
        match(["* [owner=S-1-5-18]"], volumes()[0])


# Shared blocks --------------------------------------------------------------------------------


def test_blocks_that_another_file_has_too_stay_with_its_name() -> None:
    names = {"/page": 10, "/copy": 11, "/old": 12}
    rows: list[Row] = [
        (10, 0, DATA, 1, 8),
        (11, 0, DATA, 3, 2),
        (12, 0, DATA, 20, 1),
        (14, 0, DATA, 7, 1),
        (15, 0, DATA, 50, 3),
    ]
    volume = constructed(names, rows, fs="xfs")
    found = foreseen(volume, ["page"])
    assert found.mask.indices().tolist() == [1, 2, 5, 6, 8]
    assert found.staying.to_dict("records") == [
        {"path": "/page", "owner": "/copy", "why": "shared blocks", "bytes": 2 * BLOCK},
        {"path": "/page", "owner": "<inode 14, without a name>", "why": "shared blocks",
         "bytes": BLOCK},
    ]  # fmt: skip
    assert found.unnamed.to_dict("records") == [
        {"inode": 14, "size": 5000, "bytes": BLOCK},
        {"inode": 15, "size": 5000, "bytes": 3 * BLOCK},
    ]
    after = constructed({"/copy": 11, "/old": 12}, rows[1:], fs="xfs")
    real = excluded(volume, after, ["page"])
    assert not (real.mask ^ found.mask).any()
    assert real.subtracted["owner"].tolist() == ["/copy", "<inode 14, without a name>"]
    both = foreseen(volume, ["page", "copy"])
    assert both.mask.indices().tolist() == [1, 2, 3, 4, 5, 6, 8]
    assert {n: bits.count() for n, bits in both.rules.items()} == {0: 7, 1: 2}


@ext.needs_e2fsprogs
def test_what_is_foreseen_is_what_a_delete_frees(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "cache").mkdir(parents=True)
    (tree / "cache" / "one").write_bytes(b"1" * 100_000)
    (tree / "cache" / "link").write_bytes(b"3" * 9000)
    (tree / "kept").hardlink_to(tree / "cache" / "link")
    (tree / "open").write_bytes(b"o" * 30_000)
    path = ext.make(tmp_path / "a.img", 16 * ext.MIB, "-t", "ext4", "-b", "1024", source=tree)
    ext.debugfs(path, "unlink open")  # the inode stays, as of a file that is open
    after = tmp_path / "after.img"
    after.write_bytes(path.read_bytes())
    ext.debugfs(after, "rm cache/one", "rm cache/link")
    with open_image(path) as image, open_image(after) as other:
        before = map_volume(image)
        found, real = foreseen(before, ["cache/"]), excluded(before, map_volume(other), ["cache/"])
    assert not (found.mask ^ real.mask).any() and found.mask.count() == 98
    assert found.staying.to_dict("records") == [
        {"path": "/cache/link", "owner": "/kept", "why": "hard link", "bytes": 9 * 1024}
    ]
    assert found.unnamed["bytes"].tolist() == [30 * 1024]
