"""The comparison of audits with what is expected, and the shipped cases themselves."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from cbtlab.errors import InputError
from cbtlab.lab import regression
from cbtlab.lab.laboratory import folder

FOUND = {"holds": True, "intervals": [{"k": 0, "copied": 5, "checks": {"kept": {"holds": True}}}]}


@pytest.fixture
def case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(regression, "audited", lambda case, policy: FOUND)
    return tmp_path


def test_what_was_written_by_update_is_as_expected(case: Path) -> None:
    assert regression.check(case, update=True) == []
    document = json.loads((case / "expected.json").read_text())
    assert sorted(document["policies"]) == ["allocated", "extents", "union"]
    assert regression.check(case) == []


def test_a_changed_number_is_named_by_its_place(case: Path) -> None:
    regression.check(case, ("union",), update=True)
    path = case / "expected.json"
    path.write_text(path.read_text().replace('"copied": 5', '"copied": 6'))
    assert regression.check(case) == ["union.intervals[0].copied: 5, expected 6"]
    ran = CliRunner().invoke(regression.main, [str(case)])
    assert ran.exit_code == 1
    assert "1 differences" in ran.output


@pytest.mark.parametrize("text", [None, "", "[]", '{"policies": 3}'])
def test_a_damaged_or_missing_expectation_is_refused(case: Path, text: str | None) -> None:
    if text is not None:
        (case / "expected.json").write_text(text)
    with pytest.raises(InputError, match="--update"):
        regression.check(case)
    assert CliRunner().invoke(regression.main, [str(case)]).exit_code == 2


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ext4-office", "ext4-broken"])
def test_the_shipped_cases_are_as_expected(name: str) -> None:
    assert regression.check(folder() / name) == []
