"""The whole audit: its document, its output folder, what it refuses."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import factory
import numpy as np
import pytest
from judged import verdict

from cbtlab import audit
from cbtlab.bitmap import Bitmap
from cbtlab.case import Case
from cbtlab.checks import NAMES
from cbtlab.errors import InputError
from cbtlab.files import map_volume
from cbtlab.images import open_image

KEYS = {
    "k",
    "kept",
    "base",
    "kind",
    "physical",
    "snapshot",
    "carry",
    "master",
    "excluded",
    "copied",
    "joined",
    "zeroed",
    "least",
    "surplus",
    "bytes_stored",
    "checks",
}
UNITS = ("copied", "joined", "zeroed", "least", "surplus", "bytes_stored")


@pytest.fixture(scope="module")
def found(office_case: Case, tmp_path_factory: pytest.TempPathFactory) -> audit.Audit:
    return audit.run(office_case, tmp_path_factory.mktemp("audit") / "out")


@pytest.fixture(scope="module")
def document(found: audit.Audit) -> dict[str, Any]:
    return json.loads((found.out / "audit.json").read_text())


def test_everything_holds(found: audit.Audit) -> None:
    assert found.holds, found.text()
    for backup in found.backups:
        judged = {check.name for check in backup.checks if check.holds}
        kept = set(NAMES) if backup.interval.kept else {"tracked", "consistent"}
        assert judged == kept


@pytest.mark.parametrize("policy", ["extents", "union"])
def test_everything_holds_under_the_other_policies(
    office_case: Case, tmp_path: Path, policy: str
) -> None:
    found = audit.run(office_case, tmp_path / "out", policy)
    for backup in found.backups:
        judged = {check.name for check in backup.checks if check.holds}
        kept = set(NAMES) - {"excluded"} if backup.interval.kept else {"tracked", "consistent"}
        assert judged == kept


def test_the_document_has_what_was_promised(
    found: audit.Audit, document: dict[str, Any], office_case: Case
) -> None:
    assert document == json.loads(json.dumps(found.document()))
    assert document["case"] == office_case.name and document["policy"] == "allocated"
    assert document["granularity"] == 4096 and document["volume_blocks"] == 2048
    assert document["holds"] is True
    assert [entry["k"] for entry in document["intervals"]] == [0, 1, 2, 3, 4]
    assert [entry["base"] for entry in document["intervals"]] == [None, 0, 1, 1, 3]
    for entry in document["intervals"]:
        assert entry.keys() >= KEYS
        assert tuple(check["name"] for check in entry["checks"]) == NAMES
        for check in entry["checks"]:
            assert check.keys() == {"name", "holds", "summary", "evidence", "evidence_total"}
            assert len(check["evidence"]) <= 100


def test_backup_0_and_the_thrown_away_one(document: dict[str, Any]) -> None:
    first, _, thrown, *_ = document["intervals"]
    assert first["kind"] == "full"
    assert first["physical"] is None and first["carry"] is None and first["joined"] == 0
    assert first["master"] == document["volume_blocks"]
    assert thrown["kept"] is False and thrown["kind"] == "incremental"
    assert [thrown[name] for name in UNITS] == [None] * 6
    assert all(thrown[name] > 0 for name in ("physical", "snapshot", "carry", "master"))


def test_the_counts_are_those_of_the_recording(
    office: factory.Recording, document: dict[str, Any]
) -> None:
    bits = [backup.bitmaps for backup in office.backups]
    third = document["intervals"][3]
    physical = bits[2]["physical"] | bits[3]["physical"]
    assert third["physical"] == physical.count()
    assert third["physical_interval"] == bits[3]["physical"].count()
    assert third["snapshot"] == bits[3]["snapshot"].count()
    assert third["carry"] == bits[1]["snapshot"].count()
    master = physical | bits[3]["snapshot"] | bits[1]["snapshot"]
    assert third["master"] == master.count()
    with (
        open_image(office.backups[3].snapshot.path) as before,
        open_image(office.backups[3].stored.path) as after,
    ):
        used = map_volume(after).in_use
        names = map_volume(before).names
        gone = names[names["path"].str.startswith("/cache/") & (names["type"] == "file")]
    assert set(gone["path"]) <= {file["path"] for file in third["excluded_files"]}
    volume = office.backups[3].snapshot
    listed = ("/cache/tail.bin", "/cache/notes.txt", "/cache/c.bin", "/pagefile.sys")
    listed += ("/old/keep.txt", "/docs/draft.tmp")
    blocks = np.concatenate([volume.blocks(name) for name in listed])
    mask = Bitmap.from_indices(blocks, office.size, 1024) - used
    assert third["excluded"] == (master & mask.outward(4096)).count()
    assert third["bytes_stored"] == third["copied"] * 4096


def test_least_is_what_truly_differs(
    found: audit.Audit, document: dict[str, Any], tmp_path: Path
) -> None:
    restored = {}
    for k in (1, 3):
        to = tmp_path / f"{k}.raw"
        if shutil.which("qemu-img") is None:
            pytest.skip("needs qemu-img (Debian: qemu-utils)")
        link = found.out / "chain" / f"{k:04d}.qcow2"
        subprocess.run(["qemu-img", "convert", "-O", "raw", link, to], check=True)
        restored[k] = np.fromfile(to, np.uint8).reshape(-1, 4096)
    assert document["intervals"][3]["least"] == int((restored[1] != restored[3]).any(axis=1).sum())


def test_the_sources_are_as_they_were(document: dict[str, Any], office_case: Case) -> None:
    pieces = {piece["piece"]: piece for piece in document["sources"]}
    assert len(pieces) == 1 + len(list(office_case.pieces()))
    for name, piece in pieces.items():
        digest = hashlib.sha256((office_case.path / name).read_bytes()).hexdigest()
        assert piece["before"] == piece["after"] == digest


def test_the_output_is_whole(found: audit.Audit) -> None:
    names = sorted(path.name for path in found.out.iterdir())
    assert names in (["audit.json", "chain"], ["audit.json", "chain", "report.html"])
    assert [path.name for path in found.out.parent.iterdir()] == [found.out.name]


def test_it_shows_itself(found: audit.Audit) -> None:
    assert "every check holds" in found.text() and found._repr_html_().count("<tr>") == 6


def test_the_command_line_makes_the_same(
    office: factory.Recording, found: audit.Audit, tmp_path: Path
) -> None:
    recording = office.copy(tmp_path / "copy")
    again = audit.run(recording.by_command_line(tmp_path / "case"), tmp_path / "out")
    counts = ("physical", "snapshot", "carry", "master", "excluded", *UNITS)
    for one, other in zip(
        found.document()["intervals"], again.document()["intervals"], strict=True
    ):
        assert {name: one[name] for name in counts} == {name: other[name] for name in counts}
    assert again.holds


@pytest.mark.parametrize(("block_size", "granularity"), [(1024, 512), (1024, 65536), (4096, 1024)])
def test_other_sizes_hold_too(tmp_path: Path, block_size: int, granularity: int) -> None:
    if factory.missing_tools():
        pytest.skip("needs e2fsprogs")
    recording = factory.office(tmp_path / "r", block_size=block_size, granularity=granularity)
    case = recording.case(tmp_path / "case")
    for policy in ("allocated", "extents"):
        found = audit.run(case, tmp_path / policy, policy)
        assert found.holds, found.text()


# What it refuses ---------------------------------------------------------------------------------


def test_an_output_is_replaced_only_with_force(office_case: Case, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    earlier = '{"case": "x", "policy": "union"}'
    (out / "audit.json").write_text(earlier)
    with pytest.raises(InputError, match=r"exists.*--force"):
        audit.run(office_case, out)
    assert (out / "audit.json").read_text() == earlier
    assert audit.run(office_case, out, force=True).holds
    assert json.loads((out / "audit.json").read_text())["holds"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize(
    "name", ["notes.txt", "chain/letter.txt", "chain/0000.qcow2.bak", "wabcdefgh/x.doc", "more/"]
)
def test_force_removes_no_foreign_file(office_case: Case, tmp_path: Path, name: str) -> None:
    out = tmp_path / "out"
    audit.run(office_case, out)
    foreign = out / name
    foreign.parent.mkdir(exist_ok=True)
    foreign.mkdir() if name.endswith("/") else foreign.write_text("dear")
    with pytest.raises(InputError, match=name.rstrip("/")):
        audit.run(office_case, out, force=True)
    assert foreign.exists() and (out / "audit.json").is_file()


@pytest.mark.parametrize("atomic", [True, False])
def test_force_replaces_what_an_audit_wrote(
    office_case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, atomic: bool
) -> None:
    if not atomic:
        monkeypatch.setattr("cbtlab.folders._exchanged", lambda *_: False)
    out = tmp_path / "out"
    audit.run(office_case, out, "union")
    (out / "wabcdefgh").mkdir()
    (out / "wabcdefgh" / "0001.raw").write_bytes(b"left over")
    (out / "chain" / "0009.qcow2.part").write_bytes(b"left over")
    audit.run(office_case, out, force=True)
    assert json.loads((out / "audit.json").read_text())["policy"] == "allocated"
    assert not (out / "wabcdefgh").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_force_replaces_no_folder_that_is_no_audit(office_case: Case, tmp_path: Path) -> None:
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters/one.txt").write_text("dear")
    (tmp_path / "other").mkdir()
    (tmp_path / "other/audit.json").write_text('{"auditor": "another program"}')
    for out in (tmp_path / "letters", tmp_path / "other", office_case.path.parent):
        with pytest.raises(InputError, match=r"no earlier audit|the case itself"):
            audit.run(office_case, out, force=True)
    for out in (office_case.path, office_case.path / "audit", office_case.path / "chain" / "a"):
        with pytest.raises(InputError, match="in the folder of the case"):
            audit.run(office_case, out)
    assert (tmp_path / "letters/one.txt").read_text() == "dear"


def test_an_altered_piece_is_named_and_nothing_is_left(
    office: factory.Recording, tmp_path: Path
) -> None:
    case = office.case(tmp_path / "case")
    piece = tmp_path / "case/images/0003-stored.qcow2"
    data = bytearray(piece.read_bytes())
    data[-1] ^= 1
    piece.write_bytes(data)
    with pytest.raises(InputError, match=r"0003-stored\.qcow2: was altered"):
        audit.run(case, tmp_path / "out")
    piece.unlink()
    with pytest.raises(InputError, match=r"0003-stored\.qcow2: is missing"):
        audit.run(case, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["case"]


def test_an_empty_case_is_refused(tmp_path: Path) -> None:
    case = Case.create(tmp_path / "case", 1 << 20, 4096)
    with pytest.raises(InputError, match="has no backup"):
        audit.run(case, tmp_path / "out")


def test_an_unknown_policy_is_refused(office_case: Case, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="policy"):
        audit.run(office_case, tmp_path / "out", "everything")


def raw_case(folder: Path, granularity: int = 4096) -> Case:
    """Return a case of two backups of a volume without a file system."""
    rng = np.random.default_rng(5)
    disk = rng.integers(0, 256, 1 << 20, np.uint8)
    case = Case.create(folder / "case", 1 << 20, granularity)
    for k in range(2):
        if k:
            disk[5 * 4096 : 7 * 4096] = rng.integers(0, 256, 8192, np.uint8)
        disk.tofile(folder / f"{k}.img")
        bits = Bitmap.from_indices([5, 6, 9], 1 << 20, granularity)
        nothing = Bitmap(1 << 20, granularity)
        bitmaps = {"snapshot": nothing} | ({"physical": bits} if k else {})
        case.add(snapshot=folder / f"{k}.img", stored=folder / f"{k}.img", bitmaps=bitmaps)
    return Case.open(folder / "case")


@pytest.mark.parametrize("policy", ["allocated", "extents"])
def test_without_a_file_system_the_way_out_is_named(tmp_path: Path, policy: str) -> None:
    with pytest.raises(InputError, match="--policy union") as refused:
        audit.run(raw_case(tmp_path), tmp_path / "out", policy)
    assert "offset" not in str(refused.value)
    assert not (tmp_path / "out").exists()


def test_without_a_file_system_the_union_is_judged(tmp_path: Path) -> None:
    found = audit.run(raw_case(tmp_path), tmp_path / "out", "union")
    assert found.holds
    for k in (0, 1):
        unknown = {check.name for check in found.backups[k].checks if check.holds is None}
        assert unknown == {"consistent", "excluded", "kept", "restorable"}
        assert "no file system was recognised" in verdict(found, k, "complete").summary
    entry = found.document()["intervals"][1]
    assert entry["copied"] == 3 and entry["least"] == 2 and entry["excluded"] is None
    assert entry["surplus"]["same_bytes"] == 1


@pytest.mark.parametrize("policy", ["allocated", "union"])
def test_a_journal_that_needs_recovery_is_refused(
    spoiled: factory.Recording, tmp_path: Path, policy: str
) -> None:
    spoiled.backups[3].stored.debugfs("feature needs_recovery")
    case = spoiled.case(tmp_path / "case")
    with pytest.raises(InputError) as refused:
        audit.run(case, tmp_path / "out", policy)
    assert "journal needs recovery" in str(refused.value)
    assert "0003-stored" in str(refused.value) and "\n" not in str(refused.value)
    assert not (tmp_path / "out").exists()


def test_a_first_backup_that_was_thrown_away(office: factory.Recording, tmp_path: Path) -> None:
    recording = office.copy(tmp_path / "r")
    recording.backups[0].kept = False
    found = audit.run(recording.case(tmp_path / "case"), tmp_path / "out")
    assert found.holds
    first, second = found.document()["intervals"][:2]
    assert first["copied"] is None and first["kept"] is False
    assert second["kind"] == "full" and second["base"] is None
    assert "no earlier backup was kept" in second["reason"]


def test_a_case_that_excludes_nothing(office: factory.Recording, tmp_path: Path) -> None:
    """No rule, no delete, and nothing recorded of the snapshots: nobody wrote to them."""
    recording = office.copy(tmp_path / "r")
    for backup in recording.backups:
        backup.patterns, backup.stored = [], backup.snapshot
        for record in (backup.writes, backup.bitmaps):
            record.pop("snapshot", None)
    case = recording.case(tmp_path / "case", sequences=False)
    for policy in ("allocated", "extents", "union"):
        found = audit.run(case, tmp_path / policy, policy)
        assert found.holds, found.text()
    entry = found.document()["intervals"][1]
    assert entry["snapshot"] is None and entry["carry"] is None and entry["excluded"] == 0
    assert entry["physical"] == entry["master"]


def test_a_case_of_which_nothing_was_kept_is_refused(tmp_path: Path) -> None:
    (tmp_path / "disk").write_bytes(bytes(1 << 20))
    case = Case.create(tmp_path / "case", 1 << 20, 4096)
    case.add(snapshot=tmp_path / "disk", stored=tmp_path / "disk", kept=False)
    with pytest.raises(InputError, match="no backup that was kept; add one"):
        audit.run(case, tmp_path / "out", "union")
    assert not (tmp_path / "out").exists()
