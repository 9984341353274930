"""The theorem: R_k is S_k* on H_k and zero elsewhere, on every byte, for every k.

A model of the whole method on a volume of a few dozen sectors: writes on ``P``, a
snapshot, a delete on it, masks that change with and without writes, policies that
change on the way, backups thrown away, fulls in between.  Only bitmap, merge and
plan are the project's; volumes and chain are arrays of bytes.

The three rules that look right and are not are put in the place of the right ones,
and a workload is found that each of them restores wrongly.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, find, given, settings
from hypothesis import strategies as st
from hypothesis.errors import NoSuchExample

from cbtlab.bitmap import Bitmap
from cbtlab.plan import POLICIES, Plan, held, plan, surplus_names
from cbtlab.replay import merge
from cbtlab.writes.rows import Rows

Bytes = npt.NDArray[np.uint8]
Write = tuple[int, int, int | None]
"""Offset, length and the byte written; None is a discard that goes on reading as before."""


@dataclass(frozen=True)
class Backup:
    """What happens from T_k-1 on until backup ``k`` is made; masks are integers, a bit a block."""

    physical: tuple[Write, ...] = ()
    late: tuple[Write, ...] = ()  # marked in both intervals, landed after the instant
    snapshot: tuple[Write, ...] = ()  # the mount and the delete
    block: int = 512  # of the file system, the resolution of the masks
    in_use: int = -1
    excluded: int = 0
    policy: str = "allocated"
    kept: bool = True
    usable: bool = True


@dataclass(frozen=True)
class Workload:
    size: int
    granularity: int
    unit: int
    backups: tuple[Backup, ...]


@dataclass
class Made:
    """One link of the chain, and what it should restore to."""

    plan: Plan
    restored: Bytes
    expected: Bytes
    below: Bytes
    rows: Rows
    in_use: Bitmap = field(repr=False)


Merge = Callable[..., Bitmap]
Planner = Callable[..., Plan]


def right_merge(physical, snapshot, carry) -> Bitmap:
    return merge(physical, snapshot, carry).master


def run(work: Workload, merging: Merge = right_merge, planning: Planner = plan) -> list[Made]:
    """Play a workload, and make its chain with the given rules."""
    volume = np.full(work.size, 255, dtype=np.uint8)
    since: list[tuple[Write, ...]] = []  # W_P of the intervals since the base
    late: tuple[Write, ...] = ()
    base: tuple[int, Bitmap, Bytes, tuple[Write, ...]] | None = None
    links = []
    for k, backup in enumerate(work.backups):
        apply(volume, backup.physical)
        since.append((*late, *backup.physical, *backup.late))
        stored = volume.copy()
        late = backup.late
        apply(volume, late)
        apply(stored, backup.snapshot)
        if not backup.kept:
            continue
        mask, in_use = masks(work, backup)
        if base is None or not backup.usable:
            operations: tuple[Write, ...] = ()
            master = Bitmap.full(work.size, work.granularity)
            made = planning(k, master, mask, None, None, work.unit)
            below = np.zeros(work.size, dtype=np.uint8)
        else:
            j, base_mask, below, carry = base
            parts = [marked(work, writes) for writes in since]
            master = merging(parts, marked(work, backup.snapshot), marked(work, carry))
            made = planning(k, master, mask, j, base_mask, work.unit)
            operations = (*(w for writes in since for w in writes), *backup.snapshot, *carry)
        holds = bytes_of(mask)
        expected = np.where(holds, stored, 0).astype(np.uint8)
        restored = below.copy()
        restored[bytes_of(made.zeroed)] = 0
        copied = bytes_of(made.copied)
        restored[copied] = expected[copied]
        links.append(Made(made, restored, expected, below, rows_of(operations), in_use))
        base, since = (k, mask, restored, backup.snapshot), []
    return links


def holds(work: Workload, **rules) -> bool:
    return all(np.array_equal(link.restored, link.expected) for link in run(work, **rules))


def apply(volume: Bytes, writes: tuple[Write, ...]) -> None:
    for offset, length, value in writes:
        if value is not None:
            volume[offset : offset + length] = value


def marked(work: Workload, writes: tuple[Write, ...]) -> Bitmap:
    return Bitmap.from_ranges(
        [w[0] for w in writes],
        [w[1] for w in writes],
        volume_size=work.size,
        granularity=work.granularity,
    )


def masks(work: Workload, backup: Backup) -> tuple[Bitmap, Bitmap]:
    """H_k and A_k; what is in use is never excluded, as `cbtlab.exclude` sees to it."""
    in_use = from_integer(backup.in_use, work.size, backup.block)
    excluded = from_integer(backup.excluded, work.size, backup.block) - in_use
    mask = held(backup.policy, in_use, excluded, volume_size=work.size, granularity=backup.block)
    return mask, in_use


def from_integer(mask: int, size: int, block: int) -> Bitmap:
    chosen = [n for n in range(-(-size // block)) if mask >> n & 1]
    return Bitmap.from_indices(chosen, size, block)


def bytes_of(bitmap: Bitmap) -> npt.NDArray[np.bool_]:
    return np.repeat(bitmap.to_bool(), bitmap.granularity)[: bitmap.volume_size]


def rows_of(writes: tuple[Write, ...]) -> Rows:
    return Rows(
        np.array([w[0] for w in writes], dtype=np.uint64),
        np.array([w[1] for w in writes], dtype=np.uint64),
        np.zeros(len(writes), dtype=bool),
        np.array([w[2] is None for w in writes], dtype=bool),
    )


@st.composite
def workloads(draw: st.DrawFn) -> Workload:
    size = draw(st.integers(1, 40)) * 512
    granularity = draw(st.sampled_from([512, 1024, 4096]))
    unit = draw(st.sampled_from([u for u in (512, 1024, 4096, 8192) if u >= granularity]))
    value = iter(range(1, 255))

    def writes(most: int) -> tuple[Write, ...]:
        made = []
        for _ in range(draw(st.integers(0, most))):
            offset = draw(st.integers(0, size - 1))
            length = draw(st.integers(0, min(size - offset, 3000)))
            kind = draw(st.sampled_from(["write", "write", "zeroes", "discard"]))
            byte = {"write": next(value), "zeroes": 0, "discard": None}[kind]
            made.append((offset, length, byte))
        return tuple(made)

    any_mask = st.integers(0, (1 << 40) - 1)
    backups: list[Backup] = []
    for k in range(draw(st.integers(2, 5))):
        again = replace(backups[-1]) if backups and draw(st.booleans()) else None
        backups.append(
            Backup(
                physical=writes(3),
                late=writes(1),
                snapshot=writes(2),
                block=again.block if again else draw(st.sampled_from([512, 1024, 4096])),
                in_use=again.in_use if again else draw(any_mask),
                excluded=again.excluded if again else draw(any_mask),
                policy=again.policy if again else draw(st.sampled_from(POLICIES)),
                kept=k == 0 or draw(st.integers(0, 3)) > 0,
                usable=draw(st.integers(0, 7)) > 0,
            )
        )
    return Workload(size, granularity, unit, tuple(backups))


@settings(max_examples=300)
@given(workloads())
def test_what_is_restored_is_what_was_held_and_zero_elsewhere(work):
    for link in run(work):
        assert np.array_equal(link.restored, link.expected)
        assert link.in_use.issubset(link.plan.held.outward(link.in_use.granularity))


@settings(max_examples=150)
@given(workloads())
def test_what_differs_was_stored_or_zeroed_and_the_rest_has_one_name(work):
    for link in run(work):
        unit = link.plan.unit
        changed = np.flatnonzero(link.restored != link.below)
        differs = Bitmap.from_indices(np.unique(changed // unit), work.size, unit)
        assert differs.issubset(link.plan.copied | link.plan.zeroed)
        assert not (link.plan.copied & link.plan.zeroed).any()
        names = surplus_names(link.plan, differs, link.rows)
        beyond = link.plan.copied - differs
        assert sum(units.count() for units in names.values()) == beyond.count()
        together = Bitmap(work.size, unit)
        for units in names.values():
            together = together | units
        assert together == beyond


# The rules that look right ----------------------------------------------------------------------


def no_carry_over(physical, snapshot, carry) -> Bitmap:
    """An OR of the two current bitmaps."""
    return merge(physical, snapshot, None).master


def changed_and_in_use(k, master, mask, base, base_mask, unit) -> Plan:
    """C_k = M_k & A_k: what changed, less what is not in use."""
    made = plan(k, master, mask, base, base_mask, unit)
    return replace(made, copied=mask.outward(unit) & made.master.outward(unit))


def zeroed_if_changed(k, master, mask, base, base_mask, unit) -> Plan:
    """Z_k & M_k: what is no longer held, as far as it was written."""
    made = plan(k, master, mask, base, base_mask, unit)
    return replace(made, zeroed=made.zeroed & made.master.outward(unit))


def two(first: Backup, second: Backup) -> Workload:
    return Workload(4 * 512, 512, 512, (first, second))


WRONG = {
    "no carry-over": (
        {"merging": no_carry_over},
        # The delete on S_0 rewrites a block of metadata; on P, and on S_1, it never was.
        two(Backup(snapshot=((0, 512, 1),)), Backup(snapshot=((512, 512, 2),))),
    ),
    "changed and in use": (
        {"planning": changed_and_in_use},
        # A file moves out of an excluded place: in use all along, held only now.
        two(Backup(in_use=0b0111), Backup(in_use=0b1111)),
    ),
    "zeroed if changed": (
        {"planning": zeroed_if_changed},
        # A file moves into an excluded place: nobody writes its blocks.
        two(Backup(in_use=0b1111), Backup(in_use=0b0111)),
    ),
}


@pytest.mark.parametrize("rule", WRONG)
def test_a_wrong_rule_restores_a_plain_workload_wrongly(rule):
    rules, work = WRONG[rule]
    assert holds(work)
    assert not holds(work, **rules)


@pytest.mark.parametrize("rule", WRONG)
def test_a_wrong_rule_is_found_wrong(rule):
    rules, _ = WRONG[rule]
    searching = settings(
        max_examples=500,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    try:
        found = find(workloads(), lambda work: not holds(work, **rules), settings=searching)
    except NoSuchExample:
        pytest.fail(f"the model does not tell {rule!r} from the right rule")
    assert holds(found)


@pytest.mark.parametrize("forgotten", ["physical", "snapshot"])
def test_each_part_of_the_merge_is_needed(forgotten):
    """The property notices when a part of the merge is left out."""

    def merging(physical, snapshot, carry) -> Bitmap:
        nothing = Bitmap(snapshot.volume_size, snapshot.granularity)
        if forgotten == "physical":
            return merge([nothing], snapshot, carry).master
        return merge(physical, nothing, carry).master

    written = ((0, 512, 1),)
    work = two(Backup(), Backup(**{forgotten: written}))
    assert holds(work) and not holds(work, merging=merging)


def test_of_a_thrown_away_backup_only_the_physical_writes_are_needed():
    thrown = Backup(physical=((0, 512, 1),), snapshot=((512, 512, 2),), kept=False)
    work = Workload(4 * 512, 512, 512, (Backup(), thrown, Backup()))
    (_, link) = run(work)
    assert np.array_equal(link.restored, link.expected)
    assert link.plan.copied.indices().tolist() == [0]


def test_masks_rounded_before_they_are_compared_lose_data():
    """Two blocks of one unit change places: rounded, the masks are equal."""

    def rounded(k, master, mask, base, base_mask, unit) -> Plan:
        before = None if base_mask is None else base_mask.outward(unit)
        return replace(plan(k, master, mask.outward(unit), base, before, unit), held=mask)

    work = Workload(8 * 512, 512, 4096, (Backup(in_use=0b01), Backup(in_use=0b10)))
    assert holds(work) and not holds(work, planning=rounded)
