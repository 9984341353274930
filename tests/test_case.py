"""A case keeps what it was given, says what it has, and tells damage by the piece's name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from cbtlab.bitmap import Bitmap
from cbtlab.case import MANIFEST, Case, verify
from cbtlab.errors import InputError
from cbtlab.folders import exchange, locked
from cbtlab.manifest import digest_of, write_manifest
from cbtlab.replay import Replay

SIZE, GRANULARITY = 1 << 20, 4096


@pytest.fixture
def images(tmp_path: Path) -> dict[str, Path]:
    """Four raw images: two snapshots, and each after a delete."""
    rng = np.random.default_rng(5)
    first = np.zeros(SIZE, np.uint8)
    first[: SIZE // 4] = rng.integers(0, 256, SIZE // 4)
    second = first.copy()
    second[600_000:610_000] = 9
    paths = {}
    for name, content in (("s0", first), ("s1", second)):
        paths[name] = tmp_path / name
        content.tofile(paths[name])
        content = content.copy()
        content[5000:6000] = 0
        paths[name + "x"] = tmp_path / (name + "x")
        content.tofile(paths[name + "x"])
    return paths


@pytest.fixture
def case(tmp_path: Path, images: dict[str, Path]) -> Case:
    made = Case.create(tmp_path / "case", SIZE, GRANULARITY)
    made.add(snapshot=images["s0"], stored=images["s0x"], patterns=["cache/"])
    writes = tmp_path / "w.csv"
    writes.write_text("time,op,offset,length\n5,write,600000,10000\n")
    bitmap = Bitmap.from_ranges(
        np.array([600_000]), np.array([10_000]), volume_size=SIZE, granularity=GRANULARITY
    )
    made.add(
        snapshot=images["s1"],
        stored=images["s1x"],
        writes={"physical": writes},
        bitmaps={"physical": bitmap},
        kept=False,
    )
    return Case.open(made.path)


def test_the_images_are_what_they_were(case: Case, images: dict[str, Path]) -> None:
    for interval, name in zip(case.intervals, ("s0", "s1"), strict=True):
        with interval.snapshot() as image:
            assert image.read(0, SIZE) == images[name].read_bytes()
        with interval.stored() as image:
            assert image.read(0, SIZE) == images[name + "x"].read_bytes()


def test_the_copies_are_small(case: Case) -> None:
    sizes = {path.name: path.stat().st_size for path in (case.path / "images").iterdir()}
    assert sizes["0001-snapshot.qcow2"] < SIZE // 8


def test_sequences_and_bitmaps_come_back(case: Case) -> None:
    frame = case.intervals[1].writes("physical")
    assert frame is not None
    assert frame["interval"].tolist() == [1] and frame["volume"].tolist() == ["physical"]
    assert case.intervals[1].bitmap("physical").indices().tolist() == [146, 147, 148]
    assert case.intervals[1].bitmap("snapshot") is None
    assert case.intervals[1].writes("snapshot") is None
    assert len(case.writes) == 1


def test_the_base_is_the_last_that_was_kept(case: Case, images: dict[str, Path]) -> None:
    case.add(
        snapshot=images["s1"],
        stored=images["s1x"],
        bitmaps={"physical": Bitmap(SIZE, GRANULARITY)},
    )
    assert [interval.base for interval in case.intervals] == [None, 0, 0]
    assert [interval.kept for interval in case.intervals] == [True, False, True]
    assert case.intervals[0].patterns == ("cache/",)


def test_rows_of_another_volume_or_interval_are_left_out(
    case: Case, images: dict[str, Path], tmp_path: Path
) -> None:
    path = tmp_path / "all.csv"
    path.write_text(
        "time,op,offset,length,volume,interval\n"
        "5,write,0,512,physical,1\n6,write,512,512,physical,2\n7,write,1024,512,snapshot,2\n"
    )
    added = case.add(
        snapshot=images["s1"],
        stored=images["s1x"],
        writes={"physical": path, "snapshot": path},
    )
    assert added.writes("physical")["offset"].tolist() == [512]
    assert added.writes("snapshot")["offset"].tolist() == [1024]
    with pytest.raises(InputError, match="none of its 3 rows"):
        case.add(snapshot=images["s1"], stored=images["s1x"], writes={"physical": path})


@pytest.mark.parametrize(
    ("more", "fault"),
    [
        ({}, "needs a record of the physical volume"),
        ({"bitmaps": {"physical": "short"}}, "has 3 bytes"),
        ({"writes": {"physical": "past"}}, "past the volume"),
        ({"writes": {"physical": "absent"}}, "cannot be opened"),
        ({"bitmaps": {"physical": "good"}, "snapshot": "small"}, "has 512 bytes"),
        ({"bitmaps": {"physical": "good"}, "stored": "absent"}, "absent"),
    ],
)
def test_a_refused_backup_leaves_the_case_as_it_was(
    case: Case, images: dict[str, Path], tmp_path: Path, more: dict, fault: str
) -> None:
    (tmp_path / "short").write_bytes(b"abc")
    (tmp_path / "small").write_bytes(bytes(512))
    (tmp_path / "good").write_bytes(bytes(32))
    (tmp_path / "past").write_text(f"time,op,offset,length\n1,write,{SIZE - 1},2\n")
    before = {path: path.read_bytes() for path in case.path.rglob("*") if path.is_file()}
    call = {"snapshot": images["s1"], "stored": images["s1x"]}
    for key, value in more.items():
        call[key] = (
            {volume: tmp_path / name for volume, name in value.items()}
            if isinstance(value, dict)
            else tmp_path / value
        )
    with pytest.raises(InputError) as caught:
        case.add(**call)
    assert fault in str(caught.value) and "\n" not in str(caught.value)
    assert {p: p.read_bytes() for p in case.path.rglob("*") if p.is_file()} == before


def test_backup_0_has_no_physical_record(tmp_path: Path, images: dict[str, Path]) -> None:
    made = Case.create(tmp_path / "new", SIZE, GRANULARITY)
    with pytest.raises(InputError, match="backup 0"):
        made.add(
            snapshot=images["s0"],
            stored=images["s0"],
            bitmaps={"physical": Bitmap(SIZE, GRANULARITY)},
        )


@pytest.mark.parametrize(
    ("size", "granularity"), [(0, 4096), (511, 4096), (1 << 20, 3000), (1 << 20, 256), (-512, 512)]
)
def test_impossible_sizes_are_refused(tmp_path: Path, size: int, granularity: int) -> None:
    with pytest.raises(InputError):
        Case.create(tmp_path / "new", size, granularity)
    assert not (tmp_path / "new").exists()


def test_force_replaces_a_case_and_nothing_else(case: Case, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="exists"):
        Case.create(case.path, SIZE, GRANULARITY)
    assert Case.create(case.path, SIZE, GRANULARITY, force=True).intervals == []
    assert sorted(path.name for path in case.path.iterdir()) == [MANIFEST]
    other = tmp_path / "other"
    other.mkdir()
    (other / "precious").write_text("kept")
    with pytest.raises(InputError, match="exists"):
        Case.create(other, SIZE, GRANULARITY, force=True)
    assert (other / "precious").read_text() == "kept"


def test_verify_names_each_damaged_piece(case: Case) -> None:
    assert verify(case.path) == []
    for name, path, _ in list(case.pieces()):
        good = path.read_bytes()
        middle = len(good) // 2
        for bad in (good[:-1], b"", good[:middle] + bytes([good[middle] ^ 4]) + good[middle + 1 :]):
            path.write_bytes(bad)
            assert [fault.piece for fault in verify(case.path)] == [name]
        path.unlink()
        assert [fault.fault for fault in verify(case.path)] == ["is missing"]
        path.write_bytes(good)
    manifest = case.path / MANIFEST
    for text in ("", "{", manifest.read_text().replace("true", "false", 1), "[1]", "\xff"):
        manifest.write_text(text)
        assert [fault.piece for fault in verify(case.path)] == [MANIFEST]


def test_two_exchanged_pieces_are_told(case: Case) -> None:
    first, second = (case.path / "images" / f"000{k}-stored.qcow2" for k in (0, 1))
    shutil.move(first, first.with_suffix(".x"))
    shutil.move(second, first)
    shutil.move(first.with_suffix(".x"), second)
    assert len(verify(case.path)) == 2


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("volume_size",), -4096),
        (("volume_size",), 1 << 80),
        (("volume_size",), "big"),
        (("volume_size",), 1.5),
        (("granularity",), 3),
        (("granularity",), True),
        (("intervals",), 7),
        (("intervals", 0), None),
        (("intervals", 0, "k"), 1 << 70),
        (("intervals", 0, "kept"), "yes"),
        (("intervals", 0, "patterns"), [1]),
        (("intervals", 0, "snapshot"), None),
        (("intervals", 0, "snapshot", "file"), "../../etc/passwd"),
        (("intervals", 0, "snapshot", "file"), "/etc/passwd"),
        (("intervals", 1, "physical_record", "writes", "file"), ".."),
        (("version",), 2),
        (("version",), True),
        (("version",), 1.0),
        (("intervals", 0, "marks"), 7),
        (("intervals", 0, "marks"), ["instant"]),
        (("intervals", 0, "marks"), [{"name": 3, "time_ns": 1, "seq": 1}]),
        (("intervals", 0, "marks"), [{"name": "instant", "time_ns": "soon", "seq": 1}]),
        (("intervals", 0, "marks"), [{"name": "instant", "time_ns": 1, "seq": 1.5}]),
        (("intervals", 0, "marks"), [{"name": "instant", "time_ns": -1, "seq": 1}]),
        (("intervals", 0, "log"), []),
        (("intervals", 0, "snapshot", "sha256"), None),
        (("intervals", 0, "stored", "content_sha256"), "x"),
        (("intervals", 1, "physical_record"), []),
        (("intervals", 1, "physical_record", "writes", "rows"), "1"),
        (("intervals", 1, "physical_record", "bitmap", "sha256"), 5),
        (("format",), "tarball"),
    ],
)
def test_a_manifest_of_nonsense_is_refused_though_its_digest_fits(
    case: Case, path: tuple, value: object
) -> None:
    manifest = case.path / MANIFEST
    document = json.loads(manifest.read_text())
    target = document
    for key in path[:-1]:
        target = target[key]
    target[path[-1]] = value
    document["digest"] = digest_of(document)
    manifest.write_text(json.dumps(document))
    with pytest.raises(InputError) as caught:
        Case.open(case.path)
    assert "\n" not in str(caught.value)


def test_numbers_of_reads_are_no_gap_in_the_case(
    case: Case, images: dict[str, Path], tmp_path: Path
) -> None:
    path = tmp_path / "numbered.csv"
    path.write_text("time,op,offset,length,seq\n5,write,0,512,1\n6,read,0,1,2\n7,write,0,1,3\n")
    case.add(snapshot=images["s1"], stored=images["s1x"], writes={"physical": path})
    assert Replay(case).gaps == []
    path.write_text("time,op,offset,length,seq\n5,write,0,512,11\n7,write,0,1,13\n")
    case.add(snapshot=images["s1"], stored=images["s1x"], writes={"physical": path})
    assert (12, 12) in [(gap.first, gap.last) for gap in Replay(case).gaps]


def test_a_second_writer_is_refused(case: Case, images: dict[str, Path]) -> None:
    other = Case.open(case.path)
    call = {
        "snapshot": images["s1"],
        "stored": images["s1x"],
        "bitmaps": {"physical": Bitmap(SIZE, GRANULARITY)},
    }
    with locked(case.path), pytest.raises(InputError, match="written by another program"):
        other.add(**call)
    case.add(**call)
    with pytest.raises(InputError, match="changed by another program"):
        other.add(**call)
    assert len(Case.open(case.path).intervals) == 3 and verify(case.path) == []


def test_a_refused_backup_takes_no_file_but_its_own(case: Case, images: dict[str, Path]) -> None:
    notes = case.path / "images" / "0002-notes.txt"
    notes.write_text("mine")
    for missing in ("snapshot", "stored"):
        call = {"snapshot": images["s1"], "stored": images["s1x"], missing: images["s1"] / "no"}
        with pytest.raises(InputError):
            case.add(**call, bitmaps={"physical": Bitmap(SIZE, GRANULARITY)})
    assert notes.read_text() == "mine"
    assert sorted(path.name for path in notes.parent.glob("0002-*")) == ["0002-notes.txt"]
    assert Case.create(case.path, SIZE, GRANULARITY, force=True).intervals == []
    assert notes.read_text() == "mine"


@pytest.mark.parametrize("step", ["manifest", "pieces"])
def test_a_replacement_that_is_broken_off_leaves_a_whole_case(
    case: Case, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    class Killed(BaseException):
        """As a kill: nothing after it runs."""

    def die(*words: object, **more: object) -> None:
        raise Killed

    before = len(case.intervals)
    with monkeypatch.context() as patched, pytest.raises(Killed):
        if step == "manifest":
            patched.setattr("cbtlab.case.write_manifest", die)
        else:
            patched.setattr("cbtlab.case.os.unlink", die)
            patched.setattr(Path, "unlink", lambda path, **_: path.suffix == ".part" or die())
        Case.create(case.path, SIZE, GRANULARITY, force=True)
    assert verify(case.path) == []
    assert len(Case.open(case.path).intervals) == (before if step == "manifest" else 0)


def test_a_part_of_a_manifest_does_not_block_another_try(tmp_path: Path) -> None:
    (tmp_path / "case").mkdir()
    (tmp_path / "case" / f"{MANIFEST}.part").write_text("{")
    assert Case.create(tmp_path / "case", SIZE, GRANULARITY).intervals == []


def test_the_manifest_of_another_program_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / MANIFEST).write_text('{"client": "Meyer"}')
    with pytest.raises(InputError, match="exists"):
        Case.create(tmp_path, SIZE, GRANULARITY, force=True)
    assert "Meyer" in (tmp_path / MANIFEST).read_text()


@pytest.mark.parametrize("name", ["images", "writes", "bitmaps"])
def test_a_folder_that_is_a_link_is_refused(case: Case, tmp_path: Path, name: str) -> None:
    (case.path / name).rename(tmp_path / "elsewhere")
    (case.path / name).symlink_to(tmp_path / "elsewhere")
    for call in (
        lambda: Case.open(case.path),
        lambda: Case.create(case.path, SIZE, GRANULARITY, force=True),
    ):
        with pytest.raises(InputError, match="link"):
            call()
    assert any((tmp_path / "elsewhere").iterdir())


def test_content_that_is_not_what_the_manifest_tells(case: Case) -> None:
    document = json.loads((case.path / MANIFEST).read_text())
    document["intervals"][1]["stored"]["content_sha256"] = "0" * 64
    write_manifest(case.path / MANIFEST, document)
    (fault,) = verify(case.path)
    assert fault.piece == "images/0001-stored.qcow2" and "content" in fault.fault


@pytest.mark.parametrize("atomic", [True, False])
def test_two_folders_change_places(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, atomic: bool
) -> None:
    for name in ("new", "old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "it").write_text(name)
    if not atomic:
        monkeypatch.setattr("cbtlab.folders._exchanged", lambda *_: False)
    exchange(tmp_path / "new", tmp_path / "old")
    assert (tmp_path / "old" / "it").read_text() == "new"
    assert (tmp_path / "new" / "it").read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "old"]
