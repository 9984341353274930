"""complete, restorable, unbroken, minimal: faults of the chain and of what it restores."""

from __future__ import annotations

from pathlib import Path

import factory
import pytest
from judged import failing, judged, verdict

from cbtlab.audit import backup as auditing
from cbtlab.audit.rules import WRONG_RULES
from cbtlab.checks import restorable
from cbtlab.checks.unbroken import link_number
from cbtlab.manifest import Fault


def test_the_wrong_rules_each_fail(office: factory.Recording, tmp_path: Path) -> None:
    """What looks right and is not: each loses bytes that check 1 finds, of the file it names."""
    found = {
        name: judged(office, tmp_path / str(n), rules=rules)
        for n, (name, rules) in enumerate(WRONG_RULES.items())
    }
    wrong = {name: failing(audit) for name, audit in found.items()}
    assert all("complete" in checks[max(checks)] for checks in wrong.values())
    # the delete on the base's snapshot shows in the folder whose rule was dropped
    no_carry = found["no carry-over"]
    assert "complete" in wrong["no carry-over"][4]
    assert "/old" in {entry["path"] for entry in verdict(no_carry, 4, "complete").evidence}
    # a file moved out of an excluded folder, and never written
    assert {"complete", "kept", "minimal"} <= wrong["only written"][1] | {"minimal"}
    lost = verdict(found["only written"], 1, "kept").evidence
    assert "/docs/a.bin" in {entry["path"] for entry in lost}
    # a rule was added, and the blocks it drops were never written
    assert {"complete", "excluded"} <= wrong["zero only written"][3]


def test_bytes_stored_wrongly_are_not_minimal_either(
    office: factory.Recording, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A unit that differs from the base, and was neither stored nor zeroed."""
    true = auditing.restore

    def wrong(chain: object, k: int, to: Path) -> None:
        true(chain, k, to)  # type: ignore[arg-type]
        if k == 3:
            with to.open("r+b") as file:
                file.seek(4096 * 1999 + 5)
                file.write(b"#")

    monkeypatch.setattr(auditing, "restore", wrong)
    found = judged(office, tmp_path)
    check = verdict(found, 3, "minimal")
    assert check.holds is False and [entry["block"] for entry in check.evidence] == [1999]
    shown = verdict(found, 3, "complete")
    assert shown.evidence[0]["note"] == "not held, and not zero"


def test_the_checkers_fault_is_told(spoiled: factory.Recording, tmp_path: Path) -> None:
    spoiled.backups[1].stored.debugfs("set_inode_field /docs/report.txt links_count 3")
    spoiled.trace()
    check = verdict(judged(spoiled, tmp_path), 1, "restorable")
    assert check.holds is False and "e2fsck finds faults" in check.summary
    assert any("ref count is 3, should be 1" in entry["note"] for entry in check.evidence)


def test_without_a_checker_nothing_is_judged(
    office: factory.Recording, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(restorable_module(), "tool", lambda name: None)
    check = verdict(judged(office, tmp_path), 0, "restorable")
    assert check.holds is None
    assert "e2fsck is not on this machine" in check.summary
    assert "qemu-img is not on this machine" in check.summary


def restorable_module() -> object:
    import sys

    return sys.modules[restorable.__module__]


def test_a_flipped_bit_in_a_link_is_named(
    office: factory.Recording, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    true = auditing.verify

    def flipped(folder: Path) -> list[Fault]:
        path = folder / "0001.qcow2"
        data = bytearray(path.read_bytes())
        data[-100] ^= 4
        path.write_bytes(data)
        return true(folder)

    monkeypatch.setattr(auditing, "verify", flipped)
    found = judged(office, tmp_path)
    assert failing(found) == {1: {"unbroken"}}
    check = verdict(found, 1, "unbroken")
    assert check.evidence[0]["link"].startswith("0001.qcow2")
    assert "0001.qcow2" in check.summary


def test_a_link_that_is_damaged_before_it_is_restored(
    office: factory.Recording, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    true = auditing.restore

    def damaged(chain: object, k: int, to: Path) -> None:
        if k == 4:
            path = chain.path / "0003.qcow2"  # type: ignore[attr-defined]
            data = path.read_bytes()
            path.write_bytes(data[: len(data) // 2])
        true(chain, k, to)  # type: ignore[arg-type]

    monkeypatch.setattr(auditing, "restore", damaged)
    found = judged(office, tmp_path)
    assert failing(found) == {3: {"unbroken"}, 4: {"complete", "restorable"}}
    assert "0003.qcow2" in verdict(found, 4, "complete").summary


@pytest.mark.parametrize(
    ("piece", "k"),
    [
        ("0003.qcow2", 3),
        ("0012.held.bits", 12),
        ("links[2] 0002.qcow2", 2),
        ("chain.json", None),
        ("12345.qcow2", 12345),
    ],
)
def test_a_fault_belongs_to_its_link(piece: str, k: int | None) -> None:
    assert link_number(Fault(piece, "is missing")) == k


def test_surplus_adds_up(office: factory.Recording, tmp_path: Path) -> None:
    for entry in judged(office, tmp_path).document()["intervals"]:
        if entry["copied"] is not None:
            beyond = entry["copied"] + entry["zeroed"] - entry["least"]
            # what is zeroed may also be zero already: that is no surplus of C_k
            assert 0 <= beyond - sum(entry["surplus"].values()) <= entry["zeroed"]
