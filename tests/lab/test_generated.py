"""The generated case: what it promises, in a small size; and that its audit holds."""

from __future__ import annotations

import shutil
from pathlib import Path

import factory
import numpy as np
import pytest

from cbtlab import audit
from cbtlab.case import Case
from cbtlab.errors import InputError
from cbtlab.exclude import match
from cbtlab.files import map_volume
from cbtlab.lab import generated
from cbtlab.lab.generated import PATTERNS, generate

COUNT = 440


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    if missing := [
        name for name in ("mke2fs", "debugfs") if not shutil.which(name, path=factory.PATH)
    ]:
        pytest.skip(f"needs {', '.join(missing)} (Debian: e2fsprogs)")
    return generate(tmp_path_factory.mktemp("many") / "case", COUNT)


def test_every_check_of_its_audit_holds(case: Case, tmp_path: Path) -> None:
    assert case.verify() == []
    found = audit.run(case, tmp_path / "out")
    assert found.holds
    assert [len(backup.checks) for backup in found.backups] == [8, 8]


def test_it_has_as_many_files_as_were_asked_for_and_one_in_ten_is_excluded(case: Case) -> None:
    for interval in case.intervals:
        with interval.snapshot() as before, interval.stored() as after:
            names, left = map_volume(before).names, map_volume(after).names
        files = names[names["type"] == "file"]
        assert len(files) == COUNT
        named = np.asarray(match(list(PATTERNS), files))
        assert COUNT // 12 <= named.sum() <= COUNT // 8
        assert (left["type"] == "file").sum() == COUNT - named.sum()


def test_a_seed_gives_the_same_names_and_content(case: Case, tmp_path: Path) -> None:
    with generate(tmp_path / "again", COUNT).intervals[1].snapshot() as image:
        again = contents(map_volume(image))
    with case.intervals[1].snapshot() as image:
        assert contents(map_volume(image)) == again
    with generate(tmp_path / "other", COUNT, seed=7).intervals[1].snapshot() as image:
        assert contents(map_volume(image)) != again


def contents(volume: object) -> dict[str, bytes]:
    names = volume.names  # type: ignore[attr-defined]
    files = names[names["type"] == "file"]
    read = volume.read_file  # type: ignore[attr-defined]
    return {path: read(inode) for path, inode in zip(files["path"], files["inode"], strict=True)}


def test_a_missing_program_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generated, "_PLACES", "")
    with pytest.raises(InputError, match="mke2fs: is missing; install e2fsprogs"):
        generate(tmp_path / "case", 10)
