"""Which units a backup stores, which it declares zero, and the reason for each.

Merging is not excluding.  A bit of the master bitmap says *changed*; it says
neither *held before* nor *still to be held*.  A rename, a link or a changed rule
moves a block in or out of the backup without any write, so::

    C_k = units with a byte of H_k that are in M_k, or where H_k and H_j differ
    Z_k = units with no byte of H_k, but with one of H_j          (H_j = nothing for a full)

What was held is compared at the finer resolution of the two masks and rounded to
units afterwards: the difference of rounded masks loses data.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt

from cbtlab.bitmap import Bitmap
from cbtlab.errors import InputError
from cbtlab.writes.rows import Rows

__all__ = ["POLICIES", "SURPLUS", "Plan", "held", "plan", "surplus_names"]

Policy = Literal["allocated", "extents", "union"]
POLICIES: tuple[Policy, ...] = ("allocated", "extents", "union")

Surplus = Literal["joined", "neighbour", "overlap", "discarded", "rounding", "same_bytes"]
SURPLUS: tuple[Surplus, ...] = (
    "joined",
    "neighbour",
    "overlap",
    "discarded",
    "rounding",
    "same_bytes",
)


@dataclass(frozen=True)
class Plan:
    """What backup ``k`` stores.  ``copied``, ``zeroed`` and ``joined`` are bitmaps of units."""

    k: int
    base: int | None
    """The backup this one lies on; None for a full."""
    kind: Literal["full", "incremental"]
    reason: str
    """Why it is a full; empty for an incremental."""
    unit: int
    """Bytes that the store writes at once."""
    master: Bitmap = field(repr=False)
    """``M_k`` at the tracker's granularity; everything for a full."""
    held: Bitmap = field(repr=False)
    """``H_k`` at the file system's block."""
    copied: Bitmap
    """``C_k``"""
    zeroed: Bitmap
    """``Z_k``"""
    joined: Bitmap
    """``C_k \\ M_k``: stored because of the masks alone."""

    def decision(self, block: int) -> Literal["copied", "zeroed", "unchanged", "not held"]:
        """What becomes of one block of the master bitmap's granularity.

        A block that is not held, but shares its unit with one that is, is
        stored as zeroes: it counts as copied.
        """
        if not 0 <= block < self.master.blocks:
            raise InputError("block", f"{block} is not one of the {self.master.blocks} blocks")
        begin = block * self.master.granularity
        unit = begin // self.unit
        if unit in self.copied:
            return "copied"
        if unit in self.zeroed:
            return "zeroed"
        first = begin // self.held.granularity
        last = (begin + self.master.granularity - 1) // self.held.granularity
        return "unchanged" if self.held.bits[first : last + 1].any() else "not held"


def held(
    policy: str,
    in_use: Bitmap | None,
    excluded: Bitmap | None,
    *,
    volume_size: int,
    granularity: int,
) -> Bitmap:
    """``H_k``, the bytes that a backup answers for.

    "allocated": what reading can return, ``in_use``; "extents": everything but
    the blocks of ``excluded`` (None: no file is excluded); "union": everything.
    The masks are at the file system's block; ``granularity`` is that of the
    result where no mask gives one.  Raises InputError for another policy, a
    mask of another volume, or "allocated" without ``in_use``.
    """
    for mask in (in_use, excluded):
        if mask is not None and mask.volume_size != volume_size:
            raise InputError("mask", f"is of {mask.volume_size} bytes, the volume of {volume_size}")
    if policy == "union" or (policy == "extents" and excluded is None):
        return Bitmap.full(volume_size, granularity)
    if policy == "extents" and excluded is not None:
        return ~excluded
    if policy != "allocated":
        raise InputError("policy", f"{policy!r} is none of {', '.join(POLICIES)}")
    if in_use is None:
        raise InputError(
            "policy allocated", "what is in use on the volume is not known", "use policy union"
        )
    return in_use.copy()


def plan(
    k: int,
    master: Bitmap,
    held: Bitmap,
    base: int | None,
    base_held: Bitmap | None,
    unit: int,
    reason: str = "",
) -> Plan:
    """Decide backup ``k``: ``C_k`` and ``Z_k`` of the page's head.

    ``master`` is ``M_k`` at the tracker's granularity, ``held`` and
    ``base_held`` are ``H_k`` and ``H_j`` at any resolution, also at different
    ones.  ``unit`` is a power of two, in bytes, not below the granularity.
    Without a ``base`` the backup is a full one of ``held``, for ``reason``, and
    ``master`` only gives the granularity.  Raises InputError where sizes do not fit.
    """
    if unit < master.granularity:
        raise InputError("unit", f"{unit} bytes is below the granularity {master.granularity}")
    if (base is None) != (base_held is None):
        raise InputError(f"backup {k}", "a base comes with the mask of what it held")
    if base is not None and base >= k:
        raise InputError(f"backup {k}", f"its base {base} is not an earlier one")
    for mask in (held, base_held):
        if mask is not None and mask.volume_size != master.volume_size:
            raise InputError(
                "mask", f"is of {mask.volume_size} bytes, the volume of {master.volume_size}"
            )
    here = held.outward(unit)
    nothing = Bitmap(master.volume_size, unit)
    if base is None or base_held is None:
        everything = Bitmap.full(master.volume_size, master.granularity)
        reason = reason or ("the first backup" if k == 0 else "no base")
        return Plan(k, None, "full", reason, unit, everything, held, here, nothing, nothing)
    changed = master.outward(unit)
    copied = here & (changed | _differ(held, base_held).outward(unit))
    zeroed = base_held.outward(unit) - here
    joined = copied - changed
    return Plan(k, base, "incremental", "", unit, master, held, copied, zeroed, joined)


def surplus_names(plan: Plan, differs: Bitmap, rows: Rows | None) -> dict[Surplus, Bitmap]:
    """Give every unit of ``C_k`` that need not have been stored exactly one name.

    ``differs`` is the units where ``R_k`` truly differs from ``R_j`` (from zero
    for a full).  ``rows`` are the operations of ``M_k``, or None without
    sequences.  The first rule that fits names the unit:

    ``joined``      not in ``M_k``: the masks alone brought it in
    ``neighbour``   no block of ``M_k`` within it touches a held byte: what
                    changed lies beside what is held
    ``overlap``     only operations marked in two intervals reach its held bytes
    ``discarded``   only discards reach its held bytes
    ``rounding``    no operation touches a held byte of it; it is in ``M_k``
                    because blocks of the granularity are coarser than the mask
    ``same_bytes``  written, and read the same afterwards, or nobody can tell

    "Reach" is at the granularity, "touch" is exact in bytes.  Where ``M_k`` has a
    block within the unit that no row explains (a tracker's bitmap without its
    sequence, or with a gap in it) the three names that speak of rows are not
    given: a row that nobody saw would make them untrue.
    """
    rest = plan.copied - differs
    names: dict[Surplus, Bitmap] = {}

    def name(which: Surplus, fits: Bitmap) -> None:
        nonlocal rest
        names[which] = rest & fits
        rest = rest - fits

    name("joined", plan.joined)
    name("neighbour", ~_reach(plan.master, plan))
    if rows is None or plan.base is None:
        nothing = Bitmap(rest.volume_size, rest.granularity)
        names |= {"overlap": nothing, "discarded": nothing, "rounding": nothing}
    else:
        grain, exact = plan.master.granularity, min(plan.held.granularity, plan.unit)
        every = np.ones(rows.offset.shape, dtype=np.bool_)
        recorded = _marked(rows, every, plan.master.volume_size, grain)
        explained = ~(plan.master - recorded).outward(plan.unit)
        for which, others in (("overlap", ~rows.overlap), ("discarded", ~rows.discard)):
            reached = _reach(_marked(rows, others, plan.master.volume_size, grain), plan)
            name(which, explained - reached)  # type: ignore[arg-type]
        touched = _reach(_marked(rows, every, plan.master.volume_size, exact), plan)
        name("rounding", explained - touched)
    names["same_bytes"] = rest
    return names


# Within -----------------------------------------------------------------------------------------


def _differ(one: Bitmap, other: Bitmap) -> Bitmap:
    """Where two masks differ, at the finer of their resolutions."""
    fine = min(one.granularity, other.granularity)
    return one.outward(fine) ^ other.outward(fine)


def _reach(marks: Bitmap, plan: Plan) -> Bitmap:
    """Units in which a marked block touches a held one, compared at the finer of the two."""
    fine = min(marks.granularity, plan.held.granularity)
    return (marks.outward(fine) & plan.held.outward(fine)).outward(plan.unit)


def _marked(rows: Rows, which: npt.NDArray[np.bool_], volume_size: int, granularity: int) -> Bitmap:
    """Blocks that the chosen rows touch."""
    return Bitmap.from_ranges(
        rows.offset[which], rows.length[which], volume_size=volume_size, granularity=granularity
    )
