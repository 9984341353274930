"""What rules would leave out of each backup, before anything is deleted.

Judged on the snapshots as they are, brought to rest where that was needed.  The incremental is
planned twice, with and without the rules, under the policy "allocated": ``C_k`` of `plan`, from
what the running system wrote since the base.  The writes of a delete itself (some metadata)
are in neither.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from cbtlab.bitmap import Bitmap
from cbtlab.case import Case, Interval
from cbtlab.exclude import Foreseen, RuleList, foreseen
from cbtlab.files import VolumeMap, map_volume
from cbtlab.images import Image
from cbtlab.plan import Plan, plan
from cbtlab.progress import progress
from cbtlab.replay import Replay
from cbtlab.rules import parse, with_instant
from cbtlab.units import format_bytes, format_time

__all__ = ["DryBackup", "DryRun", "dry_run", "dry_run_image"]

_SHOWN = 10  # names and rules that the text tells of each backup


@dataclass
class DryBackup:
    """What the rules would do to one backup.

    ``without`` and ``with_rules`` are its plans; None for a backup that was thrown away.
    """

    k: int
    kept: bool
    rules: RuleList
    found: Foreseen
    block_size: int
    without: Plan | None
    with_rules: Plan | None
    instant_ns: int | None = None

    @property
    def saved(self) -> Bitmap | None:
        """The units that would not be stored."""
        if self.without is None or self.with_rules is None:
            return None
        return self.without.copied - self.with_rules.copied

    @property
    def added(self) -> Bitmap | None:
        """The units that would be stored because of the rules: what the base does not hold then.

        A file that moves out of an excluded place comes in without a write.
        """
        if self.without is None or self.with_rules is None:
            return None
        return self.with_rules.copied - self.without.copied

    def by_rule(self) -> list[dict[str, Any]]:
        """One entry a rule: the names it decides, their bytes, what it frees, what it saves.

        ``units`` are those of `saved` that its blocks touch, so two rules may share one.
        """
        named, saved = self.found.named, self.saved
        once = named.drop_duplicates(["inode", "code"])
        names = named["rule"].value_counts().to_dict()
        sizes = once.groupby("rule")["size"].sum().to_dict()
        entries = []
        for number, line in enumerate(self.rules.rules):
            if not line.strip() or line.startswith("#") or parse(line).pattern.startswith("!"):
                continue
            freed = self.found.rules.get(number)
            touched = None if saved is None else 0
            if freed is not None and saved is not None:
                touched = (saved & freed.outward(saved.granularity)).count()
            entries.append(
                {
                    "rule": line,
                    "set": self.rules.set_of(number) or None,
                    "names": int(names.get(number, 0)),
                    "bytes": int(sizes.get(number, 0)),
                    "freed_bytes": 0 if freed is None else _bytes(freed),
                    "units": touched,
                }
            )
        return entries

    def by_set(self) -> list[dict[str, Any]]:
        """The same, summed for each ready-made set."""
        entries = []
        for entry in self.rules.sets:
            numbers = range(entry["first"], entry["first"] + entry["count"])
            mine = [rule for rule in self.by_rule() if rule["set"] == entry["name"]]
            freed = [self.found.rules[n] for n in numbers if n in self.found.rules]
            saved, units = self.saved, None
            if saved is not None:
                touched = Bitmap(saved.volume_size, saved.granularity)
                for each in freed:
                    touched = touched | each.outward(saved.granularity)
                units = (saved & touched).count()
            sums = {key: sum(rule[key] for rule in mine) for key in ("names", "bytes")}
            freed_bytes = sum(_bytes(each) for each in freed)
            entries.append(
                {"set": entry["name"], **sums, "freed_bytes": freed_bytes, "units": units}
            )
        return entries

    def document(self) -> dict[str, Any]:
        """Return the backup as ``cbtlab dry-run --json`` prints it."""
        named, saved, added = self.found.named, self.saved, self.added
        columns = ["path", "inode", "size", "linked"]
        files = [
            {**row, "linked": row["linked"] or None, "rule": self.rules.rules[number]}
            for row, number in zip(
                named[columns].to_dict("records"), named["rule"].tolist(), strict=True
            )
        ]
        return {
            "k": self.k,
            "kept": self.kept,
            "base": None if self.without is None else self.without.base,
            "kind": None if self.without is None else self.without.kind,
            "instant": None
            if self.instant_ns is None
            else format_time(np.datetime64(self.instant_ns, "ns")),
            "names": len(named),
            "bytes": int(named.drop_duplicates(["inode", "code"])["size"].sum()),
            "freed_bytes": _bytes(self.found.mask),
            "unit": None if self.without is None else self.without.unit,
            "copied": None if self.without is None else self.without.copied.count(),
            "copied_with_rules": None
            if self.with_rules is None
            else self.with_rules.copied.count(),
            "units_saved": None if saved is None else saved.count(),
            "units_added": None if added is None else added.count(),
            "bytes_saved": None
            if saved is None or added is None
            else _bytes(saved) - _bytes(added),
            "rules": self.by_rule(),
            "sets": self.by_set(),
            "files": files,
            "staying": self.found.staying.to_dict("records"),
            "unnamed": self.found.unnamed.to_dict("records"),
        }


@dataclass
class DryRun:
    """The dry run of a case, or of one image."""

    name: str
    backups: list[DryBackup] = field(default_factory=list)

    def document(self) -> dict[str, Any]:
        """Return the dry run as ``cbtlab dry-run --json`` prints it."""
        return {
            "name": self.name,
            "policy": "allocated",
            "backups": [backup.document() for backup in self.backups],
        }

    def frame(self) -> pd.DataFrame:
        """One row a backup and rule: ``k``, ``rule``, ``set``, ``names``, ``bytes`` …."""
        rows = [{"k": backup.k, **rule} for backup in self.backups for rule in backup.by_rule()]
        columns = ["k", "rule", "set", "names", "bytes", "freed_bytes", "units"]
        frame: pd.DataFrame = pd.DataFrame(rows, columns=columns)
        return frame.astype({"units": "Int64"})

    def text(self) -> str:
        """Return the dry run in words."""
        return "\n".join(line for backup in self.backups for line in _lines(backup))


def dry_run(case: Case, rules: RuleList | None = None, *, instant_ns: int | None = None) -> DryRun:
    """Judge rules on every backup of a case; None: each backup's own.

    Ages count from the instant of each snapshot, or from ``instant_ns`` where none was recorded.

    InputError for a file system that cannot be mapped, and for a condition that cannot be
    judged: an age in a case without its instants.
    """
    replay, done = Replay(case), DryRun(case.name)
    held: dict[int, tuple[Bitmap, Bitmap]] = {}
    with progress("judging", len(case.intervals), "backup") as bar:
        for interval in case.intervals:
            with interval.mended() as image:
                volume = map_volume(image)
            mine = _of_backup(interval, rules, instant_ns)
            found = foreseen(volume, mine.rules)
            plans: tuple[Plan | None, Plan | None] = (None, None)
            if interval.kept:
                here = (volume.in_use, volume.in_use - found.mask)
                plans = _plans(replay, interval, here, held)
                held[interval.k] = here
            done.backups.append(
                DryBackup(
                    interval.k,
                    interval.kept,
                    mine,
                    found,
                    volume.block_size,
                    *plans,
                    instant_ns if interval.instant_ns is None else interval.instant_ns,
                )
            )
            bar.update(1)
    return done


def dry_run_image(
    image: Image, rules: RuleList, *, instant_ns: int, offset: int = 0, unit: int = 4096
) -> DryRun:
    """Judge rules on the file system at ``offset`` of one image, as a full backup of it."""
    with progress("judging", None, "volume"):
        volume: VolumeMap = map_volume(image, offset)
        mine = _at(rules, instant_ns)
        found = foreseen(volume, mine.rules)
    master = Bitmap.full(image.size, unit)
    plans = [
        plan(0, master, mask, None, None, unit)
        for mask in (volume.in_use, volume.in_use - found.mask)
    ]
    backup = DryBackup(0, True, mine, found, volume.block_size, plans[0], plans[1], instant_ns)
    return DryRun(image.name, [backup])


# Within -----------------------------------------------------------------------------------------


def _of_backup(interval: Interval, rules: RuleList | None, instant_ns: int | None) -> RuleList:
    own = RuleList(interval.patterns, tuple(interval.sets))
    known = instant_ns if interval.instant_ns is None else interval.instant_ns
    return _at(own if rules is None else rules, known)


def _at(rules: RuleList, instant_ns: int | None) -> RuleList:
    return RuleList(tuple(with_instant(rules.rules, instant_ns)), rules.sets)


def _plans(
    replay: Replay,
    interval: Interval,
    here: tuple[Bitmap, Bitmap],
    held: dict[int, tuple[Bitmap, Bitmap]],
) -> tuple[Plan, Plan]:
    """The plans of a backup without and with the rules; the base was held likewise."""
    k, unit = interval.k, max(interval.granularity, 4096)
    reason = "; ".join(replay.usable(k))
    base = None if reason else interval.base
    written = None if base is None else replay.merged(k).physical
    empty = Bitmap(interval.volume_size, interval.granularity)
    changed = empty if written is None else written
    return tuple(  # type: ignore[return-value]
        plan(k, changed, mask, base, None if base is None else held[base][n], unit, reason)
        for n, mask in enumerate(here)
    )


def _bytes(bitmap: Bitmap) -> int:
    return int(bitmap.extents()[1].sum())


def _lines(backup: DryBackup) -> list[str]:
    """One backup in words: sums, what each set and rule saves, whose blocks stay."""
    told = backup.document()
    lines = [
        f"backup {told['k']}: {told['names']:,} names, {format_bytes(told['bytes'])}, of which "
        f"{format_bytes(told['freed_bytes'])} would be free"
    ]
    if told["units_saved"] is not None:
        lines[0] += (
            f"; the {told['kind']} would store {told['copied_with_rules']:,} units of "
            f"{told['unit']} bytes instead of {told['copied']:,}: "
            f"{format_bytes(abs(told['bytes_saved']))} "
            + ("less" if told["bytes_saved"] >= 0 else "more")
        )
    elif not told["kept"]:
        lines[0] += "; it was thrown away"
    for entry in told["sets"]:
        lines.append(f"  set {entry['set']}: {_sums(entry)}")
    rules = [rule for rule in told["rules"] if rule["names"]]
    rules.sort(key=lambda rule: -rule["freed_bytes"])
    lines += [f"  {rule['rule']}: {_sums(rule)}" for rule in rules[:_SHOWN]]
    lines += [f"  and {len(rules) - _SHOWN:,} more rules"] * (len(rules) > _SHOWN)
    nothing = len(told["rules"]) - len(rules)
    lines += [f"  {nothing:,} rules name nothing"] * (nothing > 0)
    stay = sorted(told["staying"], key=lambda row: -row["bytes"])
    lines += [
        f"  stays: {format_bytes(row['bytes'])} of {row['path']}, which {row['owner']} has too "
        f"({row['why']})"
        for row in stay[:_SHOWN]
    ]
    lines += [f"  and {len(stay) - _SHOWN:,} more that stay"] * (len(stay) > _SHOWN)
    if told["unnamed"]:
        size = format_bytes(sum(row["bytes"] for row in told["unnamed"]))
        lines.append(f"  {len(told['unnamed']):,} open files without a name hold {size}: no rule")
    return lines


def _sums(entry: dict[str, Any]) -> str:
    units = "" if entry["units"] is None else f", {entry['units']:,} units not stored"
    return (
        f"{entry['names']:,} names, {format_bytes(entry['bytes'])}, "
        f"{format_bytes(entry['freed_bytes'])} free{units}"
    )
