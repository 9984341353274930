"""complete: restoring gives what was snapshotted, on every byte that the backup answers for."""

from __future__ import annotations

import numpy as np

from cbtlab.checks.material import Material
from cbtlab.checks.streams import Ints, marks, not_zero, pair, rows, unequal
from cbtlab.checks.verdict import EVIDENCE_LIMIT, Verdict, count, item, verdict

NAME = "complete"


def complete(m: Material) -> Verdict:
    """R_k equals S_k* on H_k and is zero elsewhere, and A_k lies within H_k.

    R_k was restored from the chain on disk; every byte of the volume is compared.
    """
    if m.unjudged:
        return verdict(NAME, False if m.fault else None, m.unjudged)
    assert m.plan is not None
    lost, shown = _compare(m)
    evidence = m.block_items(lost[:EVIDENCE_LIMIT], notes="held, and not as S_k* has it")
    evidence += m.block_items(shown[:EVIDENCE_LIMIT], notes="not held, and not zero")
    for entry in evidence:
        entry["link"] = m.link_of(entry["offset"]) or m.link_name
    total = len(lost) + len(shown)
    parts = []
    if total:
        parts.append(
            f"{count(len(lost), 'block')} of R_k differ from S_k* where held, "
            f"{count(len(shown), 'block')} outside of what is held are not zero"
        )
    if m.held_saved is not None and m.held_saved != m.plan.held:
        parts.append("the mask saved with the link is not H_k")
        evidence.append(item(link=m.link_name, note="the mask of held bytes is another one"))
        total += 1
    unheld = _unheld(m)
    if len(unheld):
        parts.append(f"{count(len(unheld), 'block')} in use are not held")
        evidence += m.block_items(unheld[:EVIDENCE_LIMIT], notes="in use on S_k*, and not held")
        total += len(unheld)
    if parts:
        return verdict(NAME, False, "; ".join(parts), evidence, total)
    held = m.plan.held
    summary = (
        f"R_k equals S_k* on every held byte ({count(held.count(), 'block')} of "
        f"{held.granularity} bytes) and is zero on the rest"
    )
    if m.after is None:
        summary += "; no file system was recognised, so what is in use is not known"
    return verdict(NAME, True, summary)


def _compare(m: Material) -> tuple[Ints, Ints]:
    """Return the blocks whose held bytes are wrong, and those that show bytes not held."""
    assert m.plan is not None and m.restored is not None
    held = m.plan.held
    fine = min(held.granularity, m.granularity)
    lost, shown = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for offset, length, found, wanted in pair(m.restored, m.stored):
        if found is None and wanted is None:
            continue
        got, want = rows(found, fine), rows(wanted, fine)
        mask = marks(held, offset, length, fine)
        wrong = unequal(got, want, len(mask)) & mask
        extra = (not_zero(got) & ~mask) if got is not None else np.zeros(len(mask), np.bool_)
        for where, into in ((wrong, lost), (extra, shown)):
            if where.any():
                at = offset + np.flatnonzero(where) * fine
                into.append(np.unique(at // m.granularity))
    return np.unique(np.concatenate(lost)), np.unique(np.concatenate(shown))


def _unheld(m: Material) -> Ints:
    """Return the blocks with a byte in use on S_k* that the backup does not answer for."""
    assert m.plan is not None
    if m.after is None:
        return np.zeros(0, np.int64)
    used, held = m.after.in_use, m.plan.held
    fine = min(used.granularity, held.granularity)
    return (used.outward(fine) - held.outward(fine)).outward(m.granularity).indices()
