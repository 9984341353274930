"""tracked: one bit too few is found, with the block, the time and the file; one too many not."""

from __future__ import annotations

from pathlib import Path

import factory
import numpy as np
import pandas as pd
import pytest
from judged import failing, judged, verdict

from cbtlab.bitmap import Bitmap
from cbtlab.units import format_time
from cbtlab.writes import normalize


@pytest.fixture(scope="module")
def changed_block(office: factory.Recording) -> int:
    """Return a block of the database that interval 1 changes."""
    at = office.backups[1].snapshot.blocks("/docs/database.db")
    return (at[16_384 // 1024] + 4) * 1024 // office.granularity


def test_a_cleared_bit_is_named(
    spoiled: factory.Recording, tmp_path: Path, changed_block: int
) -> None:
    spoiled.backups[1].clear("physical", changed_block)
    found = judged(spoiled, tmp_path)
    check = verdict(found, 1, "tracked")
    assert check.holds is False and check.evidence_total == 1
    (entry,) = check.evidence
    rows = spoiled.backups[1].writes["physical"]
    at = changed_block * spoiled.granularity
    touching = rows[(rows["offset"] < at + 4096) & (rows["offset"] + rows["length"] > at)]
    assert entry["block"] == changed_block
    assert entry["offset"] == at and entry["length"] == spoiled.granularity
    assert entry["path"] == "/docs/database.db"
    assert entry["time"] == format_time(touching["time"].max())
    # the lost block is missed by every check that looks at bytes, too
    assert failing(found)[1] == {"tracked", "consistent", "complete", "kept"}


def test_a_cleared_bit_of_the_delete_is_found(spoiled: factory.Recording, tmp_path: Path) -> None:
    backup = spoiled.backups[3]
    old, new = (
        np.fromfile(volume.path, np.uint8).reshape(-1, 4096)
        for volume in (backup.snapshot, backup.stored)
    )
    block = int(np.flatnonzero((old != new).any(axis=1))[0])
    backup.clear("snapshot", block)
    check = verdict(judged(spoiled, tmp_path), 3, "tracked")
    assert check.holds is False
    assert [entry["block"] for entry in check.evidence] == [block]
    assert "snapshot volume" in check.evidence[0]["note"]


def test_surplus_bits_are_counted_and_hold(spoiled: factory.Recording, tmp_path: Path) -> None:
    for backup in spoiled.backups[1:]:
        backup.bitmaps["physical"] = Bitmap.full(spoiled.size, spoiled.granularity)
    found = judged(spoiled, tmp_path, sequences=False)
    assert found.holds
    old, new = (
        np.fromfile(spoiled.backups[k].snapshot.path, np.uint8).reshape(-1, 4096) for k in (0, 1)
    )
    needed = int((old != new).any(axis=1).sum())
    assert f"{2048 - needed:,} marked without need" in verdict(found, 1, "tracked").summary


def test_a_write_that_nobody_saw_says_so(
    spoiled: factory.Recording, tmp_path: Path, changed_block: int
) -> None:
    spoiled.drop_writes(1, "physical", changed_block)
    rows = spoiled.backups[1].writes["physical"]
    spoiled.backups[1].bitmaps["physical"] = rows.writes.bitmap(spoiled.size, spoiled.granularity)
    check = verdict(judged(spoiled, tmp_path), 1, "tracked")
    entry = next(entry for entry in check.evidence if entry["block"] == changed_block)
    assert entry["path"] == "/docs/database.db" and "time" not in entry
    assert "no recorded write touches it" in entry["note"]


def test_a_late_switch_names_the_interval_that_has_the_write(
    spoiled: factory.Recording, tmp_path: Path
) -> None:
    at = spoiled.backups[3].snapshot.blocks("/docs/reuse.bin")
    block = at[4] * 1024 // spoiled.granularity
    moved = spoiled.drop_writes(3, "physical", block)
    early = spoiled.backups[2].writes["physical"]
    moved = moved.assign(interval=np.uint32(2))
    spoiled.backups[2].writes["physical"] = normalize(pd.concat([early, moved], ignore_index=True))
    for k in (2, 3):
        backup = spoiled.backups[k]
        backup.bitmaps["physical"] = backup.writes["physical"].writes.bitmap(
            spoiled.size, spoiled.granularity
        )
    found = judged(spoiled, tmp_path)
    entry = next(e for e in verdict(found, 3, "tracked").evidence if e["block"] == block)
    assert entry["path"] == "/docs/reuse.bin"
    assert "counted in interval 2" in entry["note"]
    assert entry["time"] == format_time(moved["time"].max())


def test_an_unrecorded_delete_that_wrote_fails(spoiled: factory.Recording, tmp_path: Path) -> None:
    for record in (spoiled.backups[1].writes, spoiled.backups[1].bitmaps):
        del record["snapshot"]
    check = verdict(judged(spoiled, tmp_path), 1, "tracked")
    assert check.holds is False
    assert "nothing recorded" in check.summary
