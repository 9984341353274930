"""consistent: two records of the same writes, the sequence and the bitmap, agree."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from cbtlab.bitmap import Bitmap
from cbtlab.checks.last_writes import LastWrites
from cbtlab.checks.lost import Loss
from cbtlab.checks.material import Material
from cbtlab.checks.streams import Ints
from cbtlab.checks.verdict import EVIDENCE_LIMIT, Verdict, count, item, verdict
from cbtlab.units import format_time
from cbtlab.writes.schema import FLAGS

NAME = "consistent"
_NUMBERED = ["seq", "pid", "offset", "length", "flags", "interval", "time"]


@dataclass
class _Finding:
    """What was found of one volume: whether it holds, the words, the evidence."""

    holds: bool | None
    words: str
    evidence: list[dict[str, Any]] = field(default_factory=list)
    total: int = 0


def consistent(m: Material) -> Verdict:
    """The replay equals the tracker's bitmap, no event is missing, none was folded across T_k.

    With events missing the replay must be a subset, and the rest cannot be
    shown, which does not hold.  Null where there is nothing to compare.
    """
    volumes = ("snapshot",) if m.k == 0 else ("physical", "snapshot")
    findings = [_judge(m, volume) for volume in volumes]
    judged = [finding.holds for finding in findings if finding.holds is not None]
    holds = all(judged) if judged else None
    words = [finding.words for finding in findings]
    if m.reasons and m.k:
        words.append("the link is a full backup: " + "; ".join(m.reasons))
    elif m.interval.unusable:
        words.append("recorded as unusable: " + "; ".join(m.interval.unusable))
    evidence = [entry for finding in findings for entry in finding.evidence]
    total = sum(finding.total for finding in findings)
    return verdict(NAME, holds, "; ".join(words), evidence, total)


def _judge(m: Material, volume: str) -> _Finding:
    tracker, replayed = m.replay.tracker(volume, m.k), m.replay.replayed(volume, m.k)
    if replayed is None:
        kept = "nothing was recorded" if tracker is None else "a bitmap without a sequence"
        return _Finding(None, f"{volume}: {kept}, so there is nothing to compare")
    lost = m.lost.of(volume, m.k)
    folded = _folded(m, volume)
    finding = (
        _Finding(None, f"{volume}: a sequence without a bitmap, so there is nothing to compare")
        if tracker is None
        else _compare(m, volume, tracker, replayed, lost)
    )
    if lost:
        events = sum(loss.gap.count for loss in lost)
        finding.holds = False
        finding.words = f"{volume}: cannot be shown, {count(events, 'event')} missing ({lost[0]})"
        finding.evidence = [
            item(time=loss.after or loss.before, note=str(loss)) for loss in lost[:EVIDENCE_LIMIT]
        ] + finding.evidence
        finding.total += len(lost)
    if folded:
        finding.holds = False
        finding.words += f"; {count(len(folded), 'event')} folded across the end of an interval"
        finding.evidence += folded
        finding.total += len(folded)
    return finding


def _compare(
    m: Material, volume: str, tracker: Bitmap, replayed: Bitmap, lost: list[Loss]
) -> _Finding:
    """Compare bit for bit; a bit that only the tracker has is excused by lost events."""
    unmarked, unseen = (replayed - tracker).indices(), (tracker - replayed).indices()
    told = f"{volume}: sequence and bitmap agree on {count(tracker.count(), 'block')}"
    finding = _Finding(True, told)
    if len(unmarked):
        finding.holds = False
        finding.evidence += _items(m, volume, unmarked, "written, and not marked by the tracker")
    if len(unseen):
        finding.holds = False
        note = "marked by the tracker, and no recorded event touches it"
        finding.evidence += _items(m, volume, unseen, note, lost)
    if finding.holds is False:
        finding.words = (
            f"{volume}: {count(len(unmarked), 'block')} written and not marked, "
            f"{len(unseen):,} marked and not in the sequence"
        )
        finding.total = len(unmarked) + len(unseen)
    return finding


def _items(
    m: Material, volume: str, blocks: Ints, note: str, lost: list[Loss] | None = None
) -> list[dict[str, Any]]:
    shown = blocks[:EVIDENCE_LIMIT]
    times = dict(LastWrites(m.case, volume, m.k, shown).times())
    if lost and lost[0].after:  # nobody saw the write: it was about then
        times = {block: times.get(block, lost[0].after) for block in shown.tolist()}
    return m.block_items(shown, times, f"{volume}: {note}")


def _folded(m: Material, volume: str) -> list[dict[str, Any]]:
    """Return re-submitted remainders whose submission was recorded in another interval.

    A remainder is of the last event by the same task that is none itself; both
    lie inside one submission, so they must lie in one interval.
    """
    flag = FLAGS["remainder"]
    frames = []
    for k in (m.k - 1, m.k):
        if k >= 0 and (volume == "physical" or k == m.k):
            frames += [frame[_NUMBERED] for frame in m.case.interval(k).iter_writes(volume)]
    if not frames or not any(len(frame) for frame in frames):
        return []
    if not any((frame["flags"].to_numpy() & flag).any() for frame in frames):
        return []
    every = pd.concat(frames, ignore_index=True)
    every = every[every["seq"].notna() & every["pid"].notna()]
    every = every.sort_values(["pid", "seq"], kind="stable", ignore_index=True)
    remainder = (every["flags"].to_numpy() & flag) != 0
    parent = np.maximum.accumulate(np.where(remainder, -1, np.arange(len(every))))
    pid, interval = every["pid"].to_numpy(np.int64), every["interval"].to_numpy(np.int64)
    known = remainder & (parent >= 0)
    at = np.flatnonzero(known & (interval == m.k))
    at = at[(pid[parent[at]] == pid[at]) & (interval[parent[at]] != m.k)]
    return [
        item(
            block=int(every["offset"][n]) // m.granularity,
            offset=every["offset"][n],
            length=every["length"][n],
            time=format_time(every["time"][n]),
            note=f"{volume}: the rest of an event of interval {interval[parent[n]]}",
        )
        for n in at.tolist()
    ]
