"""Instants of a recording, and the delete's own writes apart from the mount's."""

from __future__ import annotations

from pathlib import Path

import factory
import numpy as np
import pandas as pd
import pytest

from cbtlab.case import Case
from cbtlab.errors import InputError
from cbtlab.phases import instants, spans, written_by_phase
from cbtlab.writes import normalize

SIZE = 1 << 20
NAMES = ("instant", "mount", "delete", "unmount", "unmounted")


def rows(seq: list[int], offsets: list[int], interval: int = 0) -> pd.DataFrame:
    frame = pd.DataFrame(
        {
            "time": (factory.START + np.array(seq) * 10**9).astype("datetime64[ns]"),
            "seq": seq,
            "interval": interval,
            "op": "write",
            "offset": np.array(offsets, np.uint64),
            "length": np.full(len(seq), 4096, np.uint64),
        }
    )
    return normalize(frame)


def marks(*seq: int) -> list[dict[str, object]]:
    return [
        {"name": name, "time_ns": factory.START + number * 10**9, "seq": number}
        for name, number in zip(NAMES, seq, strict=False)
    ]


@pytest.fixture
def case(tmp_path: Path) -> Case:
    """Two backups; the first has marks, the second has none."""
    image = tmp_path / "image"
    image.write_bytes(bytes(SIZE))
    made = Case.create(tmp_path / "case", SIZE, 4096)
    snapshot = rows([2, 3, 4, 5, 6, 7], [0, 4096, 4096, 8192, 4096, 12288])
    made.add(
        snapshot=image, stored=image, writes={"snapshot": snapshot}, marks=marks(1, 2, 4, 6, 7)
    )
    made.add(
        snapshot=image,
        stored=image,
        writes={"physical": rows([8, 10], [0, 0], 1), "snapshot": rows([12], [0], 1)},
    )
    return made


def test_phases_are_told_apart_by_sequence_numbers(case: Case) -> None:
    table = written_by_phase(case.intervals[0])
    assert table is not None
    assert table["writes"].to_dict() == {"mount": 2, "delete": 2, "unmount": 1, "other": 1}
    assert table["blocks"].to_dict() == {"mount": 2, "delete": 2, "unmount": 1, "other": 1}
    # block 1 was written in three phases; block 0 by the mount, 2 by the delete alone
    assert table["alone"].to_dict() == {"mount": 1, "delete": 1, "unmount": 0, "other": 1}
    assert table["bytes"].sum() == 6 * 4096


def test_without_marks_nothing_is_told_apart(case: Case) -> None:
    assert spans(case.intervals[1]) == []
    assert written_by_phase(case.intervals[1]) is None


def test_an_instant_is_marked_or_estimated(case: Case) -> None:
    first, second = instants(case)
    assert first.exact and first.time == np.datetime64(factory.START + 10**9, "ns")
    assert not second.exact
    # between the last write of interval 1 (10) and the first on its snapshot (12)
    assert second.time == np.datetime64(factory.START + 11 * 10**9, "ns")


def test_a_case_of_images_alone_has_no_instants(tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(bytes(SIZE))
    made = Case.create(tmp_path / "case", SIZE, 4096)
    made.add(snapshot=image, stored=image)
    assert instants(made) == []


@pytest.mark.parametrize("broken", [{"time_ns": "x"}, {"seq": -1}, {"seq": True}, {"time_ns": 1.5}])
def test_a_damaged_mark_is_refused(tmp_path: Path, broken: dict[str, object]) -> None:
    image = tmp_path / "image"
    image.write_bytes(bytes(SIZE))
    made = Case.create(tmp_path / "case", SIZE, 4096)
    with pytest.raises(InputError, match="mark"):
        made.add(snapshot=image, stored=image, marks=[{**marks(1)[0], **broken}])
    assert Case.open(made.path).intervals == []
