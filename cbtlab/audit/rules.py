"""The rules that an audit builds its chain by, and three obvious ones that lose data.

The wrong rules are here so that tests and a notebook can show that the checks
find each of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from cbtlab.bitmap import Bitmap
from cbtlab.plan import Plan, plan
from cbtlab.replay import Merged, merge

Merge = Callable[[Sequence[Bitmap], Bitmap | None, Bitmap | None], Merged]


@dataclass(frozen=True)
class Rules:
    """How bitmaps are merged, and how the merge becomes a plan; the right ones by default."""

    name: str = "as documented"
    merge: Merge = merge
    plan: Callable[..., Plan] = plan


def _without_carry(
    physical: Sequence[Bitmap], snapshot: Bitmap | None, carry: Bitmap | None
) -> Merged:
    """Merge the two bitmaps of the interval alone: the deletes on the base's snapshot are lost."""
    return merge(physical, snapshot, None)


def _only_written(*args: Any, **kwargs: Any) -> Plan:
    """Copy what was written and is in use: what came in without a write is not copied."""
    right = plan(*args, **kwargs)
    if right.base is None:
        return right
    fine = min(right.master.granularity, right.held.granularity)
    both = right.master.outward(fine) & right.held.outward(fine)
    empty = Bitmap(right.copied.volume_size, right.copied.granularity)
    return replace(right, copied=both.outward(right.unit), joined=empty)


def _zero_written(*args: Any, **kwargs: Any) -> Plan:
    """Zero only what was written: what was dropped without a write shows through."""
    right = plan(*args, **kwargs)
    return replace(right, zeroed=right.zeroed & right.master.outward(right.unit))


RULES = Rules()
WRONG_RULES = {
    "no carry-over": Rules("the merge without its carry-over", merge=_without_carry),
    "only written": Rules("M_k ∩ A_k as the copy set", plan=_only_written),
    "zero only written": Rules("zeroing only what changed", plan=_zero_written),
}
