"""The facade for notebooks: what the guide promises, in its words."""

from __future__ import annotations

from pathlib import Path

import factory
import pandas as pd
import pytest

import cbtlab
from cbtlab.audit.rules import WRONG_RULES
from cbtlab.bitmap import Bitmap
from cbtlab.case import Case
from cbtlab.errors import InputError
from cbtlab.images import differing
from cbtlab.notebook import NotebookCase
from cbtlab.replay import Replay

missing = factory.missing_tools()
pytestmark = pytest.mark.skipif(bool(missing), reason=f"{', '.join(missing)} not installed")


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("notebook")
    factory.office(folder / "recording").case(folder / "case")
    return folder / "case"


@pytest.fixture(scope="module")
def case(path: Path) -> NotebookCase:
    return cbtlab.open_case(path)


def test_a_case_tells_of_itself(case: NotebookCase) -> None:
    assert isinstance(case.writes, pd.DataFrame)
    assert len(case.writes) == len(case.case.writes)
    shown = case._repr_html_()
    assert shown.count("<tr>") == 1 + len(case.intervals)
    assert "thrown away" in shown and "/pagefile.sys" in shown and "2,048 blocks" in shown


def test_a_hostile_rule_is_shown_as_text(tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(bytes(1 << 20))
    made = Case.create(tmp_path / "case", 1 << 20, 4096, name="<script>\u202e")
    made.add(snapshot=image, stored=image, patterns=["<img src=x onerror=y>"])
    shown = cbtlab.open_case(tmp_path / "case")._repr_html_()
    assert "<script" not in shown and "<img" not in shown and "\u202e" not in shown


def test_the_bitmaps_of_an_interval(case: NotebookCase) -> None:
    third = case.intervals[3]
    merged = Replay(case.case).merged(3)
    parts = (third.physical, third.snapshot, third.carry)
    assert all(isinstance(part, Bitmap) for part in parts)
    assert (third.physical, third.snapshot, third.carry, third.master) == (
        merged.physical, merged.snapshot, merged.carry, merged.master,
    )  # fmt: skip
    assert sorted(third.written) == [2, 3]
    assert third.written[2] | third.written[3] == third.physical
    first = case.intervals[0]
    assert first.physical is None and first.carry is None
    assert first.master.count() == case.blocks


def test_the_replay_at_an_instant(case: NotebookCase) -> None:
    times = case.writes.loc[case.writes["interval"] == 1, "time"]
    early = case.replay().at(times.iloc[2], 1)
    late = case.replay().at(times.max(), 1)
    assert early.master.issubset(late.master)
    assert late.master == case.intervals[1].master
    assert early.carry == late.carry == case.intervals[1].carry


def test_the_images_are_those_of_the_case(case: NotebookCase) -> None:
    each = case.intervals[1]
    with each.snapshot_image() as before, each.stored_image() as after:
        changed = differing(before, after, case.granularity)
    assert each.snapshot is not None and changed.any()
    assert changed.issubset(each.snapshot)


def test_the_excluded_files_have_extents(case: NotebookCase) -> None:
    table = case.excluded
    assert {"k", "path", "inode", "kind", "physical", "length", "size", "gone"} <= set(table)
    assert sorted(table["k"].unique()) == [0, 1, 2, 3, 4]
    page = table[(table["path"] == "/pagefile.sys") & (table["k"] == 1)]
    assert page["length"].sum() == 262_144
    assert page["size"].unique().tolist() == [262_144]
    with case.intervals[1].snapshot_image() as image:
        offset = int(page["physical"].iloc[0])
        assert image.read(offset, 40) == factory.text(22, 40)


def test_an_audit_shows_itself_as_a_table(case: NotebookCase, tmp_path: Path) -> None:
    audit = case.audit(out=tmp_path / "out")
    assert audit.holds
    assert "<table" in audit._repr_html_()
    assert (tmp_path / "out" / "report.html").is_file()
    # the plan that the facade shows is the one that the audit made
    for each, backup in zip(case.intervals, audit.backups, strict=True):
        if each.kept:
            assert backup.plan is not None
            assert each.plan.copied == backup.plan.copied
            assert each.plan.zeroed == backup.plan.zeroed
    with pytest.raises(InputError, match="exists"):
        case.audit(out=tmp_path / "out")


@pytest.mark.parametrize("name", sorted(WRONG_RULES))
def test_a_wrong_rule_fails_a_check(case: NotebookCase, name: str) -> None:
    audit = case.audit(rules=WRONG_RULES[name])
    assert not audit.holds


def test_an_audit_without_a_place_leaves_nothing(path: Path) -> None:
    case = cbtlab.open_case(path)
    audit = case.audit()
    folder = audit.out.parent
    assert folder.is_dir()
    del audit, case
    assert not folder.exists()


@pytest.mark.parametrize("k", [0, 1, 3, 4])
def test_every_picture_can_be_drawn(case: NotebookCase, k: int) -> None:
    for draw in (case.plot_merge, case.plot_blocks, case.plot_excluded):
        if k or draw != case.plot_merge:
            assert draw(k)._repr_png_().startswith(b"\x89PNG")


def test_the_writes_are_drawn(case: NotebookCase) -> None:
    assert case.plot_writes()._repr_png_().startswith(b"\x89PNG")


def test_examples_are_found_beside_the_package(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cbtlab.notebook.DATASETS", path.parent)
    assert cbtlab.load_example("case").blocks == 2048
    for wrong in ("nothing", "../case", "", "/etc", "."):
        with pytest.raises(InputError, match="there are case"):
            cbtlab.load_example(wrong)
    monkeypatch.setattr("cbtlab.notebook.DATASETS", path.parent / "none")
    with pytest.raises(InputError, match="clone the repository"):
        cbtlab.load_example("case")


def test_nothing_of_pyplot_is_used(case: NotebookCase) -> None:
    """Figures that pyplot knows stay in memory until somebody closes them."""
    import sys

    case.plot_blocks(1)
    pyplot = sys.modules.get("matplotlib.pyplot")
    assert pyplot is None or pyplot.get_fignums() == []
