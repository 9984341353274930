"""The story of one block: which writes, when, by whom, whose it is, and what became of it."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import numpy as np
import pandas as pd

from cbtlab.bitmap import Bitmap
from cbtlab.case import Case
from cbtlab.checks import mapped
from cbtlab.errors import InputError
from cbtlab.exclude import Exclusion, excluded
from cbtlab.files import VolumeMap
from cbtlab.plan import POLICIES, Plan, held, plan
from cbtlab.replay import Replay
from cbtlab.units import format_bytes, format_time

ROWS_LISTED = 1000
PARTS = ("physical", "snapshot", "carry", "master")
_ROW = ("time", "seq", "volume", "interval", "op", "offset", "length", "pid", "comm", "inode")


def explain(case: Case, k: int, block: int, policy: str = "allocated") -> dict[str, Any]:
    """Tell the story of block ``block`` (of the case's granularity) in backup ``k``.

    The decision is the one that the chain under ``policy`` would make; of a
    backup that was thrown away, what it would have been.  Raises InputError
    for a backup or block that the case does not have.
    """
    interval = case.interval(k)
    if policy not in POLICIES:
        raise InputError("policy", f"{policy!r} is unknown", "use one of " + ", ".join(POLICIES))
    if not 0 <= block < case.blocks:
        raise InputError(
            case.path, f"has no block {block}", f"its volume has 0 to {case.blocks - 1}"
        )
    replay = Replay(case)
    merged, base = replay.merged(k), interval.base
    reasons = replay.usable(k)
    offset = block * case.granularity
    length = min(case.granularity, case.volume_size - offset)
    rows, total = _writes(replay, k, block)
    with ExitStack() as opened:
        views = _View.of(case, k, policy, opened)
        below = None if base is None or reasons else _View.of(case, base, policy, opened)
        decided = plan(
            k,
            merged.master,
            views.held,
            None if below is None else base,
            None if below is None else below.held,
            max(case.granularity, 4096),
            reason="; ".join(reasons),
        )
        owners = views.owners(offset, length)
        decision = decided.decision(block)
        marked = {name: _has(getattr(merged, name), block) for name in PARTS}
        if reasons:
            marked["master"] = True
        return {
            "block": block,
            "offset": offset,
            "length": length,
            "interval": k,
            "policy": policy,
            "base": None if below is None else base,
            "kept": interval.kept,
            "writes": [_document(row) for row in rows.to_dict("records")],
            "writes_total": total,
            "owner": owners[0] if owners else None,
            "owners": owners,
            "excluded": views.excluded_path(offset, length),
            "in": marked,
            "decision": decision,
            "reason": _reason(decided, views, block, marked),
        }


class _View:
    """What is known of one backup's S_k and S_k*: maps, exclusion, H_k."""

    def __init__(
        self,
        before: VolumeMap | None,
        after: VolumeMap | None,
        exclusion: Exclusion | None,
        mask: Bitmap,
    ) -> None:
        self.before, self.after, self.exclusion, self.held = before, after, exclusion, mask

    @classmethod
    def of(cls, case: Case, k: int, policy: str, opened: ExitStack) -> _View:
        interval = case.interval(k)
        before = mapped(opened.enter_context(interval.mended()), policy)
        after = mapped(opened.enter_context(interval.stored()), policy)
        exclusion = None
        if before is not None and after is not None:
            exclusion = excluded(before, after, list(interval.patterns))
        mask = held(
            policy,
            None if after is None else after.in_use,
            None if exclusion is None else exclusion.mask,
            volume_size=case.volume_size,
            granularity=case.granularity,
        )
        return cls(before, after, exclusion, mask)

    def owners(self, offset: int, length: int) -> list[str]:
        """Return whose bytes lie in the block on S_k, in order, each once."""
        if self.before is None:
            return []
        step = min(self.before.block_size, length)
        names = self.before.owners(np.arange(offset, offset + length, step))
        return list(dict.fromkeys(str(name) for name in names))

    def holds(self, offset: int, length: int) -> bool:
        """Return whether a byte of the range is held."""
        grain = self.held.granularity
        return bool(self.held.bits[offset // grain : (offset + length - 1) // grain + 1].any())

    def excluded_path(self, offset: int, length: int) -> str | None:
        """Return an excluded file that the range touches, or None."""
        if self.exclusion is None:
            return None
        own = self.exclusion.extents
        own = own[own["kind"] != "inline"]
        start = own["physical"].to_numpy(np.int64)
        hit = (start < offset + length) & (start + own["length"].to_numpy(np.int64) > offset)
        return str(own["path"].to_numpy()[hit][0]) if hit.any() else None


def _writes(replay: Replay, k: int, block: int) -> tuple[pd.DataFrame, int]:
    """Return the rows of M_k that touch the block, the last ones if there are too many."""
    case, base = replay.case, replay.base(k)
    wanted = [("physical", i) for i in range(1 if base is None else base + 1, k + 1)]
    wanted += [("snapshot", i) for i in (base, k) if i is not None]
    begin = block * case.granularity
    end = begin + case.granularity
    found = []
    for volume, i in wanted:
        for frame in case.interval(i).iter_writes(volume):
            offset = frame["offset"].to_numpy()
            hit = (offset < end) & (offset + frame["length"].to_numpy() > begin)
            if hit.any():
                found.append(frame.loc[hit, list(_ROW)])
    if base:
        for frame in case.interval(base).iter_writes("physical"):
            offset = frame["offset"].to_numpy()
            hit = (offset < end) & (offset + frame["length"].to_numpy() > begin)
            hit &= frame["overlap"].to_numpy()
            if hit.any():
                found.append(frame.loc[hit, list(_ROW)])
    if not found:
        return pd.DataFrame(columns=list(_ROW)), 0
    every = pd.concat([part.astype({"comm": object}) for part in found], ignore_index=True)
    every = every.sort_values("time", kind="stable", ignore_index=True)
    return every.tail(ROWS_LISTED), len(every)


def _document(row: Mapping[Any, Any]) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for name in _ROW:
        value = row[name]
        if value is None or value is pd.NA or (isinstance(value, float) and value != value):
            made[name] = None
        elif name == "time":
            made[name] = format_time(value)
        else:
            made[name] = value if isinstance(value, str) else int(value)
    return made


def _has(bitmap: Bitmap | None, block: int) -> bool:
    return bitmap is not None and block in bitmap


def _reason(decided: Plan, views: _View, block: int, marked: dict[str, bool]) -> str:
    """Return, in one sentence, why the block was treated as it was."""
    unit = decided.unit
    offset = block * decided.master.granularity
    size = min(decided.master.granularity, decided.master.volume_size - offset)
    own = views.holds(offset, size)
    decision = decided.decision(block)
    out = views.excluded_path(offset, size)
    owners = [name for name in views.owners(offset, size) if name.startswith("/")]
    if out:
        left_out = f"it is of the excluded file {out}"
    elif owners:
        left_out = f"{owners[0]} has it allocated, and reading it gives zeros: it is unwritten"
    else:
        left_out = "nothing uses it"
    if decision == "copied":
        if decided.base is None:
            why = f"the backup is a full one ({decided.reason})"
        elif any(marked[name] for name in PARTS):
            why = _changed(marked)
        elif offset // unit in decided.joined:
            why = "the base did not hold all of it, though nothing wrote it since"
        else:
            why = f"another block of its unit of {format_bytes(unit)} changed"
        if own:
            return f"Stored: {why}."
        return f"Stored as zeros: {left_out}, but it shares a unit that is held, and {why}."
    if decision == "zeroed":
        return f"Declared zero: the base held bytes of its unit, and now {left_out}."
    if decision == "unchanged":
        return "Left to the base: it is held, the base has it, and nothing changed it since."
    changed = ", although it changed" if marked["master"] and decided.base is not None else ""
    return f"Not held{changed}: {left_out}."


def _changed(marked: dict[str, bool]) -> str:
    words = {
        "physical": "the running system wrote it since the base",
        "snapshot": "the delete on this snapshot, or its mount, wrote it",
        "carry": "the delete on the base's snapshot wrote it (the carry-over)",
    }
    told = [words[name] for name in ("physical", "snapshot", "carry") if marked[name]]
    return ", and ".join(told) or "the master bitmap marks it"


def text(document: dict[str, Any]) -> str:
    """Return the story in lines for a person."""
    lines = [
        f"block {document['block']} of backup {document['interval']}: "
        f"{document['length']} bytes at {document['offset']}, policy {document['policy']}",
        f"owner: {', '.join(document['owners']) or 'unknown'}",
        "marked in: " + (", ".join(n for n, has in document["in"].items() if has) or "none"),
    ]
    for row in document["writes"][-20:]:
        who = f" by {row['comm']}" if row["comm"] else ""
        who += f" ({row['pid']})" if row["pid"] is not None else ""
        lines.append(
            f"  {row['time']}  {row['volume']} {row['interval']}: {row['op']} of "
            f"{row['length']} bytes at {row['offset']}{who}"
        )
    if document["writes_total"] > 20:
        lines.append(f"  the last 20 of {document['writes_total']} writes")
    lines.append(f"{document['decision']}: {document['reason']}")
    return "\n".join(lines)


__all__ = ["explain", "text"]
