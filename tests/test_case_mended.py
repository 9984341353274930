"""A case keeps a third image of a snapshot that was not at rest: mended, before the delete."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from cbtlab.case import MANIFEST, Case, verify
from cbtlab.cli import cli
from cbtlab.errors import InputError
from cbtlab.manifest import write_manifest

SIZE, GRANULARITY = 1 << 20, 4096


@pytest.fixture
def images(tmp_path: Path) -> dict[str, Path]:
    """Three raw images, each with one block more that differs from zero."""
    paths, content = {}, np.zeros(SIZE, np.uint8)
    for number, which in enumerate(("snapshot", "mended", "stored")):
        content[number * 100_000 : number * 100_000 + 512] = 1 + number
        paths[which] = tmp_path / which
        content.tofile(paths[which])
    return paths


@pytest.fixture
def case(tmp_path: Path, images: dict[str, Path]) -> Case:
    made = Case.create(tmp_path / "case", SIZE, GRANULARITY)
    made.add(**images)
    made.add(
        snapshot=images["snapshot"],
        stored=images["stored"],
        writes={"physical": no_writes(tmp_path)},
    )
    return Case.open(made.path)


def no_writes(folder: Path) -> Path:
    path = folder / "writes.csv"
    path.write_text("time,op,offset,length\n")
    return path


def test_each_image_is_what_it_was(case: Case, images: dict[str, Path]) -> None:
    first, second = case.intervals
    assert first.was_mended and not second.was_mended
    for which, path in images.items():
        with getattr(first, which)() as image:
            assert image.read(0, SIZE) == path.read_bytes()
    with second.mended() as image:
        assert image.read(0, SIZE) == images["snapshot"].read_bytes()
    assert list(first.images()) == ["snapshot", "mended", "stored"]
    assert list(second.images()) == ["snapshot", "stored"]


def test_it_is_stored_as_a_difference_and_the_next_one_lies_on_it(case: Case) -> None:
    folder = case.path / "images"
    assert b"0000-snapshot.qcow2" in (folder / "0000-mended.qcow2").read_bytes()[:4096]
    assert b"0000-mended.qcow2" in (folder / "0000-stored.qcow2").read_bytes()[:4096]
    assert b"0001-snapshot.qcow2" in (folder / "0001-stored.qcow2").read_bytes()[:4096]


def test_it_is_verified(case: Case) -> None:
    assert case.verify() == []
    assert case.document()["intervals"][0]["mended_image"]["file"] == "images/0000-mended.qcow2"
    assert case.document()["intervals"][1]["mended_image"] is None
    piece = case.path / "images" / "0000-mended.qcow2"
    data = bytearray(piece.read_bytes())
    data[-1] ^= 1
    piece.write_bytes(data)
    assert [fault.piece for fault in verify(case.path)] == ["images/0000-mended.qcow2"]
    piece.unlink()
    assert "is missing" in {fault.fault for fault in verify(case.path)}


def test_a_digest_of_other_content_is_found(case: Case) -> None:
    document = json.loads((case.path / MANIFEST).read_text())
    document.pop("sha256", None)
    entry = document["intervals"][0]["mended"]
    entry["content_sha256"] = document["intervals"][0]["snapshot"]["content_sha256"]
    write_manifest(case.path / MANIFEST, document)
    assert [fault.piece for fault in Case.open(case.path).content_faults()] == [entry["file"]]


def test_an_image_of_another_size_leaves_the_case_as_it_was(
    case: Case, images: dict[str, Path], tmp_path: Path
) -> None:
    images["mended"].write_bytes(bytes(4096))
    before = sorted(path.name for path in case.path.rglob("*"))
    with pytest.raises(InputError, match="has 4096 bytes"):
        case.add(**images, writes={"physical": no_writes(tmp_path)})
    assert sorted(path.name for path in case.path.rglob("*")) == before


def test_the_command_takes_it(tmp_path: Path, images: dict[str, Path]) -> None:
    folder = str(tmp_path / "made")
    run = CliRunner().invoke
    sizes = ["--volume-size", str(SIZE), "--granularity", str(GRANULARITY)]
    assert run(cli, ["case", "create", folder, *sizes]).exit_code == 0
    words = [part for which, path in images.items() for part in (f"--{which}", str(path))]
    done = run(cli, ["case", "add", folder, *words, "--json"])
    assert done.exit_code == 0, done.output
    assert Case.open(folder).intervals[0].was_mended
