"""Plays write sequences over time: active bitmaps at any instant, and their merge.

A backup stores ``S_k*``, not ``P``, so the master bitmap is::

    M_k = W_P(j+1) | … | W_P(k)  |  W_S(k)  |  W_S(j)          M_0 = everything

with ``j`` the base, the last backup that was kept.  ``W_S(j)`` is the carry-over:
backup ``j`` stored the deletes made on ``S_j``, and ``S_k`` is a copy of ``P``, where
they never happened.  Of backups thrown away between, the ``W_P`` are needed and
the ``W_S`` are not.  Each part is the tracker's own bitmap where the case has it,
else the replay of the sequence.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from cbtlab.bitmap import Bitmap
from cbtlab.case import Case
from cbtlab.errors import InputError
from cbtlab.gaps import Gap, find_gaps, numbers_of
from cbtlab.writes.rows import Rows
from cbtlab.writes.skipped import numbers

__all__ = ["Active", "Merged", "Replay", "active", "merge", "save"]

PARTS = ("physical", "snapshot", "carry", "master")


@dataclass(frozen=True)
class Active:
    """One active bitmap, and where it comes from."""

    bitmap: Bitmap | None
    source: Literal["tracker", "sequence", "none"]


@dataclass(frozen=True)
class Merged:
    """The parts of a master bitmap; None where there is nothing to count."""

    physical: Bitmap | None
    """``W_P(j+1) | … | W_P(k)``"""
    snapshot: Bitmap | None
    """``W_S(k)``"""
    carry: Bitmap | None
    """``W_S(j)``"""
    master: Bitmap
    """``M_k``: their OR, or everything where the backup must be a full one."""

    def counts(self) -> dict[str, int | None]:
        """Marked blocks by name of the part."""
        parts = {name: getattr(self, name) for name in PARTS}
        return {name: None if part is None else part.count() for name, part in parts.items()}

    def document(self, interval: int, until: str | None = None) -> dict[str, Any]:
        """What ``cbtlab replay --json`` prints."""
        return {
            "interval": interval,
            "until": until,
            "volume_size": self.master.volume_size,
            "granularity": self.master.granularity,
            "blocks": self.master.blocks,
            **self.counts(),
        }


def merge(physical: Sequence[Bitmap], snapshot: Bitmap | None, carry: Bitmap | None) -> Merged:
    """Merge ``W_P(j+1) … W_P(k)``, ``W_S(k)`` and ``W_S(j)``; at least one is needed."""
    together = _union(physical)
    master = _union([part for part in (together, snapshot, carry) if part is not None])
    if master is None:
        raise InputError("merge", "there is nothing to merge")
    return Merged(together, snapshot, carry, master)


def active(
    bitmap: Bitmap,
    frame: pd.DataFrame,
    until: np.datetime64 | None = None,
    *,
    overlap_only: bool = False,
) -> None:
    """Mark in ``bitmap`` what the rows of a write sequence touch, up to an instant (inclusive).

    Every operation marks: a discard and a write of zeroes change the volume
    like a write.  ``overlap_only`` takes the rows that were marked in two
    intervals.
    """
    offset, length = frame["offset"].to_numpy(), frame["length"].to_numpy()
    keep = np.ones(len(frame), dtype=np.bool_)
    if until is not None:
        keep &= frame["time"].to_numpy() <= until
    if overlap_only:
        keep &= frame["overlap"].to_numpy(np.bool_)
    if not keep.all():
        offset, length = offset[keep], length[keep]
    bitmap.set_ranges(offset, length)


class Replay:
    """The bitmaps of a case over its intervals and its time.

    Sequences are read in chunks and never held whole.  What a tracker's bitmap
    says is preferred to what its sequence says, except for an instant within
    an interval, which sequences alone know.
    """

    def __init__(self, case: Case) -> None:
        self.case = case
        self._replayed: dict[tuple[str, int], Bitmap | None] = {}

    def base(self, k: int) -> int | None:
        """The last backup kept before ``k``; None where there is none."""
        return self.case.interval(k).base

    # Bitmaps --------------------------------------------------------------------------------

    def tracker(self, volume: str, k: int) -> Bitmap | None:
        """The tracker's own bitmap of a volume in interval ``k``; None where none was recorded."""
        return self.case.interval(k).bitmap(volume)

    def replayed(self, volume: str, k: int, until: Any = None) -> Bitmap | None:
        """The bitmap that the sequence leaves, at its end or at an instant; None without one.

        A write on the physical volume that is marked ``overlap`` counts in its
        own interval and in the next.
        """
        if until is None and (volume, k) in self._replayed:
            return self._replayed[volume, k]
        made = None
        interval = self.case.interval(k)
        if interval.has(volume, "writes"):
            instant = None if until is None else _instant(until)
            made = Bitmap(self.case.volume_size, self.case.granularity)
            for frame in interval.iter_writes(volume):
                active(made, frame, instant)
            if volume == "physical" and k:
                for frame in self.case.interval(k - 1).iter_writes(volume):
                    active(made, frame, instant, overlap_only=True)
        if until is None:
            self._replayed[volume, k] = made
        return made

    def active(self, volume: str, k: int, until: Any = None) -> Active:
        """``W_P(k)`` or ``W_S(k)``, whole, or as it was at an instant (inclusive)."""
        if until is None and (bitmap := self.tracker(volume, k)) is not None:
            return Active(bitmap, "tracker")
        bitmap = self.replayed(volume, k, until)
        return Active(bitmap, "none" if bitmap is None else "sequence")

    def merged(self, k: int, until: Any = None) -> Merged:
        """``M_k`` and its parts; with ``until`` as they were at that instant (inclusive).

        The carry-over is always whole: base and carry-over were there before.
        The master is everything where the interval is not usable.  Raises
        InputError for an instant where a part has a bitmap but no sequence.
        """
        base = self.base(k)
        if until is not None:
            self._must_have_sequences(k, base)
        physical = [
            part
            for i in self._between(base, k)
            if (part := self.active("physical", i, until).bitmap) is not None
        ]
        snapshot = self.active("snapshot", k, until).bitmap
        carry = None if base is None else self.active("snapshot", base).bitmap
        if self.usable(k):
            everything = Bitmap.full(self.case.volume_size, self.case.granularity)
            return Merged(_union(physical), snapshot, carry, everything)
        return merge(physical, snapshot, carry)

    def at(self, time: Any, k: int | None = None) -> Merged:
        """The bitmaps at an instant, of interval ``k`` or of the one that it falls in."""
        instant = _instant(time)
        return self.merged(self.interval_at(instant) if k is None else k, until=instant)

    def interval_at(self, time: Any) -> int:
        """The last interval in which the physical volume was written at ``time`` or before."""
        instant = _instant(time)
        for interval in reversed(self.case.intervals):
            for frame in interval.iter_writes("physical"):
                if (frame["time"].to_numpy() <= instant).any():
                    return interval.k
        return min(1, len(self.case.intervals) - 1)

    # What can be relied on ------------------------------------------------------------------

    @cached_property
    def gaps(self) -> list[Gap]:
        """The gaps in the sequence numbers of the whole case, rising."""
        sequences = []
        for interval in self.case.intervals:
            for volume in ("physical", "snapshot"):
                if interval.has(volume, "writes"):
                    chunks = (
                        (len(frame), numbers(frame)) for frame in interval.iter_writes(volume)
                    )
                    sequences.append(numbers_of(volume, interval.k, chunks))
        return find_gaps(sequences)

    def usable(self, k: int) -> list[str]:
        """Why backup ``k`` cannot be an incremental; empty where it can.

        What must be known is ``W_P`` of every interval since the base, and ``W_S``
        of the backup and of its base.  Each is known by the tracker's bitmap,
        or by a sequence in which no event may be missing; and no interval may
        have been recorded as unusable: a torn bitmap, a bypass, a new
        generation.  A recorded reason that begins with "physical" or
        "snapshot" is about that volume alone, any other about both.
        """
        if k == 0:
            return ["the first backup"]
        base = self.base(k)
        if base is None:
            return ["no earlier backup was kept"]
        needed = [("physical", i) for i in self._between(base, k)]
        needed += [("snapshot", k), ("snapshot", base)]
        reasons = [
            f"interval {i}: {reason}"
            for volume, i in needed
            for reason in [*self._recorded(volume, i), *self._unknown(volume, i)]
        ]
        return list(dict.fromkeys(reasons))

    def rows(self, k: int) -> Rows | None:
        """The operations that ``M_k`` was made of, as arrays; None without any sequence."""
        base = self.base(k)
        frames = list(self._rows("snapshot", k))
        for i in self._between(base, k):
            frames += self._rows("physical", i)
        if base is not None:
            frames += self._rows("snapshot", base)
            frames += [frame[frame["overlap"]] for frame in self._rows("physical", base)]
        if not frames:
            return None
        return Rows(
            np.concatenate([frame["offset"].to_numpy(np.uint64) for frame in frames]),
            np.concatenate([frame["length"].to_numpy(np.uint64) for frame in frames]),
            np.concatenate([frame["overlap"].to_numpy(np.bool_) for frame in frames]),
            np.concatenate(
                [frame["op"].isin(["discard", "secure_erase"]).to_numpy() for frame in frames]
            ),
        )

    # Within ---------------------------------------------------------------------------------

    @staticmethod
    def _between(base: int | None, k: int) -> range:
        """The intervals of the physical volume that ``M_k`` spans; interval 0 has none."""
        return range(1 if base is None else base + 1, k + 1)

    def _rows(self, volume: str, k: int) -> Iterator[pd.DataFrame]:
        for frame in self.case.interval(k).iter_writes(volume):
            yield frame[["offset", "length", "overlap", "op"]]

    def _recorded(self, volume: str, k: int) -> list[str]:
        other = "snapshot" if volume == "physical" else "physical"
        reasons = self.case.interval(k).unusable
        return [reason for reason in reasons if not reason.lower().startswith(other)]

    def _unknown(self, volume: str, k: int) -> list[str]:
        """Why one active bitmap is not known; a snapshot nobody recorded counts as unwritten."""
        interval = self.case.interval(k)
        if interval.has(volume, "bitmap"):
            return []
        if not interval.has(volume, "writes"):
            return ["nothing was recorded of the physical volume"] if volume == "physical" else []
        hiding = [gap for gap in self.gaps if (volume, k) in gap.hides]
        if not hiding:
            return []
        more = f", and {len(hiding) - 1} more gaps" if len(hiding) > 1 else ""
        return [
            f"{hiding[0]}{more} in the sequence, and the {volume} volume has no tracker's bitmap"
        ]

    def _must_have_sequences(self, k: int, base: int | None) -> None:
        for volume, i in [("snapshot", k), *(("physical", i) for i in self._between(base, k))]:
            interval = self.case.interval(i)
            if interval.has(volume, "bitmap") and not interval.has(volume, "writes"):
                raise InputError(
                    self.case.path,
                    f"the {volume} volume of interval {i} has a bitmap and no sequence",
                    "replay the whole interval, without an instant",
                )


def save(merged: Merged, document: dict[str, Any], folder: Path, *, force: bool = False) -> None:
    """Save the four bitmaps and ``replay.json`` in a folder; a part that is None has no mark."""
    empty = Bitmap(merged.master.volume_size, merged.master.granularity)
    pieces = {f"{name}.bits": (getattr(merged, name) or empty).to_bytes() for name in PARTS}
    pieces["replay.json"] = (json.dumps(document, indent=1) + "\n").encode()
    there = [name for name in pieces if (folder / name).exists()]
    if there and not force:
        raise InputError(folder / there[0], "exists", "choose another folder, or --force")
    parts = {name: folder / f".{name}.part" for name in pieces}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in pieces.items():
            parts[name].write_bytes(data)
        # The document last: bitmaps beside a replay.json are always those that it tells of.
        (folder / "replay.json").unlink(missing_ok=True)
        for name, part in parts.items():
            part.replace(folder / name)
    except OSError as error:
        raise InputError(folder, f"cannot be written: {error.strerror}") from error
    finally:
        for part in parts.values():
            with suppress(OSError):
                part.unlink()


def _union(bitmaps: Sequence[Bitmap]) -> Bitmap | None:
    if not bitmaps:
        return None
    made = bitmaps[0].copy()
    for bitmap in bitmaps[1:]:
        made = made | bitmap
    return made


def _instant(time: Any) -> np.datetime64:
    """An instant as numpy's, in UTC: whole nanoseconds since 1970, text, or a stamp."""
    try:
        stamp = pd.Timestamp(time)
        if stamp.tzinfo is not None:
            stamp = stamp.tz_convert("UTC").tz_localize(None)
        if pd.isna(stamp):
            raise ValueError("no time")
        return stamp.as_unit("ns").to_datetime64()
    except (ValueError, TypeError, OverflowError) as error:
        raise InputError(
            "instant", f"{time!r} is no instant", "give nanoseconds or a stamp"
        ) from error
