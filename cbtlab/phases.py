"""The instants of a recording, and what was written in which phase of the work on a snapshot.

A recorder marks when it suspended the volume, switched the interval, brought the
snapshot's file system to rest, mounted it, deleted, and unmounted.  Mounting is
writing: with the marks, the delete's own writes are told apart from the mount's.
Without them, as in a case made of somebody else's tracker, an instant is estimated
from the writes around it, and says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from cbtlab.bitmap import Bitmap
from cbtlab.case import Case, Interval

__all__ = ["PHASES", "Instant", "Span", "instants", "phase_of", "spans", "written_by_phase"]

#: Name to the marks that begin and end it, in order of preference of the end.
_MARKS = {
    "mend": ("mend", "mended"),
    "mount": ("mount", "delete"),
    "delete": ("delete", "unmount"),
    "unmount": ("unmount", "unmounted"),
}
PHASES = {
    "mend": "bringing to rest: log replayed, dirty marks cleared",
    "mount": "mounting: journal, superblock, orphans",
    "delete": "deleting the excluded files",
    "unmount": "unmounting: what the delete left to be written back",
    "other": "outside of these",
}


@dataclass(frozen=True)
class Instant:
    """A named moment; ``exact`` false when it was only estimated from the writes around it."""

    time: np.datetime64
    label: str
    exact: bool = True


@dataclass(frozen=True)
class Span:
    """A phase of the work on a snapshot: ``kind`` is a key of `PHASES`, not ``other``.

    ``first`` and ``after`` are the sequence numbers from which, and up to which
    (exclusive), events belong to it.
    """

    begin: np.datetime64
    end: np.datetime64
    kind: str
    first: int = 0
    after: int = 0


def instants(case: Case) -> list[Instant]:
    """Return ``T_k`` of every backup: as marked, else estimated; none where nothing tells."""
    made = []
    for interval in case.intervals:
        mark = _mark(interval, "instant")
        label = f"$T_{{{interval.k}}}$"
        if mark is not None:
            made.append(Instant(_time(mark), label))
            continue
        estimate = _estimate(case, interval.k)
        if estimate is not None:
            made.append(Instant(estimate, label, exact=False))
    return made


def spans(interval: Interval) -> list[Span]:
    """Return the phases of the work on ``S_k``; an empty list when they were not marked."""
    made = []
    for kind, (first, last) in _MARKS.items():
        begin, end = _mark(interval, first), _mark(interval, last)
        if begin is not None and end is not None and int(end["seq"]) >= int(begin["seq"]):
            made.append(Span(_time(begin), _time(end), kind, int(begin["seq"]), int(end["seq"])))
    return made


def written_by_phase(interval: Interval) -> pd.DataFrame | None:
    """Return what was written on ``S_k`` in each phase, or None without marks or sequence.

    One row a phase, indexed by its name: ``writes``, ``bytes``, ``blocks`` (of the
    granularity, that a write of this phase touches) and ``alone`` (those that no
    other phase touches).
    """
    phases = spans(interval)
    frame = interval.writes("snapshot") if phases else None
    if frame is None or frame["seq"].isna().any():
        return None
    where = phase_of(frame, phases)
    bitmaps = {
        kind: frame[where == kind].writes.bitmap(interval.volume_size, interval.granularity)
        for kind in PHASES
    }
    rows = {}
    for kind, blocks in bitmaps.items():
        others = Bitmap(interval.volume_size, interval.granularity)
        for other, marked in bitmaps.items():
            others = others if other == kind else others | marked
        chosen = frame[where == kind]
        rows[kind] = {
            "writes": len(chosen),
            "bytes": int(chosen["length"].sum()),
            "blocks": blocks.count(),
            "alone": (blocks - others).count(),
        }
    table = pd.DataFrame.from_dict(rows, orient="index")
    return table[~table.index.isin(["mend", "other"]) | (table["writes"] > 0)]


def phase_of(frame: pd.DataFrame, phases: Sequence[Span]) -> npt.NDArray[np.object_]:
    """Return the phase of each write, a key of `PHASES`, by its sequence number."""
    seq = frame["seq"].to_numpy(np.uint64)
    where = np.full(len(frame), "other", object)
    for span in phases:
        where[(seq >= span.first) & (seq < span.after)] = span.kind
    return where


def _mark(interval: Interval, name: str) -> dict[str, Any] | None:
    """Return the mark of this name; the case has checked what is in it."""
    return next((mark for mark in interval.marks if mark["name"] == name), None)


def _time(mark: dict[str, Any]) -> np.datetime64:
    return np.datetime64(int(mark["time_ns"]), "ns")


def _estimate(case: Case, k: int) -> np.datetime64 | None:
    """Return the middle between the last write before ``T_k`` and the first one after it."""
    before = _edge(case, [("physical", k)], last=True)
    after = _edge(case, [("physical", k + 1), ("snapshot", k)], last=False)
    if before is None or after is None:
        return before if after is None else after
    return before + (after - before) // 2 if before <= after else after


def _edge(case: Case, wanted: list[tuple[str, int]], *, last: bool) -> np.datetime64 | None:
    """Return the last or the first time of some sequences."""
    found = []
    for volume, k in wanted:
        if not 0 <= k < len(case.intervals):
            continue
        for frame in case.interval(k).iter_writes(volume):
            if len(frame):
                times = frame["time"].to_numpy()
                found.append(times.max() if last else times.min())
    if not found:
        return None
    return np.datetime64(max(found) if last else min(found), "ns")
