"""consistent: sequence and bitmap agree, or the verdict says what cannot be shown."""

from __future__ import annotations

from pathlib import Path

import factory
import pytest
from judged import failing, judged, verdict

from cbtlab.writes.schema import FLAGS


def database_block(recording: factory.Recording) -> int:
    at = recording.backups[1].snapshot.blocks("/docs/database.db")
    return (at[16_384 // 1024] + 4) * 1024 // recording.granularity


def test_lost_events_cannot_be_shown(spoiled: factory.Recording, tmp_path: Path) -> None:
    block = database_block(spoiled)
    lost = spoiled.drop_writes(1, "physical", block)
    assert len(lost) == 1
    found = judged(spoiled, tmp_path)
    check = verdict(found, 1, "consistent")
    assert check.holds is False and "cannot be shown" in check.summary
    assert any(f"event {lost['seq'].iloc[0]} is missing" in e["note"] for e in check.evidence)
    assert all(entry["time"].startswith("2026-01-05T08") for entry in check.evidence)
    named = {entry["block"]: entry["path"] for entry in check.evidence if "block" in entry}
    assert named[block] == "/docs/database.db"
    # the tracker's bitmap still carries the incremental
    assert failing(found) == {1: {"consistent"}}
    assert found.document()["intervals"][1]["kind"] == "incremental"


def test_lost_events_without_a_bitmap_make_a_full_backup(
    spoiled: factory.Recording, tmp_path: Path
) -> None:
    spoiled.drop_writes(
        3, "physical", spoiled.backups[3].snapshot.blocks("/docs/reuse.bin")[4] // 4
    )
    for backup in spoiled.backups:
        backup.bitmaps.clear()
    found = judged(spoiled, tmp_path)
    entry = found.document()["intervals"][3]
    assert entry["kind"] == "full" and "missing" in entry["reason"]
    assert entry["master"] == found.case.blocks
    check = verdict(found, 3, "consistent")
    assert check.holds is False and "the link is a full backup" in check.summary
    assert verdict(found, 3, "complete").holds and verdict(found, 3, "restorable").holds


def test_a_bit_that_the_tracker_lacks_is_found(spoiled: factory.Recording, tmp_path: Path) -> None:
    block = database_block(spoiled)
    spoiled.backups[1].clear("physical", block)
    check = verdict(judged(spoiled, tmp_path), 1, "consistent")
    assert check.holds is False and check.evidence_total == 1
    assert check.evidence[0]["block"] == block
    assert check.evidence[0]["path"] == "/docs/database.db"
    assert "not marked by the tracker" in check.evidence[0]["note"]


def test_a_bit_that_no_event_explains_is_found(spoiled: factory.Recording, tmp_path: Path) -> None:
    rows = spoiled.backups[1].writes["physical"]
    spoiled.record(1, "physical", 4096 * 2000, 4096)
    spoiled.backups[1].writes["physical"] = rows  # the bit stays, its event does not
    found = judged(spoiled, tmp_path)
    check = verdict(found, 1, "consistent")
    assert check.holds is False
    assert [entry["block"] for entry in check.evidence] == [2000]
    assert failing(found) == {1: {"consistent"}}


@pytest.mark.parametrize("kind", ["bitmaps", "sequences"])
def test_one_record_alone_has_nothing_to_compare(
    office: factory.Recording, tmp_path: Path, kind: str
) -> None:
    found = judged(office, tmp_path, bitmaps=kind == "bitmaps", sequences=kind == "sequences")
    assert found.holds
    assert {verdict(found, k, "consistent").holds for k in range(5)} == {None}


def test_events_folded_across_an_instant_are_found(
    spoiled: factory.Recording, tmp_path: Path
) -> None:
    """A remainder in the first event of an interval is of an event of the interval before."""
    rows = spoiled.backups[4].writes["physical"].copy()
    early = spoiled.backups[3].writes["physical"].copy()
    flags, pid = rows["flags"].to_numpy(copy=True), 777
    flags[0] |= FLAGS["remainder"]
    rows["flags"] = flags
    rows["pid"] = [pid, *rows["pid"].tolist()[1:]]
    rows["pid"] = rows["pid"].astype("UInt32")
    early["pid"] = [*early["pid"].tolist()[:-1], pid]
    early["pid"] = early["pid"].astype("UInt32")
    spoiled.backups[4].writes["physical"], spoiled.backups[3].writes["physical"] = rows, early
    found = judged(spoiled, tmp_path)
    assert failing(found) == {4: {"consistent"}}
    assert "folded" in verdict(found, 4, "consistent").summary


def test_a_recorded_fault_makes_a_full_backup_and_says_so(
    spoiled: factory.Recording, tmp_path: Path
) -> None:
    spoiled.backups[2].unusable = ["physical: the volume was written past its end"]
    found = judged(spoiled, tmp_path)
    entry = found.document()["intervals"][3]
    assert entry["kind"] == "full" and "past its end" in entry["reason"]
    assert "past its end" in verdict(found, 3, "consistent").summary
    assert found.document()["intervals"][4]["kind"] == "incremental"
