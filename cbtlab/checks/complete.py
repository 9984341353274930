"""complete: restoring gives what was snapshotted, on every byte that the backup answers for."""

from __future__ import annotations

from typing import Any

import numpy as np

from cbtlab.checks.material import Material
from cbtlab.checks.streams import Ints, marks, not_zero, pair, rows, unequal
from cbtlab.checks.verdict import EVIDENCE_LIMIT, Verdict, count, item, verdict

NAME = "complete"


def complete(m: Material) -> Verdict:
    """R_k equals S_k* on H_k and is zero elsewhere, and A_k lies within H_k.

    R_k was restored from the chain on disk; every byte of the volume is compared.
    Where the link was scrubbed, S_k* is what it is after the list in the manifest.
    """
    if m.unjudged:
        return verdict(NAME, False if m.fault else None, m.unjudged)
    assert m.plan is not None
    lost, shown = _compare(m)
    evidence = _items(m, lost, "held, and not as S_k* has it")
    evidence += _items(m, shown, "not held, and not zero")
    for entry in evidence:
        entry["link"] = m.link_of(entry["offset"]) or m.link_name
    bad, extra = (len(np.unique(places // m.granularity)) for places in (lost, shown))
    total = bad + extra
    parts = []
    if total:
        parts.append(
            f"{count(bad, 'block')} of R_k differ from S_k* where held, "
            f"{count(extra, 'block')} outside of what is held are not zero"
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
    if m.scrubbed.items:
        pieces = m.scrubbed.items
        summary += (
            f"; S_k* is here with {count(len(pieces), 'place')} overwritten, "
            f"{sum(piece.length for piece in pieces):,} bytes, as the manifest lists them"
        )
    if m.after is None:
        summary += "; no file system was recognised, so what is in use is not known"
    return verdict(NAME, True, summary)


def _items(m: Material, wrong: Ints, note: str) -> list[dict[str, Any]]:
    """Return evidence for the blocks of these bytes, each with the owner of the first of them."""
    blocks, first = np.unique(wrong // m.granularity, return_index=True)
    blocks, first = blocks[:EVIDENCE_LIMIT], first[:EVIDENCE_LIMIT]
    spots = dict(zip(blocks.tolist(), wrong[first].tolist(), strict=True))
    return m.block_items(blocks, notes=note, spots=spots)


def _compare(m: Material) -> tuple[Ints, Ints]:
    """Return where held bytes are wrong, and where bytes show that are not held.

    One place a block of the mask, in bytes of the volume, rising.
    """
    assert m.plan is not None and m.restored is not None
    held = m.plan.held
    fine = min(held.granularity, m.granularity)
    lost, shown = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for offset, length, found, wanted in pair(m.restored, m.scrubbed_image):
        if found is None and wanted is None:
            continue
        got, want = rows(found, fine), rows(wanted, fine)
        mask = marks(held, offset, length, fine)
        lost.append(offset + np.flatnonzero(unequal(got, want, len(mask)) & mask) * fine)
        if got is not None:
            shown.append(offset + np.flatnonzero(not_zero(got) & ~mask) * fine)
    return np.concatenate(lost), np.concatenate(shown)


def _unheld(m: Material) -> Ints:
    """Return the blocks with a byte in use on S_k* that the backup does not answer for."""
    assert m.plan is not None
    if m.after is None:
        return np.zeros(0, np.int64)
    used, held = m.after.in_use, m.plan.held
    fine = min(used.granularity, held.granularity)
    return (used.outward(fine) - held.outward(fine)).outward(m.granularity).indices()
