"""Deleting excluded files below a folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from cbtlab.record.mounted import delete


def test_only_what_is_excluded_goes(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    for name in ("a", "b", "folder/a"):
        (tmp_path / name).write_bytes(b"123")
    gone = delete(tmp_path, lambda path: path.endswith("a"))
    assert sorted((one.path, one.size) for one in gone) == [("/a", 3), ("/folder/a", 3)]
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["b", "folder"]


def test_a_folder_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()

    def excluded(path: str) -> bool:
        (tmp_path / "folder").rmdir()
        return False

    with pytest.raises(FileNotFoundError):
        delete(tmp_path, excluded)
