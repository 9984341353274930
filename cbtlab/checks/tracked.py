"""tracked: every block that truly changed has its bit."""

from __future__ import annotations

from typing import Any

from cbtlab.bitmap import Bitmap
from cbtlab.checks.last_writes import LastWrites
from cbtlab.checks.material import Material
from cbtlab.checks.streams import Ints, first_unequal
from cbtlab.checks.verdict import EVIDENCE_LIMIT, Verdict, count, verdict
from cbtlab.images import Image, differing

NAME = "tracked"


def tracked(m: Material) -> Verdict:
    """Where S_k differs from S_k-1 is in W_P(k), and where S_k* differs from S_k in W_S(k).

    One missed bit fails; a bit too many is a cost, and counted.
    """
    pairs = [("snapshot", "the snapshot's delete", m.snapshot, m.stored)]
    if m.previous is not None:
        pairs.insert(0, ("physical", "the physical volume", m.previous, m.snapshot))
    words: list[str] = []
    evidence: list[dict[str, Any]] = []
    total = 0
    for volume, told, before, after in pairs:
        changed = differing(before, after, m.granularity)
        active = m.replay.active(volume, m.k)
        marked = active.bitmap
        if marked is None:
            marked = Bitmap(m.size, m.granularity)
            words.append(f"{told}: {count(changed.count(), 'changed block')}, nothing recorded")
        else:
            surplus = (marked - changed).count()
            words.append(
                f"{told}: {count(changed.count(), 'changed block')} of {marked.count():,} "
                f"marked ({active.source}), {surplus:,} marked without need"
            )
        missed = (changed - marked).indices()
        if len(missed):
            words[-1] += f", {len(missed):,} missed"
            total += len(missed)
            evidence += _items(m, volume, missed[:EVIDENCE_LIMIT], before, after)
    if m.reasons and m.k:
        words.append("not relied upon: " + "; ".join(m.reasons))
    return verdict(NAME, not total, "; ".join(words), evidence, total)


def _items(
    m: Material, volume: str, blocks: Ints, before: Image, after: Image
) -> list[dict[str, Any]]:
    """Say of missed blocks whose they are, and when they were last seen written."""
    last = LastWrites(m.case, volume, m.k, blocks)
    notes = {}
    for block in blocks.tolist():
        note = f"changed on the {volume} volume, and not marked in interval {m.k}"
        if block in last.interval:
            row = last.row[block]
            note += f"; last seen: {row['op']}"
            if isinstance(row["comm"], str):
                note += f" by {row['comm']}"
            if last.interval[block] != m.k:
                note += f", counted in interval {last.interval[block]}"
        else:
            note += "; no recorded write touches it"
        notes[block] = note
    grain = m.granularity
    spots = {n: first_unequal(before, after, n * grain, grain) or 0 for n in blocks.tolist()}
    return m.block_items(blocks, last.times(), notes, spots)
