"""The dry run against what audits store: of the same case with the rules, and without any."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import factory
import pytest

import cbtlab
from cbtlab.bitmap import Bitmap
from cbtlab.case import Case
from cbtlab.dry_run import DryBackup, dry_run
from cbtlab.errors import InputError
from cbtlab.exclude import collect_rules, excluded, foreseen
from cbtlab.files import map_volume
from cbtlab.notebook import NotebookCase

pytestmark = pytest.mark.skipif(
    bool(factory.missing_tools()), reason=f"needs {', '.join(factory.missing_tools())}"
)


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> factory.Recording:
    return factory.office(tmp_path_factory.mktemp("office"))


@pytest.fixture(scope="module")
def case(recording: factory.Recording, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return recording.case(tmp_path_factory.mktemp("case") / "case")


@pytest.fixture(scope="module")
def untouched(recording: factory.Recording, tmp_path_factory: pytest.TempPathFactory) -> Case:
    """The same snapshots of the same volume, where nothing was ever deleted."""
    folder = tmp_path_factory.mktemp("untouched")
    made = factory.Recording(folder, recording.volume, recording.granularity)
    for backup in recording.backups:
        made.backups.append(factory.Backup(backup.snapshot, backup.snapshot, [], backup.kept))
        made.backups[-1].bitmaps = {k: v for k, v in backup.bitmaps.items() if k == "physical"}
    for backup in made.backups:
        size = made.size
        backup.bitmaps["snapshot"] = Bitmap(size, recording.granularity)
    return made.case(folder / "case", sequences=False)


def test_without_rules_it_stores_what_an_audit_of_the_untouched_case_stores(
    case: Case, untouched: Case
) -> None:
    done = dry_run(case)
    for each, backup in zip(NotebookCase(untouched).intervals, done.backups, strict=True):
        assert (backup.without is None) == (not each.kept)
        if backup.without is not None:
            assert backup.without.kind == each.plan.kind
            assert not (backup.without.copied ^ each.plan.copied).any(), each.k


def test_with_the_case_s_own_rules_only_the_delete_s_writes_differ(case: Case) -> None:
    done = dry_run(case)
    saved = 0
    for each, backup in zip(NotebookCase(case).intervals, done.backups, strict=True):
        with each.snapshot_image() as one, each.stored_image() as other:
            real = excluded(map_volume(one), map_volume(other), each.patterns)
        assert not (backup.found.mask ^ real.mask).any(), each.k
        assert backup.found.named["path"].tolist() == [
            *sorted([*real.files["path"], *real.streams["path"]])
        ]
        if backup.with_rules is None:
            continue
        by_delete = [part for part in (each.snapshot, each.carry) if part is not None]
        written = Bitmap(case.volume_size, backup.with_rules.unit)
        for part in by_delete:
            written = written | part.outward(backup.with_rules.unit)
        assert not ((backup.with_rules.copied ^ each.plan.copied) - written).any(), each.k
        assert backup.saved is not None
        saved += backup.saved.count()
    assert saved > 20


def test_rules_add_up_to_what_they_save(case: Case) -> None:
    rules = collect_rules(None, ["*"], ["temporary", "trash"])
    (first, *_), plain = dry_run(case, rules).backups, dry_run(case, collect_rules(None, ["*"]))
    told = first.document()
    assert told["freed_bytes"] == plain.backups[0].document()["freed_bytes"]
    assert sum(rule["names"] for rule in told["rules"]) == told["names"] == len(told["files"])
    assert sum(rule["freed_bytes"] for rule in told["rules"]) == told["freed_bytes"]
    assert told["units_saved"] - told["units_added"] == told["copied"] - told["copied_with_rules"]
    assert told["bytes_saved"] == (told["copied"] - told["copied_with_rules"]) * told["unit"]
    assert [entry["set"] for entry in told["sets"]] == ["temporary", "trash"]
    json.dumps(told, allow_nan=False)


def test_the_rule_that_decides_gets_the_name(case: Case) -> None:
    rules = collect_rules(None, ["*", "cache/", "!nothing", "# a comment", "*.never"])
    backup: DryBackup = dry_run(case, rules).backups[0]
    told = {rule["rule"]: rule for rule in backup.by_rule()}
    assert list(told) == ["*", "cache/", "*.never"]
    assert told["*.never"]["names"] == told["*.never"]["freed_bytes"] == 0
    named = backup.found.named
    under = named["path"].str.startswith("/cache/")
    assert told["cache/"]["names"] == int(under.sum()) > 0
    assert told["*"]["names"] == int((~under).sum()) > 0


def test_nothing_is_written(case: Case) -> None:
    def stamps() -> dict[Path, Any]:
        return {path: path.stat().st_mtime_ns for path in case.path.rglob("*")}

    before = stamps()
    dry_run(case, collect_rules(None, ["*"]))
    assert stamps() == before and not case.verify()


def test_ages_count_from_the_snapshot_s_instant(
    recording: factory.Recording, tmp_path: Path
) -> None:
    case = recording.case(tmp_path / "case")
    rules = collect_rules(None, ["* [age>1h]"])
    with pytest.raises(InputError, match="give it with --instant"):
        dry_run(case, rules)
    newest = 1 << 62  # later than any clock of a test
    (late, *_), (early, *_) = (
        dry_run(case, rules, instant_ns=instant).backups for instant in (newest, factory.START)
    )
    assert len(early.found.named) < len(late.found.named)


def test_a_case_keeps_its_instants_and_its_sets(
    recording: factory.Recording, tmp_path: Path
) -> None:
    made = Case.create(tmp_path / "case", recording.size, recording.granularity)
    first = recording.backups[0]
    rules = collect_rules(None, ["*.log [age>1h]"], ["trash"])
    told = {"patterns": list(rules.rules), "sets": list(rules.sets)}
    images = {"snapshot": first.snapshot.path, "stored": first.snapshot.path}
    with pytest.raises(InputError, match="instant is not known"):
        made.add(**images, **told)
    assert not made.intervals and not list((tmp_path / "case").glob("images/*"))
    made.add(**images, **told, instant_ns=factory.START)
    again = Case.open(made.path).intervals[0]
    assert again.instant_ns == factory.START
    assert again.patterns[-1] == "*.log [age>1h] [at=2026-01-05T08:00:00Z]"
    assert made.document()["intervals"][0]["sets"] == list(rules.sets)
    assert "excludes set trash, *.log [age>1h] [at=2026" in made.text()
    mark = {"name": "instant", "time_ns": factory.START + 1, "seq": 1}
    other = Case.create(tmp_path / "other", recording.size, recording.granularity)
    other.add(**images, patterns=["* [age>1h]"], marks=[mark])
    assert other.intervals[0].patterns == ("* [age>1h] [at=2026-01-05T08:00:00.000000001Z]",)


def test_a_notebook_has_it_as_a_frame() -> None:
    example = cbtlab.load_example("ext4-office")
    frame = example.dry_run(sets=["windows-memory"])
    assert frame.columns.tolist() == ["k", "rule", "set", "names", "bytes", "freed_bytes", "units"]
    page = frame[frame["rule"] == "/pagefile.sys [case=ignore]"]
    assert page["names"].tolist() == [1] * len(example.intervals)
    assert (page["freed_bytes"] == 5 << 19).all() and set(page["set"]) == {"windows-memory"}
    assert frame["units"].isna().any(), "a backup that was thrown away stores nothing"
    own = example.dry_run()
    assert set(own.loc[own["k"] == 0, "rule"]) == {"/pagefile.sys", "/cache/", "*.tmp"}


def test_the_recorded_case_is_foreseen_as_the_kernel_deleted_it() -> None:
    each = cbtlab.load_example("ext4-office").intervals[2]
    found = foreseen(each.files, each.patterns)
    assert not (found.mask ^ each.exclusion.mask).any() and found.mask.any()
    assert found.staying["owner"].tolist() == ["/documents/logo.svg"]
