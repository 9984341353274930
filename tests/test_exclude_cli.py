"""The commands that take rules: ``rules``, ``dry-run``, and ``case add``."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import factory
import pytest

from cbtlab import cli
from cbtlab.exclude import rule_sets

pytestmark = pytest.mark.skipif(
    bool(factory.missing_tools()), reason=f"needs {', '.join(factory.missing_tools())}"
)
CASE = Path(__file__).parent.parent / "datasets" / "ext4-office"


class Answer(NamedTuple):
    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@pytest.fixture
def cbtlab(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Answer]:
    """Call a command as the shell would."""

    def call(*words: object) -> Answer:
        monkeypatch.setattr(sys, "argv", ["cbtlab", *map(str, words)])
        capsys.readouterr()
        try:
            cli.main()
            code = 0
        except SystemExit as leave:
            code = leave.code if isinstance(leave.code, int) else 0
        told = Answer(code, *capsys.readouterr())
        if code == 2:
            assert told.err.startswith("cbtlab: ") and told.err.count("\n") == 1, told.err
            assert told.out == ""
        return told

    return call


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("image")
    (folder / "tree" / "tmp").mkdir(parents=True)
    (folder / "tree" / "tmp" / "big").write_bytes(b"x" * 200_000)
    (folder / "tree" / "swapfile").write_bytes(b"y" * 50_000)
    (folder / "tree" / "kept").write_bytes(b"z" * 9_000)
    factory.Volume.make(folder / "disk.img", folder / "tree", 32 << 20, 4096)
    return folder / "disk.img"


def test_the_sets_are_listed_and_shown(cbtlab: Callable[..., Answer]) -> None:
    listed = cbtlab("rules", "list", "--json")
    assert [one["name"] for one in listed.json["sets"]] == list(rule_sets())
    assert listed.err == ""
    assert all({"name", "title", "description"} == set(one) for one in listed.json["sets"])
    shown = cbtlab("rules", "show", "trash", "--json").json
    assert {"name", "title", "description", "sources", "patterns"} == set(shown)
    assert "/.Trashes/" in cbtlab("rules", "show", "trash").out.splitlines()
    unknown = cbtlab("rules", "show", "rubbish", "--json")
    assert unknown.status == 2 and "there are browser-caches" in unknown.err


def test_a_shown_set_can_be_given_as_a_file(
    cbtlab: Callable[..., Answer], image: Path, tmp_path: Path
) -> None:
    (tmp_path / "rules").write_text(cbtlab("rules", "show", "temporary").out)
    one = cbtlab("dry-run", image, "--exclude-from", tmp_path / "rules", "--json").json
    other = cbtlab("dry-run", image, "--set", "temporary", "--json").json
    keys = ("names", "freed_bytes", "copied_with_rules")
    assert [one["backups"][0][key] for key in keys] == [other["backups"][0][key] for key in keys]
    assert one["backups"][0]["names"] == 1


def test_a_dry_run_of_an_image(cbtlab: Callable[..., Answer], image: Path) -> None:
    before = image.read_bytes()
    words = ["--set", "linux-swap", "--exclude", "* [size>100K]", "--exclude", "!kept"]
    (backup,) = cbtlab("dry-run", image, *words, "--json").json["backups"]
    assert {file["path"]: file["rule"] for file in backup["files"]} == {
        "/swapfile": "/swapfile",
        "/tmp/big": "* [size>100K]",
    }
    assert backup["bytes"] == 250_000 and backup["freed_bytes"] == (13 + 49) * 4096
    assert backup["units_saved"] == 62 and backup["kind"] == "full"
    assert backup["sets"] == [
        {"set": "linux-swap", "names": 1, "bytes": 50_000, "freed_bytes": 13 * 4096, "units": 13}
    ]
    text = cbtlab("dry-run", image, *words).out
    assert "set linux-swap: 1 names, 48.8 KiB" in text
    assert image.read_bytes() == before


def test_a_dry_run_of_a_case(cbtlab: Callable[..., Answer]) -> None:
    own = cbtlab("dry-run", CASE, "--json").json
    assert [backup["k"] for backup in own["backups"]] == [0, 1, 2, 3, 4, 5]
    assert own["backups"][0]["instant"].startswith("2026-11-")
    thrown = own["backups"][3]
    assert not thrown["kept"] and thrown["units_saved"] is None and thrown["names"] > 0
    text = cbtlab("dry-run", CASE, "--exclude", "*.svg [age<1y]").out
    assert "the full would store" in text and "[at=2026-11-" in text


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--exclude", "* [siez>1]"], "is no condition"),
        (["--set", "rubbish"], "is not known"),
        (["--exclude", "* [age>1d]", "--instant", "noon"], "is no instant"),
        (["--exclude-from", "/nowhere"], "/nowhere"),
        (["--exclude", "x", "--offset", "512"], "holds no file system"),
        ([], "no rule is given"),
        (["--exclude", "* [owner=S-1-5-18]"], "no SIDs"),
    ],
)
def test_what_cannot_be_used_is_one_line(
    cbtlab: Callable[..., Answer], image: Path, words: list[str], told: str
) -> None:
    answer = cbtlab("dry-run", image, *words, "--json")
    assert answer.status == 2
    assert told in answer.err


def test_a_case_takes_sets_conditions_and_the_instant(
    cbtlab: Callable[..., Answer], image: Path, tmp_path: Path
) -> None:
    case = tmp_path / "case"
    size = ["--volume-size", "32M", "--granularity", "4K"]
    assert cbtlab("case", "create", case, *size).status == 0
    images = ["--snapshot", image, "--stored", image]
    words = ["case", "add", case, *images, "--set", "linux-swap", "--exclude", "* [age>1d]"]
    refused = cbtlab(*words)
    assert refused.status == 2 and "give it with --instant" in refused.err
    assert cbtlab(*words, "--instant", "2026-01-05T08:00:00Z").status == 0
    (backup,) = cbtlab("case", "show", case, "--json").json["intervals"]
    assert backup["patterns"][-1] == "* [age>1d] [at=2026-01-05T08:00:00Z]"
    assert backup["sets"] == [{"name": "linux-swap", "first": 0, "count": 8}]
    assert backup["instant_ns"] == 1_767_600_000_000_000_000
    shown = cbtlab("case", "show", case).out
    assert "excludes set linux-swap, * [age>1d]" in shown
