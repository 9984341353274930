"""The document of ``cbtlab files``."""

from __future__ import annotations

import json
import os
from pathlib import Path

import ext_images as ext

from cbtlab.files.listing import listing
from cbtlab.images import open_image

pytestmark = ext.needs_e2fsprogs


def made(tmp_path: Path) -> Path:
    tree = tmp_path / "tree"
    (tree / "d").mkdir(parents=True)
    (tree / "d" / "file").write_bytes(b"x" * 5000)
    os.link(tree / "d" / "file", tree / "other")
    (tree / "short").symlink_to("target")
    (tree / "long").symlink_to("target/" * 30)
    os.mkfifo(tree / "fifo")
    with (tree / "sparse").open("wb") as file:
        file.seek(40960)
        file.write(b"y" * 10)
        file.truncate(50001)
    return ext.make(tmp_path / "a.img", 8 * ext.MIB, "-t", "ext4", "-b", "4096", source=tree)


def test_the_document(tmp_path: Path) -> None:
    path = made(tmp_path)
    whole = tmp_path / "b.img"
    whole.write_bytes(bytes(1 << 20) + path.read_bytes())
    with open_image(whole) as image:
        document = listing(image, 1 << 20)
    document = json.loads(json.dumps(document))
    files = {entry["path"]: entry for entry in document["files"]}
    assert sorted(files) == ["/d/file", "/long", "/other", "/short", "/sparse"]
    assert files["/d/file"]["inode"] == files["/other"]["inode"]
    assert files["/d/file"]["size"] == 5000
    (extent,) = files["/d/file"]["extents"]
    assert (extent["kind"], extent["logical"], extent["length"]) == ("data", 0, 8192)
    data = whole.read_bytes()
    assert data[extent["physical"] : extent["physical"] + 5000] == b"x" * 5000
    sparse = [(e["kind"], e["logical"], e["length"]) for e in files["/sparse"]["extents"]]
    assert sparse == [("hole", 0, 40960), ("data", 40960, 4096), ("hole", 45056, 4945)]
    assert files["/sparse"]["extents"][0]["physical"] is None
    (inline,) = files["/short"]["extents"]
    assert (inline["kind"], inline["length"]) == ("inline", 6)
    assert data[inline["physical"] : inline["physical"] + 6] == b"target"
    assert files["/long"]["extents"][0]["kind"] == "data"


def test_patterns_select(tmp_path: Path) -> None:
    with open_image(made(tmp_path)) as image:
        chosen = listing(image, patterns=["/d", "*s*", "!short"])
    assert [entry["path"] for entry in chosen["files"]] == ["/d/file", "/sparse"]
