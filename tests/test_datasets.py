"""The recorded cases: what their audits must give, and what other people's tools say of it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from factory import PATH
from played import APART, Played

from cbtlab import audit
from cbtlab.audit.rules import WRONG_RULES
from cbtlab.case import Case
from cbtlab.chain import open_chain, restore
from cbtlab.errors import NotAtRest
from cbtlab.files import map_volume
from cbtlab.images import differing
from cbtlab.lab.laboratory import load
from cbtlab.lab.regression import check, differences, essence
from cbtlab.phases import written_by_phase

ROOT = Path(__file__).resolve().parent.parent
DATASETS = ROOT / "datasets"
OFFICE, BROKEN = DATASETS / "ext4-office", DATASETS / "ext4-broken"
CASES = sorted(path.parent for path in DATASETS.glob("*/case.json"))
# One for each file system: the backups whose snapshot was not at rest, as their READMEs tell.
MENDED = {
    "btrfs": set(),
    "exfat": set(),
    "ntfs-3g": set(),
    "ntfs-ntfs3": set(),
    "vfat": {0, 1, 2, 3},
    "xfs": {0, 1, 2, 3},
}


def tool(name: str) -> str:
    found = shutil.which(name, path=PATH)
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


@pytest.fixture(scope="module")
def office(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of an audit of the office, compared with what is expected of it."""
    out = tmp_path_factory.mktemp("office") / "out"
    found = audit.run(Case.open(OFFICE), out)
    wanted = json.loads((OFFICE / "expected.json").read_text())["policies"]["allocated"]
    assert not list(differences(wanted, essence(json.loads(json.dumps(found.document())))))
    assert found.holds
    return out


@pytest.fixture(scope="module")
def restored(office: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    folder = tmp_path_factory.mktemp("restored")
    chain = open_chain(office / "chain")
    targets = {link.k: folder / f"{link.k}.raw" for link in chain.links}
    for k, target in targets.items():
        restore(chain, k, target)
    return targets


@pytest.mark.parametrize("policy", ["extents", "union"])
def test_the_office_holds_under_the_other_policies(policy: str) -> None:
    assert json.loads((OFFICE / "expected.json").read_text())["policies"][policy]["holds"]
    assert check(OFFICE, (policy,)) == []


def test_the_broken_case_is_as_expected() -> None:
    assert check(BROKEN, ("allocated",)) == []


@pytest.mark.parametrize("case", CASES, ids=lambda path: path.name)
def test_every_case_has_its_readme_scenario_and_expectation(case: Path) -> None:
    for name in ("README.md", "scenario.py", "expected.json"):
        assert (case / name).is_file()


@pytest.mark.parametrize("name", MENDED)
def test_the_case_of_each_file_system_is_as_expected(name: str) -> None:
    expected = json.loads((DATASETS / name / "expected.json").read_text())["policies"]["allocated"]
    assert expected["holds"]
    verdicts = {
        interval["k"]: {one: each["holds"] for one, each in interval["checks"].items()}
        for interval in expected["intervals"]
    }
    assert [k for k, checks in verdicts.items() if checks["kept"]] == [0, 1, 3]
    assert check(DATASETS / name, ("allocated",)) == []


@pytest.mark.parametrize("name", MENDED)
def test_a_snapshot_that_is_not_at_rest_was_mended_and_that_was_tracked(name: str) -> None:
    case = Case.open(DATASETS / name)
    assert {one.k for one in case.intervals if one.was_mended} == MENDED[name]
    for interval in case.intervals:
        if not interval.was_mended:
            with interval.snapshot() as image:
                map_volume(image)
            continue
        with interval.snapshot() as snapshot, interval.mended() as mended:
            with pytest.raises(NotAtRest):
                map_volume(snapshot)
            map_volume(mended)
            changed = differing(snapshot, mended, case.granularity)
        marked = interval.bitmap("snapshot")
        assert marked is not None and changed.any() and changed.issubset(marked)
        phases = written_by_phase(interval)
        assert phases is not None
        assert phases.loc["mend", "blocks"] >= changed.count()
        assert phases.loc["delete", "writes"] > 0


@pytest.mark.parametrize("name", MENDED)
def test_every_snapshot_holds_what_its_scenario_wrote(name: str, tmp_path: Path) -> None:
    """The scenario's own files, byte for byte: a snapshot that misses a write is no snapshot."""
    case = Case.open(DATASETS / name)
    played = Played(load(DATASETS / name / "scenario.py"), tmp_path / "root")
    for interval in case.intervals:
        played.step(interval.k)
        with interval.mended() as image:
            volume = map_volume(image)
            rows = volume.names[volume.names["type"].isin(["file", "stream"])]
            found = {
                path: volume.read_file(inode, stream)
                for path, inode, stream in zip(
                    rows["path"], rows["inode"], rows["stream"], strict=True
                )
                if path not in APART and not (played.root / path[1:]).is_symlink()
            }
        wanted = played.content() | (played.streams() if name == "ntfs-3g" else {})
        assert sorted(found) == sorted(wanted)
        assert [path for path, data in found.items() if data != wanted[path]] == []


def test_the_office_has_what_its_scenario_promises() -> None:
    case = Case.open(OFFICE)
    assert case.volume_size >= 128 << 20
    assert sum(interval.kept for interval in case.intervals[1:]) >= 4
    assert not all(interval.kept for interval in case.intervals)
    rules = [set(interval.patterns) for interval in case.intervals]
    assert any(new - old for old, new in pairwise(rules))
    assert any(old - new for old, new in pairwise(rules))


def test_qemu_agrees_with_every_restore_point(office: Path, restored: dict[int, Path]) -> None:
    qemu = tool("qemu-img")
    for k, raw in restored.items():
        link = office / "chain" / f"{k:04d}.qcow2"
        subprocess.run([qemu, "check", "-q", link], check=True)
        subprocess.run([qemu, "compare", "-q", "-F", "qcow2", "-f", "raw", raw, link], check=True)


def test_e2fsck_finds_every_restored_volume_clean(restored: dict[int, Path]) -> None:
    for raw in restored.values():
        done = subprocess.run([tool("e2fsck"), "-fn", raw], capture_output=True, check=False)
        assert done.returncode == 0, done.stdout


def test_a_restored_volume_is_the_snapshot_where_a_block_is_in_use(
    restored: dict[int, Path],
) -> None:
    """By dumpe2fs: an allocated block is as it was, or zero as an unwritten one reads."""
    case = Case.open(OFFICE)
    for k, raw in restored.items():
        with case.intervals[k].stored() as image:
            stored = np.frombuffer(image.read(0, image.size), np.uint8).reshape(-1, 4096)
        found = np.fromfile(raw, np.uint8).reshape(-1, 4096)
        same, zero = (found == stored).all(axis=1), ~found.any(axis=1)
        listed = subprocess.run(
            [tool("dumpe2fs"), raw], capture_output=True, text=True, check=True
        ).stdout
        free = np.zeros(len(found), bool)
        for line in re.findall(r"^  Free blocks: (.+)$", listed, re.MULTILINE):
            for run in line.split(", "):
                first, last = (run.split("-") * 2)[:2]
                free[int(first) : int(last) + 1] = True
        assert free.any()
        assert zero[free].all(), "a free block holds something"
        assert (same | zero)[~free].all(), "a block in use is neither as it was nor zero"
        assert (~same & ~free).sum() < 200, "only unwritten blocks read as zero"


def test_excluded_content_is_in_no_backup(restored: dict[int, Path], tmp_path: Path) -> None:
    """By debugfs and plain search: whole sectors of the page file and of the cache."""
    case = Case.open(OFFICE)
    debugfs = tool("debugfs")
    for k, raw in restored.items():
        snapshot = tmp_path / f"{k}-snapshot"
        with case.intervals[k].snapshot() as image:
            snapshot.write_bytes(image.read(0, image.size))
        folder = tmp_path / f"{k}-files"
        folder.mkdir()
        for name in ("pagefile.sys", "cache"):
            subprocess.run(
                [debugfs, "-R", f"rdump /{name} {folder}", snapshot],
                capture_output=True,
                check=True,
            )
        volume = {part.tobytes() for part in np.fromfile(raw, np.uint8).reshape(-1, 512)}
        before = {part.tobytes() for part in np.fromfile(snapshot, np.uint8).reshape(-1, 512)}
        sectors = [
            data[at : at + 512]
            for path in folder.rglob("*")
            if path.is_file() and path.stat().st_nlink == 1
            for data in [path.read_bytes()]
            for at in range(0, len(data) - 511, 512)
            if len(set(data[at : at + 512])) > 8
        ]
        assert len(sectors) > 1000 and set(sectors) <= before
        kept = tmp_path / f"{k}-kept"
        kept.mkdir()
        subprocess.run([debugfs, "-R", f"rdump / {kept}", raw], capture_output=True, check=True)
        shared = {
            data[at : at + 512]
            for path in kept.rglob("*")
            if path.is_file() and not path.is_symlink()
            for data in [path.read_bytes()]
            for at in range(0, len(data) - 511, 512)
        }
        assert not (set(sectors) - shared) & volume
        shutil.rmtree(kept)


@pytest.mark.parametrize("name", sorted(WRONG_RULES))
def test_each_wrong_rule_fails_a_check_on_the_office(name: str, tmp_path: Path) -> None:
    found = audit.run(Case.open(OFFICE), tmp_path / "out", rules=WRONG_RULES[name])
    assert not found.holds
    failed = {
        check["name"]
        for interval in found.document()["intervals"]
        for check in interval["checks"]
        if check["holds"] is False
    }
    assert failed & {"complete", "excluded"}, failed


def test_each_fault_of_the_broken_case_is_found_by_the_right_check(tmp_path: Path) -> None:
    found = audit.run(Case.open(BROKEN), tmp_path / "out").document()
    assert found["holds"] is False
    verdicts = [
        {check["name"]: check for check in interval["checks"]} for interval in found["intervals"]
    ]
    lost = verdicts[1]["consistent"]
    assert lost["holds"] is False and "cannot be shown" in lost["summary"]
    assert verdicts[1]["tracked"]["holds"] and verdicts[1]["complete"]["holds"]
    for k in (2, 4):
        missed = verdicts[k]["tracked"]
        assert missed["holds"] is False
        for row in missed["evidence"]:
            assert {"block", "offset", "length"} <= set(row)
        assert any(row.get("path") for row in missed["evidence"])
        assert any(row.get("time") for row in missed["evidence"])
        assert verdicts[k]["complete"]["holds"] is False
