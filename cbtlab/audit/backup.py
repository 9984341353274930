"""One backup of an audit: build its link, restore it, judge it, and count."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cbtlab.audit.rules import Rules
from cbtlab.audit.scrubbed import added_units, told
from cbtlab.bitmap import Bitmap
from cbtlab.case import Case, Interval
from cbtlab.chain import Chain, restore, verify
from cbtlab.checks import CHECKS, Content, Cost, Material, Verdict, cost, mapped
from cbtlab.checks.lost import Losses
from cbtlab.checks.minimal import minimal
from cbtlab.errors import InputError
from cbtlab.exclude import Exclusion, excluded
from cbtlab.files import VolumeMap
from cbtlab.files.second_opinion import second_opinion
from cbtlab.files.volume import Volume
from cbtlab.images import Image, open_image
from cbtlab.leftovers import Patches, Scrubbed, scrub
from cbtlab.manifest import Fault
from cbtlab.phases import written_by_phase
from cbtlab.plan import Plan, held
from cbtlab.progress import progress
from cbtlab.replay import Merged, Replay

_FILES_LISTED = 1000


@dataclass
class Backup:
    """The counts and verdicts of one backup; blocks of the granularity, units of the store.

    ``merged`` has the bitmaps behind the counts, ``mask`` is X_k, ``plan`` and
    ``cost`` are None for a backup that was thrown away.
    """

    interval: Interval
    merged: Merged
    plan: Plan | None
    reasons: list[str]
    mask: Bitmap | None = None
    cost: Cost | None = None
    checks: list[Verdict] = field(default_factory=list)
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def k(self) -> int:
        """Return the backup's number."""
        return self.interval.k

    @property
    def copied(self) -> int | None:
        """Return how many units were stored."""
        return None if self.plan is None else self.plan.copied.count()

    @property
    def zeroed(self) -> int | None:
        """Return how many units were declared zero."""
        return None if self.plan is None else self.plan.zeroed.count()

    @property
    def least(self) -> int | None:
        """Return how many units truly differ from the base."""
        return None if self.cost is None else self.cost.least.count()

    @property
    def excluded(self) -> int | None:
        """Return how many blocks of M_k touch X_k."""
        if self.mask is None:
            return None
        master = self.merged.master
        return (master & self.mask.outward(master.granularity)).count()

    @property
    def surplus(self) -> dict[str, int] | None:
        """Return the stored units that need not have been, by name."""
        if self.cost is None:
            return None
        return {name: units.count() for name, units in self.cost.surplus.items()}

    def document(self) -> dict[str, Any]:
        """Return the backup as it stands in ``audit.json``."""
        plan = self.plan
        return {
            "k": self.k,
            "kept": self.interval.kept,
            "base": None if self.reasons else self.interval.base,
            "kind": "full" if self.reasons else "incremental",
            "reason": "; ".join(self.reasons),
            **self.merged.counts(),
            "excluded": self.excluded,
            "copied": self.copied,
            "joined": None if plan is None else plan.joined.count(),
            "zeroed": self.zeroed,
            "least": self.least,
            "surplus": self.surplus,
            "bytes_stored": None if plan is None else stored_bytes(plan),
            "checks": [verdict.document() for verdict in self.checks],
            "patterns": list(self.interval.patterns),
            **self.details,
        }


def stored_bytes(plan: Plan) -> int:
    """Return the bytes of the volume that the stored units hold."""
    return int(plan.copied.extents()[1].sum())


class Auditor:
    """Goes through a case's backups in order; the chain grows as it goes."""

    def __init__(
        self,
        case: Case,
        chain: Path,
        work: Path,
        policy: str,
        rules: Rules,
        opened: ExitStack,
        scrub: bool = False,
    ) -> None:
        self.case, self.work, self.policy, self.rules = case, work, policy, rules
        self.scrub = scrub
        self.unit = max(case.granularity, 4096)
        self.chain = Chain.create(
            chain, case.volume_size, case.granularity, self.unit, case.generation, policy
        )
        self.replay = Replay(case)
        self.losses = Losses(self.replay)
        self.content = Content()
        self.plans: dict[int, Plan] = {}
        self.patches: dict[int, Patches] = {}
        self.notes: list[str] = []
        self._opened = opened
        self._restored: tuple[int, Path, Image] | None = None
        self._previous: Image | None = None

    def backups(self) -> Iterator[Backup]:
        """Build and judge every backup; ``unbroken`` is judged of the finished chain."""
        made: list[tuple[Backup, Material]] = []
        with progress("auditing", len(self.case.intervals), "backup") as bar:
            for interval in self.case.intervals:
                made.append(self._backup(interval))
                bar.update(1)
        faults: list[Fault] = verify(self.chain.path) if self.plans else []
        for backup, material in made:
            material.faults = faults
            verdict = CHECKS["unbroken"](material)
            backup.checks = [verdict if old.name == verdict.name else old for old in backup.checks]
            yield backup

    def _backup(self, interval: Interval) -> tuple[Backup, Material]:
        clock = _Clock()
        opened = self._opened
        snapshot = opened.enter_context(interval.snapshot())
        stored = opened.enter_context(interval.stored())
        mended = opened.enter_context(interval.mended()) if interval.was_mended else snapshot
        before, after = _mapped(mended, self.policy), _mapped(stored, self.policy)
        exclusion: Exclusion | None = None
        if before is not None and before.hidden:
            fault = f"cannot be read whole, so names may be missing: {before.hidden[0]}"
            raise InputError(mended.name, fault, "repair a copy with the file system's checker")
        if before is not None and after is not None:
            exclusion = excluded(before, after, list(interval.patterns))
        elif interval.patterns:
            self.notes.append(
                f"backup {interval.k}: no file system was recognised, so no rule was applied"
            )
        clock.lap("map")
        reasons = self.replay.usable(interval.k)
        m = Material(
            self.case,
            interval,
            self.policy,
            self.replay,
            snapshot,
            stored,
            self._previous,
            before,
            after,
            exclusion,
            reasons=reasons,
            plans=self.plans,
            chain=self.chain.path,
            content=self.content,
            losses=self.losses,
            mended=mended,
        )
        backup = Backup(
            interval,
            self._merged(interval, reasons),
            None,
            reasons,
            None if exclusion is None else exclusion.mask,
        )
        if interval.kept:
            self._store(m, backup)
            clock.lap("store")
            self._restore(m)
            clock.lap("restore")
        for name, check in CHECKS.items():
            if name == "minimal" and not m.unjudged:
                backup.cost = cost(m)
                backup.checks.append(minimal(m, backup.cost))
            else:
                backup.checks.append(check(m))
            clock.lap(name)
        backup.details = {**backup.details, **_details(m), "seconds": clock.laps}
        self._done(m)
        return backup, m

    def _merged(self, interval: Interval, reasons: list[str]) -> Merged:
        """Merge the bitmaps by the rules; where they cannot carry, the master is everything."""
        k, base = interval.k, interval.base
        first = 1 if base is None else base + 1
        physical = [
            part
            for i in range(first, k + 1)
            if (part := self.replay.active("physical", i).bitmap) is not None
        ]
        snapshot = self.replay.active("snapshot", k).bitmap
        carry = None if base is None else self.replay.active("snapshot", base).bitmap
        if not reasons:
            return self.rules.merge(physical, snapshot, carry)
        everything = Bitmap.full(self.case.volume_size, self.case.granularity)
        if not physical:
            return Merged(None, snapshot, carry, everything)
        return replace(self.rules.merge(physical, snapshot, carry), master=everything)

    def _store(self, m: Material, backup: Backup) -> None:
        mask = held(
            self.policy,
            None if m.after is None else m.after.in_use,
            None if m.exclusion is None else m.exclusion.mask,
            volume_size=m.size,
            granularity=m.granularity,
        )
        base = None if m.reasons else m.interval.base
        m.plan = backup.plan = self.rules.plan(
            m.k,
            backup.merged.master,
            mask,
            base,
            None if base is None else self.plans[base].held,
            self.unit,
            reason="; ".join(m.reasons),
        )
        patches = self._scrub(m, mask)
        if patches.items or self.patches:
            m.added = added_units(m.plan, patches, self.patches)
            copied = m.plan.copied | m.added
            m.plan = backup.plan = replace(m.plan, copied=copied)
        self.patches[m.k] = patches
        self.plans[m.k] = m.plan
        if self.scrub:
            backup.details["scrubbed"] = told(patches, m.stored)
        link = self.chain.append(
            m.plan,
            Scrubbed(m.stored, patches) if patches.items else m.stored,
            physical=self.replay.active("physical", m.k).bitmap if m.k else None,
            snapshot=self.replay.active("snapshot", m.k).bitmap,
            scrubbed=patches.documents(),
        )
        m.scrubbed = Patches.read(link.scrubbed)
        backup.details["file_bytes"] = link.bytes

    def _scrub(self, m: Material, mask: Bitmap) -> Patches:
        """What to overwrite of S_k* in this link; of a file system that is not known, nothing."""
        if not self.scrub:
            return Patches()
        if m.after is None:
            self.notes.append(
                f"backup {m.k}: no file system was recognised, so nothing was overwritten"
            )
            return Patches()
        return scrub(m.after, m.stored, mask)

    def _restore(self, m: Material) -> None:
        """Restore R_k from the chain on disk into a file that every check reads."""
        path = self.work / f"{m.k:04d}.raw"
        assert m.plan is not None
        if m.plan.base is not None and self._restored and self._restored[0] == m.plan.base:
            m.base_restored = self._restored[2]
        try:
            restore(self.chain, m.k, path)
        except InputError as error:
            m.fault = str(error)
            return
        m.restored_path = path
        m.restored = self._opened.enter_context(open_image(path))
        m.held_saved = self.chain.held(m.k)

    def _done(self, m: Material) -> None:
        """Keep what the next backup needs, and let go of the rest."""
        m.stored.close()
        if self._previous is not None:
            self._previous.close()
        self._previous = m.snapshot
        m.before = m.after = m.exclusion = None
        m.__dict__.pop("restored_map", None)
        if m.restored is not None and m.restored_path is not None:
            if self._restored is not None:
                self._restored[2].close()
                self._restored[1].unlink()
            self._restored = (m.k, m.restored_path, m.restored)


def _mapped(image: Image, policy: str) -> VolumeMap | None:
    """Map an image; an audit takes no offset, so the way out that it names is another policy."""
    try:
        return mapped(image, policy)
    except InputError as error:
        if "offset" not in error.remedy:
            raise
        raise InputError(error.piece, error.fault, "keep everything with --policy union") from error


class _Clock:
    """Seconds by stage."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[name] = round(now - self._last, 3)
        self._last = now


def _details(m: Material) -> dict[str, Any]:
    """Return what the report tells beyond the counts."""
    details: dict[str, Any] = {
        "physical_interval": _count(m.replay.active("physical", m.k).bitmap) if m.k else None,
        "unusable": list(m.interval.unusable),
        "marks": m.interval.marks,
        "log": m.interval.record.get("log", {}),
        "snapshot_phases": _phases(m.interval),
        "digests": {
            "snapshot": m.interval.content_digest("snapshot"),
            "stored": m.interval.content_digest("stored"),
        },
    }
    if m.before is not None:
        details["file_system"] = {
            "kind": m.before.fs,
            "uuid": m.before.uuid,
            "block_size": m.before.block_size,
            "notes": list(m.before.notes),
        }
    if m.exclusion is not None and m.before is not None:
        details |= _exclusion(m.exclusion)
        details["second_opinion"] = _second_opinion(m, m.before, m.exclusion)
    if m.leaks:
        details["leaks"] = m.leaks
    return details


def _second_opinion(m: Material, before: VolumeMap, exclusion: Exclusion) -> dict[str, Any]:
    """Return whether pytsk3 sees the content of the excluded files where our map does."""
    named = before.names["path"].isin(exclusion.files["path"])
    volume = Volume(m.mapped_image)
    found = second_opinion(before, volume, before.names.loc[named, "raw"].tolist())
    return {
        "compared": found.compared,
        "differences": found.differences[:_FILES_LISTED],
        "summary": str(found),
    }


def _exclusion(exclusion: Exclusion) -> dict[str, Any]:
    """Return the excluded files with their extents, and what was subtracted; bounded."""
    places: dict[str, list[dict[str, Any]]] = {}
    listed = exclusion.files.head(_FILES_LISTED)
    own = exclusion.extents[exclusion.extents["path"].isin(listed["path"])]
    for row in own.to_dict("records"):
        places.setdefault(row["path"], []).append(
            {name: _plain(row[name]) for name in ("kind", "physical", "length")}
        )
    files = [
        {name: _plain(value) for name, value in row.items()}
        | {"extents": places.get(row["path"], [])[:_FILES_LISTED]}
        for row in listed.to_dict("records")
    ]
    return {
        "excluded_files": files,
        "excluded_files_total": len(exclusion.files),
        "excluded_streams": [
            {name: _plain(value) for name, value in row.items()}
            for row in exclusion.streams.head(_FILES_LISTED).to_dict("records")
        ],
        "excluded_blocks": exclusion.mask.count(),
        "subtracted": [
            {name: _plain(value) for name, value in row.items()}
            for row in exclusion.subtracted.head(_FILES_LISTED).to_dict("records")
        ],
        "subtracted_total": len(exclusion.subtracted),
    }


def _plain(value: Any) -> Any:
    """Return a value of a table as JSON has it."""
    import pandas as pd

    if value is None or value is pd.NA or (isinstance(value, float) and value != value):
        return None
    if isinstance(value, bool | str | int):
        return value
    return value.item() if hasattr(value, "item") else str(value)


def _count(bitmap: Bitmap | None) -> int | None:
    return None if bitmap is None else bitmap.count()


def _phases(interval: Interval) -> list[dict[str, Any]]:
    """Return what was written on S_k while it was mounted, deleted on, unmounted."""
    found = written_by_phase(interval)
    if found is None:
        return []
    return [
        {"phase": str(name), **{str(column): int(value) for column, value in row.items()}}
        for name, row in found.to_dict("index").items()
    ]
