"""The command line as it is promised: exit statuses, JSON, one line for what cannot be used."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import factory
import numpy as np
import pytest

from cbtlab import cli
from cbtlab.errors import InputError
from cbtlab.units import parse_size

pytestmark = pytest.mark.skipif(
    bool(factory.missing_tools()), reason=f"needs {', '.join(factory.missing_tools())}"
)
CHECKS = [
    "complete",
    "tracked",
    "consistent",
    "excluded",
    "kept",
    "restorable",
    "unbroken",
    "minimal",
]


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
        captured = capsys.readouterr()
        answer = Answer(code, captured.out, captured.err)
        assert "Traceback" not in answer.err
        if code == 2:
            assert answer.err.startswith("cbtlab: ") and answer.err.count("\n") == 1, answer.err
            if "--json" in words:
                assert answer.out == ""
        return answer

    return call


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> factory.Recording:
    return factory.office(tmp_path_factory.mktemp("office"))


@pytest.fixture(scope="module")
def made(recording: factory.Recording, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A case made by the commands alone, from CSV and bitmaps."""
    folder = tmp_path_factory.mktemp("made")
    case = folder / "case"
    program = [sys.executable, "-m", "cbtlab", "case"]
    size = ["--volume-size", str(recording.size), "--granularity", "4K"]
    subprocess.run([*program, "create", str(case), *size], check=True, capture_output=True)
    for k, backup in enumerate(recording.backups):
        words = ["--snapshot", str(backup.snapshot.path), "--stored", str(backup.stored.path)]
        for volume, name in (("physical", "physical"), ("snapshot", "snapshot-writes")):
            if volume in backup.writes:
                csv = folder / f"{k}-{volume}.csv"
                frame = backup.writes[volume]
                frame = frame.assign(time=frame["time"].astype("int64"))
                frame[["time", "op", "offset", "length", "seq", "pid", "comm"]].to_csv(
                    csv, index=False
                )
                words += [f"--{name}", str(csv)]
        rules = folder / "rules"
        rules.write_text("\n".join(backup.patterns))
        words += ["--exclude-from", str(rules)] if k % 2 else []
        words += [] if k % 2 else [w for rule in backup.patterns for w in ("--exclude", rule)]
        words += [] if backup.kept else ["--not-kept"]
        subprocess.run([*program, "add", str(case), *words], check=True, capture_output=True)
    return case


@pytest.fixture(scope="module")
def audited(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("audited") / "out"
    words = ["audit", str(made), "--out", str(out), "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "cbtlab", *words], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(done.stdout) == json.loads((out / "audit.json").read_text())
    return out


def test_an_audit_has_the_promised_keys(audited: Path) -> None:
    document = json.loads((audited / "audit.json").read_text())
    assert {"case", "policy", "granularity", "volume_blocks", "holds", "intervals"} <= set(document)
    assert document["holds"] is True and document["policy"] == "allocated"
    assert sorted(path.name for path in audited.iterdir()) == ["audit.json", "chain", "report.html"]
    counts = {"physical", "snapshot", "carry", "master", "excluded", "copied", "joined", "zeroed"}
    counts |= {"least", "surplus", "bytes_stored", "checks", "k", "kept", "base", "kind"}
    for k, interval in enumerate(document["intervals"]):
        assert counts <= set(interval) and interval["k"] == k
        assert [check["name"] for check in interval["checks"]] == CHECKS
        for check in interval["checks"]:
            assert set(check) >= {"name", "holds", "summary", "evidence", "evidence_total"}
            assert len(check["evidence"]) <= 100
        if interval["kept"]:
            units = interval["copied"] - sum(interval["surplus"].values())
            assert 0 <= units <= interval["least"] <= interval["copied"] + interval["zeroed"]
    assert [i["kept"] for i in document["intervals"]] == [True, True, False, True, True]
    assert [i["base"] for i in document["intervals"]] == [None, 0, 1, 1, 3]
    assert [i["kind"] for i in document["intervals"] if i["kept"]] == ["full"] + ["incremental"] * 3


def test_the_counts_are_those_of_a_slow_replay(audited: Path, recording: factory.Recording) -> None:
    """Sets of blocks, from the recording itself."""

    def blocks(k: int, volume: str) -> set[int]:
        rows = recording.backups[k].writes[volume]
        return {
            block
            for offset, length in zip(rows["offset"], rows["length"], strict=True)
            for block in range(offset // 4096, (offset + length - 1) // 4096 + 1)
        }

    intervals = json.loads((audited / "audit.json").read_text())["intervals"]
    for k, base in ((1, 0), (2, 1), (3, 1), (4, 3)):
        physical = set().union(*(blocks(i, "physical") for i in range(base + 1, k + 1)))
        snapshot, carry = blocks(k, "snapshot"), blocks(base, "snapshot")
        found = [intervals[k][name] for name in ("physical", "snapshot", "carry", "master")]
        master = physical | snapshot | carry
        assert found == [len(physical), len(snapshot), len(carry), len(master)]


@pytest.mark.parametrize("policy", ["extents", "union"])
def test_the_other_policies_hold_too(
    cbtlab: Callable[..., Answer], made: Path, tmp_path: Path, policy: str
) -> None:
    answer = cbtlab("audit", made, "--out", tmp_path / "out", "--policy", policy, "--json")
    assert answer.status == 0
    for interval in answer.json["intervals"]:
        verdicts = {check["name"]: check["holds"] for check in interval["checks"]}
        assert verdicts["excluded"] is None
        assert not interval["kept"] or verdicts["complete"] is True


def test_an_existing_output_is_kept_without_force(
    cbtlab: Callable[..., Answer], made: Path, audited: Path
) -> None:
    before = (audited / "audit.json").read_bytes()
    assert cbtlab("audit", made, "--out", audited, "--json").status == 2
    assert (audited / "audit.json").read_bytes() == before


def test_the_folder_is_the_last_line(
    cbtlab: Callable[..., Answer], made: Path, tmp_path: Path
) -> None:
    answer = cbtlab("audit", made, "--out", tmp_path / "o")
    assert answer.status == 0 and answer.out.splitlines()[-1] == str(tmp_path / "o")


def test_a_missed_bit_is_status_1(
    cbtlab: Callable[..., Answer], recording: factory.Recording, tmp_path: Path
) -> None:
    spoiled = recording.copy(tmp_path / "spoiled")
    old, new = (recording.backups[k].snapshot.path.read_bytes() for k in (0, 1))
    changed = np.flatnonzero(
        (np.frombuffer(old, np.uint8) != np.frombuffer(new, np.uint8)).reshape(-1, 4096).any(axis=1)
    )
    block = int(changed[len(changed) // 2])
    spoiled.drop_writes(1, "physical", block)
    case = spoiled.case(tmp_path / "case", bitmaps=False)
    answer = cbtlab("audit", case.path, "--out", tmp_path / "out", "--json")
    assert answer.status == 1
    tracked = answer.json["intervals"][1]["checks"][1]
    assert tracked["name"] == "tracked" and tracked["holds"] is False
    assert block in [row.get("block") for row in tracked["evidence"]]


def test_replay_saves_bitmaps_that_add_up(
    cbtlab: Callable[..., Answer], made: Path, tmp_path: Path
) -> None:
    answer = cbtlab("replay", made, "--interval", 3, "--to", tmp_path / "bits", "--json")
    document = answer.json
    assert {"interval", "until", "volume_size", "granularity", "blocks"} <= set(document)
    bits = {
        name: np.unpackbits(
            np.fromfile(tmp_path / "bits" / f"{name}.bits", np.uint8), bitorder="little"
        )
        for name in ("physical", "snapshot", "carry", "master")
    }
    for name, values in bits.items():
        assert len(values) == -(-document["blocks"] // 8) * 8
        assert int(values.sum()) == document[name]
    assert ((bits["physical"] | bits["snapshot"] | bits["carry"]) == bits["master"]).all()
    assert json.loads((tmp_path / "bits" / "replay.json").read_text()) == document


def test_until_is_inclusive(
    cbtlab: Callable[..., Answer], made: Path, recording: factory.Recording
) -> None:
    rows = recording.backups[1].writes["physical"]
    instant = int(rows["time"].astype("int64").iloc[len(rows) // 2])
    until = rows[rows["time"].astype("int64") <= instant]
    answer = cbtlab("replay", made, "--interval", 1, "--until", instant, "--json").json
    assert answer["physical"] == until.writes.bitmap(recording.size, 4096).count()
    earlier = cbtlab("replay", made, "--interval", 1, "--until", instant - 1, "--json").json
    assert earlier["physical"] < answer["physical"]
    assert earlier["carry"] == answer["carry"]


def test_writes_reads_a_case_and_converts(
    cbtlab: Callable[..., Answer], made: Path, tmp_path: Path
) -> None:
    first = cbtlab("writes", made, "--to", tmp_path / "w.parquet", "--json")
    assert first.status == 0
    second = cbtlab("writes", tmp_path / "w.parquet", "--to", tmp_path / "w.csv", "--json")
    third = cbtlab("writes", tmp_path / "w.csv", "--json")
    assert first.json == second.json == third.json
    assert set(first.json) == {
        "rows", "first", "last", "ops", "bytes", "skipped", "lost", "gaps",
    }  # fmt: skip
    assert cbtlab("writes", made, "--to", tmp_path / "w.csv").status == 2


def test_a_chain_stands_by_itself(
    cbtlab: Callable[..., Answer], audited: Path, recording: factory.Recording, tmp_path: Path
) -> None:
    chain = tmp_path / "elsewhere"
    shutil.copytree(audited / "chain", chain)
    assert [link["k"] for link in cbtlab("chain", "show", chain, "--json").json["links"]] == [
        0, 1, 3, 4,
    ]  # fmt: skip
    assert cbtlab("chain", "verify", chain, "--json").json == {"holds": True, "faults": []}
    target = tmp_path / "r.img"
    assert cbtlab("chain", "restore", chain, "--at", 4, "--to", target).status == 0
    assert target.stat().st_size == recording.size
    assert cbtlab("chain", "restore", chain, "--at", 4, "--to", target).status == 2
    assert cbtlab("chain", "restore", chain, "--at", 4, "--to", target, "--force").status == 0
    assert cbtlab("chain", "restore", chain, "--at", 2, "--to", tmp_path / "x").status == 2
    assert not (tmp_path / "x").exists()
    subprocess.run([shutil.which("e2fsck", path=factory.PATH), "-fn", target], check=True)
    data = bytearray((chain / "0003.qcow2").read_bytes())
    data[len(data) // 2] ^= 16
    (chain / "0003.qcow2").write_bytes(data)
    answer = cbtlab("chain", "verify", chain, "--json")
    assert answer.status == 1 and answer.json["holds"] is False
    assert "0003.qcow2" in [fault["piece"] for fault in answer.json["faults"]]
    assert cbtlab("chain", "restore", chain, "--at", 4, "--to", tmp_path / "x").status == 2
    assert not (tmp_path / "x").exists()


def test_files_lists_extents(cbtlab: Callable[..., Answer], recording: factory.Recording) -> None:
    image = recording.backups[3].snapshot
    document = cbtlab("files", image.path, "/docs/*", "--json").json
    listed = {entry["path"]: entry for entry in document["files"]}
    assert "/docs/database.db" in listed and "/cache/c.bin" not in listed
    blocks = [
        extent["physical"] // 1024 + at
        for extent in listed["/docs/database.db"]["extents"]
        for at in range(-(-extent["length"] // 1024))
        if extent["kind"] == "data"
    ]
    assert blocks == image.blocks("/docs/database.db")
    assert {e["kind"] for e in listed["/docs/reserved.dat"]["extents"]} == {"unwritten"}
    assert [e["kind"] for e in listed["/docs/shortcut"]["extents"]] == ["inline"]


def test_explain_tells_the_story_of_a_block(
    cbtlab: Callable[..., Answer], made: Path, recording: factory.Recording
) -> None:
    at = recording.backups[1].snapshot.blocks("/docs/database.db")[16] * 1024 // 4096
    document = cbtlab("explain", made, "--interval", 1, "--block", at, "--json").json
    assert {"block", "offset", "length", "writes", "owner", "in", "decision", "reason"} <= set(
        document
    )
    assert document["decision"] == "copied" and document["in"]["physical"] is True
    assert "/docs/database.db" in str(document["owner"])
    assert cbtlab("explain", made, "--interval", 1, "--block", 1 << 40).status == 2


@pytest.mark.parametrize(
    "words",
    [
        ["audit", "absent"],
        ["audit", "absent", "--json"],
        ["audit"],
        ["nonsense"],
        ["--nonsense"],
        ["case", "create", "new", "--volume-size", "10X", "--granularity", "4K"],
        ["case", "create", "new", "--volume-size", "1M", "--granularity", "3000"],
        ["case", "create", "new", "--volume-size", "1M"],
        ["case", "show", "."],
        ["case", "verify", ".", "--json"],
        ["chain", "verify", "."],
        ["chain", "show", "absent", "--json"],
        ["writes", "absent"],
        ["writes", "."],
        ["replay", "CASE", "--interval", "9", "--json"],
        ["replay", "CASE", "--interval", "-1"],
        ["replay", "CASE", "--interval", "1", "--until", "yesterday", "--json"],
        ["replay", "CASE", "--interval", "1", "--until", "2026-01-05T08:00:00"],
        ["explain", "CASE", "--interval", "77", "--block", "0", "--json"],
        ["files", "absent", "--json"],
        ["files", "/dev/null", "--json"],
        ["lab", "run", "nonsense", "--to", "new", "--json"],
    ],
)
def test_what_cannot_be_used_is_one_line_and_status_2(
    cbtlab: Callable[..., Answer],
    made: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cbtlab(*(str(made) if word == "CASE" else word for word in words)).status == 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "words",
    [
        [],
        *(
            [*words.split()]
            for words in (
                "audit", "case", "case create", "case add", "case show", "case verify", "writes",
                "replay", "files", "explain", "chain", "chain show", "chain verify",
                "chain restore", "lab", "lab list", "lab run",
            )
        ),
    ],
)  # fmt: skip
def test_every_command_has_help(cbtlab: Callable[..., Answer], words: list[str]) -> None:
    answer = cbtlab(*words, "--help")
    assert answer.status == 0 and "Usage: cbtlab" in answer.out


def test_damage_to_any_piece_of_a_case_stops_its_audit(
    cbtlab: Callable[..., Answer], made: Path, tmp_path: Path
) -> None:
    case = tmp_path / "case"
    shutil.copytree(made, case)
    for piece in sorted(path for path in case.rglob("*") if path.is_file()):
        good = piece.read_bytes()
        for bad in (b"", good[: len(good) // 2], good[:9] + bytes([good[9] ^ 1]) + good[10:]):
            piece.write_bytes(bad)
            assert cbtlab("case", "verify", case, "--json").status == 1, piece
            answer = cbtlab("audit", case, "--out", tmp_path / "out", "--json")
            assert answer.status == 2, piece
            assert piece.name in answer.err
            assert not (tmp_path / "out").exists()
        piece.write_bytes(good)


def test_a_reader_that_goes_away_is_no_traceback(made: Path) -> None:
    done = subprocess.run(
        f"{sys.executable} -m cbtlab case show {made} --json | true",
        shell=True,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    assert "Traceback" not in done.stderr


def shell(line: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        line.replace("cbtlab", f"{sys.executable} -m cbtlab", 1),
        shell=True,
        executable="/bin/bash",
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
    )


@pytest.mark.parametrize(
    ("words", "status"),
    [
        ("case show absent 2>&-", 2),
        ("case show absent 2>/dev/full", 2),
        ("case show CASE 2>&-", 0),
        ("writes CASE --to w.csv 2>/dev/full", 0),
        ("writes CASE --to v.csv 2>&-", 0),
        ("case show CASE --json >&-", 2),
        ("case show CASE >/dev/full", 2),
        ("case verify CASE >&- 2>&-", 2),
    ],
)
def test_streams_that_are_closed_or_full(
    made: Path, tmp_path: Path, words: str, status: int
) -> None:
    done = shell("cbtlab " + words.replace("CASE", str(made)), tmp_path)
    assert done.returncode == status and "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr and done.stderr.count("\n") <= 1


def test_the_end_by_sigterm_is_as_clean_as_ctrl_c(
    cbtlab: Callable[..., Answer], made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cbtlab.audit.backup import Auditor

    def end(self: Auditor, *words: object) -> None:
        assert any(path.name.startswith(".out-") for path in tmp_path.iterdir())
        os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(Auditor, "_store", end)
    answer = cbtlab("audit", made, "--out", tmp_path / "out")
    assert answer.status == 143 and answer.err == "cbtlab: terminated\n"
    assert list(tmp_path.iterdir()) == []
    assert signal.getsignal(signal.SIGTERM) is before


def test_what_nobody_foresaw_is_one_line(
    cbtlab: Callable[..., Answer], made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*words: object) -> None:
        raise ZeroDivisionError("one\ntwo")

    monkeypatch.setattr("cbtlab.case.Case.open", broken)
    answer = cbtlab("case", "show", made)
    assert answer.status == 2
    assert "an unexpected fault: ZeroDivisionError: one two; please report it" in answer.err


@pytest.mark.parametrize("words", [[], ["case"], ["chain"], ["lab"]])
def test_a_bare_group_prints_its_help(cbtlab: Callable[..., Answer], words: list[str]) -> None:
    answer = cbtlab(*words)
    assert answer.status == 0 and answer.err == ""
    assert answer.out == cbtlab(*words, "--help").out


def test_a_message_has_no_stray_stop(cbtlab: Callable[..., Answer]) -> None:
    assert cbtlab("case", "show").err.endswith("'CASE'; see 'cbtlab case show --help'\n")


@pytest.mark.parametrize(
    "option", ["--physical", "--physical-bitmap", "--snapshot-bitmap", "--exclude-from"]
)
def test_a_pipe_is_refused_and_not_waited_for(made: Path, tmp_path: Path, option: str) -> None:
    os.mkfifo(tmp_path / "pipe")
    image = made / "images" / "0000-stored.qcow2"
    case = tmp_path / "case"
    shutil.copytree(made, case)
    for words in (
        ["case", "add", case, "--snapshot", image, "--stored", image, option, tmp_path / "pipe"],
        ["writes", tmp_path / "pipe"],
        ["writes", "/dev/zero"],
    ):
        done = subprocess.run(
            [sys.executable, "-m", "cbtlab", *words],
            capture_output=True,
            text=True,
            check=False,
            timeout=20,
        )
        assert done.returncode == 2 and "is no regular file" in done.stderr


def test_an_instant_that_explain_prints_includes_its_event(
    cbtlab: Callable[..., Answer], tmp_path: Path
) -> None:
    """The time has nanoseconds that a stamp of microseconds would cut."""
    (tmp_path / "disk").write_bytes(bytes(1 << 20))
    (tmp_path / "w.csv").write_text("time,op,offset,length\n1700000000123456789,write,8192,4096\n")
    case = tmp_path / "case"
    size = ["--volume-size", "1M", "--granularity", "4K"]
    images = ["--snapshot", tmp_path / "disk", "--stored", tmp_path / "disk"]
    assert cbtlab("case", "create", case, *size).status == 0
    assert cbtlab("case", "add", case, *images).status == 0
    assert cbtlab("case", "add", case, *images, "--physical", tmp_path / "w.csv").status == 0
    words = ["--interval", 1, "--block", 2, "--policy", "union", "--json"]
    (row,) = cbtlab("explain", case, *words).json["writes"]
    assert row["time"] == "2023-11-14T22:13:20.123456789Z"
    assert cbtlab("writes", case, "--json").json["first"] == row["time"]
    until = cbtlab("replay", case, "--interval", 1, "--until", row["time"], "--json")
    assert until.json["physical"] == 1


@pytest.mark.parametrize("text", ["4 K", " 4K", "4KiB", "4KB", "4B", "4\u212a", "\u0664", "4K\n"])
def test_a_size_is_digits_and_one_letter(text: str) -> None:
    with pytest.raises(InputError):
        parse_size(text)
    assert parse_size("4K") == parse_size("4k") == 4096 and parse_size("3t") == 3 << 40
