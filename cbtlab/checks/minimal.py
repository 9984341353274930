"""minimal: what truly differs was stored, and everything stored beyond it has a name."""

from __future__ import annotations

from dataclasses import dataclass, field

from cbtlab.bitmap import Bitmap
from cbtlab.checks.material import Material
from cbtlab.checks.verdict import EVIDENCE_LIMIT, Verdict, count, item, verdict
from cbtlab.images import differing
from cbtlab.plan import surplus_names

NAME = "minimal"


@dataclass(frozen=True)
class Cost:
    """What backup ``k`` had to store, as units, and the names of what it stored beyond."""

    least: Bitmap
    surplus: dict[str, Bitmap] = field(default_factory=dict)


def cost(m: Material) -> Cost:
    """Compare R_k with R_j, and name the surplus."""
    assert m.plan is not None and m.restored is not None
    least = differing(m.below, m.restored, m.plan.unit)
    found = surplus_names(m.plan, least, m.replay.rows(m.k))
    names = {str(name): units for name, units in found.items()}
    if m.scrubbed.items:
        names = _with_scrubbed(m, least, names)
    return Cost(least, names)


def _with_scrubbed(m: Material, least: Bitmap, names: dict[str, Bitmap]) -> dict[str, Bitmap]:
    """Give the name ``scrubbed`` to the surplus that an overwriting explains.

    What was written there, and overwritten before it was stored, reads the same as in the base;
    and units that were added for other overwriting than in the base, should they read the same.
    """
    assert m.plan is not None
    touched = m.scrubbed.touched(m.size, m.plan.unit)
    scrubbed = names["same_bytes"] & touched
    if m.added is not None:
        scrubbed = scrubbed | (m.added - least)
    rest = {name: units - scrubbed for name, units in names.items()}
    return {**rest, "scrubbed": scrubbed}


def minimal(m: Material, found: Cost | None = None) -> Verdict:
    """The units that differ from the base lie within C_k and Z_k; the names of the rest add up."""
    if m.unjudged:
        return verdict(NAME, None, m.unjudged)
    assert m.plan is not None
    found, plan = found or cost(m), m.plan
    missed = (found.least - (plan.copied | plan.zeroed)).indices()
    if len(missed):
        offsets = missed[:EVIDENCE_LIMIT] * plan.unit
        evidence = [
            item(
                block=offset // m.granularity,
                offset=offset,
                length=min(plan.unit, m.size - offset),
                path=path,
                link=m.link_name,
                note="differs from the base, and is neither stored nor zeroed",
            )
            for offset, path in zip(offsets.tolist(), m.owners(offsets), strict=True)
        ]
        summary = f"{count(len(missed), 'unit')} differ from the base outside of C_k and Z_k"
        return verdict(NAME, False, summary, evidence, len(missed))
    beyond = plan.copied - found.least
    named = Bitmap(beyond.volume_size, beyond.granularity)
    for units in found.surplus.values():
        named = named | units
    counts = {name: units.count() for name, units in found.surplus.items() if units.any()}
    told = ", ".join(f"{number:,} {name}" for name, number in counts.items()) or "none"
    if named != beyond or sum(counts.values()) != beyond.count():
        summary = f"the names of {count(beyond.count(), 'surplus unit')} do not add up: {told}"
        return verdict(NAME, False, summary)
    summary = (
        f"{count(found.least.count(), 'unit')} differ from the base; "
        f"{count(plan.copied.count(), 'unit')} stored, {plan.zeroed.count():,} zeroed; "
        f"surplus: {told}"
    )
    return verdict(NAME, True, summary)
