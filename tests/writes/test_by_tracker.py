"""One recording of several volumes: whose each row is, and what was lost of all."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
from click.testing import CliRunner
from stream_parts import described
from streams import event, stream

from cbtlab.cli import cli
from cbtlab.errors import InputError
from cbtlab.writes import save_writes
from cbtlab.writes.by_tracker import is_stream, read_by_tracker

EVENTS = [
    event(1, 0, 512),
    described(3, name=b"other"),
    event(2, 0, 1024, tracker=3),
    event(5, 512, 512),
    event(6, 0, 512, tracker=7),
]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    made = tmp_path / "multi.cbt"
    made.write_bytes(stream(EVENTS, next_seq=8))
    return made


def test_each_row_says_whose_it_is(path: Path, tmp_path: Path) -> None:
    frame, summary = read_by_tracker(path)
    assert frame["tracker"].tolist() == [1, 3, 1, 7]
    assert frame["name"].tolist() == ["origin", "other", "origin", ""]
    assert frame["seq"].tolist() == [1, 2, 5, 6]
    assert (summary["rows"], summary["lost"], summary["gaps"]) == (4, 3, 2)
    assert [(one["id"], one["role"], one["events"]) for one in summary["trackers"]] == [
        (1, "physical", 2), (2, "snapshot", 0), (3, "physical", 1), (7, None, 1),
    ]  # fmt: skip
    assert len(frame.attrs["notes"]) == 2
    assert is_stream(path)
    for name in ("multi.csv", "multi.parquet"):
        save_writes(frame, tmp_path / name)
        assert not is_stream(tmp_path / name)
    saved = pd.read_csv(tmp_path / "multi.csv", keep_default_na=False)
    assert saved["tracker"].tolist() == [1, 3, 1, 7]
    assert saved["name"].tolist() == ["origin", "other", "origin", ""]
    assert pd.read_parquet(tmp_path / "multi.parquet")["name"].tolist() == saved["name"].tolist()


def test_one_tracker_is_taken_and_no_other_is_lost(path: Path) -> None:
    frame, summary = read_by_tracker(path, tracker=1)
    assert frame["offset"].tolist() == [0, 512]
    assert (summary["rows"], summary["bytes"], summary["lost"], summary["gaps"]) == (2, 1024, 3, 2)
    assert frame.attrs["notes"] == []
    frame, summary = read_by_tracker(path, tracker=2)
    assert (len(frame), summary["rows"], summary["lost"]) == (0, 0, 3)
    with pytest.raises(InputError, match=r"has no tracker 9.*1 \(origin\).*7 \(unknown\)"):
        read_by_tracker(path, tracker=9)


def test_the_command_takes_one_tracker(path: Path) -> None:
    done = CliRunner().invoke(cli, ["writes", str(path), "--tracker", "3", "--json"])
    assert done.exit_code == 0
    assert json.loads(done.stdout)["rows"] == 1
    done = CliRunner().invoke(cli, ["writes", str(path), "--tracker", "9"])
    assert "has no tracker 9" in str(done.exception)
