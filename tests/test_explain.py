"""explain: the story of a block agrees with the audit's chain, for every block."""

from __future__ import annotations

import json
from pathlib import Path

import factory
import pytest
from click.testing import CliRunner

from cbtlab import audit
from cbtlab.case import Case
from cbtlab.cli import cli
from cbtlab.errors import InputError
from cbtlab.explain import explain, text


def block_of(recording: factory.Recording, k: int, name: str, at: int = 0) -> int:
    """Return the block of the case that holds a file's block on S_k."""
    volume = recording.backups[k].snapshot
    return volume.blocks(name)[at] * 1024 // recording.granularity


def test_a_written_block(office: factory.Recording, office_case: Case) -> None:
    block = block_of(office, 3, "/docs/reuse.bin", 8)
    found = explain(office_case, 3, block)
    assert found["block"] == block and found["offset"] == block * 4096
    assert found["length"] == 4096
    assert found["owner"] == "/docs/reuse.bin"
    assert found["in"] == {"physical": True, "snapshot": False, "carry": False, "master": True}
    assert found["decision"] == "copied"
    assert "the running system wrote it" in found["reason"]
    (write,) = found["writes"]
    assert write["op"] == "write" and write["volume"] == "physical" and write["interval"] == 3
    assert write["offset"] <= found["offset"] < write["offset"] + write["length"]
    assert write["comm"] in ("postgres", "kworker/u4:1", "writer") and write["pid"] >= 300


def test_a_block_that_came_in_without_a_write(office: factory.Recording, office_case: Case) -> None:
    found = explain(office_case, 1, block_of(office, 1, "/docs/a.bin", 8))
    assert found["owner"] == "/docs/a.bin" and found["decision"] == "copied"
    assert not found["in"]["master"] and found["writes"] == []
    assert "the base did not hold" in found["reason"]


def test_a_block_that_was_dropped_without_a_write(
    office: factory.Recording, office_case: Case
) -> None:
    found = explain(office_case, 3, block_of(office, 3, "/docs/draft.tmp", 8))
    assert found["decision"] == "zeroed" and found["excluded"] == "/docs/draft.tmp"
    assert "the excluded file /docs/draft.tmp" in found["reason"]


def test_blocks_that_are_not_held(office: factory.Recording, office_case: Case) -> None:
    page = explain(office_case, 1, block_of(office, 1, "/pagefile.sys", 100))
    assert page["decision"] == "not held" and page["in"]["master"]
    assert "although it changed" in page["reason"] and "/pagefile.sys" in page["reason"]
    free = explain(office_case, 1, 2000)
    assert free["decision"] == "not held" and "nothing uses it" in free["reason"]
    reserved = explain(office_case, 3, block_of(office, 3, "/docs/reserved.dat", 8))
    assert reserved["decision"] == "not held" and "it is unwritten" in reserved["reason"]


def test_an_unchanged_block(office: factory.Recording, office_case: Case) -> None:
    found = explain(office_case, 3, block_of(office, 3, "/docs/report.txt", 8))
    assert found["decision"] == "unchanged" and found["owner"] == "/docs/report.txt"


@pytest.mark.parametrize("policy", ["allocated", "union"])
def test_the_decisions_are_the_chains(office_case: Case, tmp_path: Path, policy: str) -> None:
    plan = audit.run(office_case, tmp_path / "out", policy).backups[3].plan
    assert plan is not None
    blocks = {*plan.copied.indices()[:3].tolist(), *plan.zeroed.indices()[:3].tolist(), 1, 2000}
    for block in blocks:
        assert explain(office_case, 3, block, policy)["decision"] == plan.decision(block)


def test_the_first_backup_is_full(office_case: Case) -> None:
    found = explain(office_case, 0, 0)
    assert found["decision"] == "copied" and "a full one (the first backup)" in found["reason"]
    assert found["in"]["master"] is True and found["in"]["physical"] is False


@pytest.mark.parametrize(("k", "block"), [(9, 0), (1, 2048), (1, 1 << 60)])
def test_what_is_not_there_is_refused(office_case: Case, k: int, block: int) -> None:
    with pytest.raises(InputError):
        explain(office_case, k, block)


def test_the_command(office_case: Case) -> None:
    arguments = ["explain", str(office_case.path), "--interval", "3", "--block", "0"]
    words = CliRunner().invoke(cli, arguments)
    assert words.exit_code == 0 and "copied: Stored:" in words.output
    document = json.loads(CliRunner().invoke(cli, [*arguments, "--json"]).output)
    assert document == json.loads(json.dumps(explain(office_case, 3, 0)))
    assert text(document).splitlines()[0] in words.output
