"""A case as a notebook uses it: everything in a few words, and pictures of it.

    case = cbtlab.load_example("ext4-office")
    case.writes                        # a DataFrame
    case.intervals[1].master           # a Bitmap
    case.replay().at(time).master      # the same at an instant
    case.excluded                      # files and extents that the rules leave out
    case.audit()                       # the verdicts, as a table

Nothing is computed before it is asked for, and everything only once.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
import weakref
from collections.abc import Sequence
from functools import cached_property
from html import escape
from pathlib import Path
from typing import Any

import pandas as pd

from cbtlab import plots, report
from cbtlab.audit import Audit, Rules, run
from cbtlab.audit.rules import RULES
from cbtlab.bitmap import Bitmap
from cbtlab.case import Case, Interval
from cbtlab.dry_run import dry_run
from cbtlab.errors import InputError
from cbtlab.exclude import Exclusion, collect_rules, excluded
from cbtlab.files import VolumeMap, map_volume
from cbtlab.images import Image
from cbtlab.phases import instants, spans, written_by_phase
from cbtlab.plan import Plan, held, plan
from cbtlab.replay import Merged, Replay
from cbtlab.report.words import clean
from cbtlab.units import format_bytes

DATASETS = Path(__file__).resolve().parent.parent / "datasets"

__all__ = ["NotebookCase", "NotebookInterval", "load_example", "open_case"]


def open_case(path: str | os.PathLike[str]) -> NotebookCase:
    """Open a case for a notebook; raises InputError where there is none."""
    return NotebookCase(Case.open(path))


def load_example(name: str) -> NotebookCase:
    """Open a case that the repository ships, by the name of its folder in ``datasets``."""
    folder = DATASETS / name
    if not re.fullmatch(r"[\w][\w.-]*", name) or not (folder / "case.json").is_file():
        found = sorted(path.parent.name for path in DATASETS.glob("*/case.json"))
        raise InputError(
            name,
            "is no example" if found else "cannot be loaded: no examples beside this package",
            f"there are {', '.join(found)}"
            if found
            else "clone the repository, or open a case of your own with open_case(path)",
        )
    return open_case(folder)


class NotebookInterval:
    """Backup ``k`` and the interval before it: its bitmaps, images, files and plan."""

    def __init__(self, owner: NotebookCase, interval: Interval) -> None:
        self._owner, self.interval = owner, interval
        self.k, self.base, self.kept = interval.k, interval.base, interval.kept
        self.patterns = list(interval.patterns)

    # Bitmaps --------------------------------------------------------------------------------

    @cached_property
    def merged(self) -> Merged:
        """``M_k`` and the parts that it is merged from."""
        return self._owner.replay().merged(self.k)

    @property
    def physical(self) -> Bitmap | None:
        """What the running system changed since the base: ``W_P(j+1) | … | W_P(k)``."""
        return self.merged.physical

    @property
    def snapshot(self) -> Bitmap | None:
        """``W_S(k)``: what mounting and deleting wrote on the snapshot."""
        return self.merged.snapshot

    @property
    def carry(self) -> Bitmap | None:
        """``W_S(j)``: what was written on the base's snapshot."""
        return self.merged.carry

    @property
    def master(self) -> Bitmap:
        """``M_k``: what may have changed since the base; everything for a full backup."""
        return self.merged.master

    @property
    def written(self) -> dict[int, Bitmap]:
        """``W_P`` of each interval since the base, by its number."""
        first = 1 if self.base is None else self.base + 1
        found = {
            i: self._owner.replay().active("physical", i).bitmap for i in range(first, self.k + 1)
        }
        return {i: bitmap for i, bitmap in found.items() if bitmap is not None}

    # Images and files -----------------------------------------------------------------------

    def snapshot_image(self) -> Image:
        """``S_k``, before the delete; a reader to be closed."""
        return self.interval.snapshot()

    def stored_image(self) -> Image:
        """``S_k*``, after the delete: what the backup stores; a reader to be closed."""
        return self.interval.stored()

    @cached_property
    def files(self) -> VolumeMap:
        """The files of ``S_k``, with their extents and owners."""
        with self.interval.mended() as image:  # at rest
            return map_volume(image)

    @cached_property
    def stored_files(self) -> VolumeMap:
        """The files of ``S_k*``; its ``in_use`` is ``A_k``."""
        with self.stored_image() as image:
            return map_volume(image)

    @cached_property
    def exclusion(self) -> Exclusion:
        """What the rules of this backup leave out: ``files``, ``extents``, the mask ``X_k``."""
        return excluded(self.files, self.stored_files, self.patterns)

    @property
    def excluded(self) -> pd.DataFrame:
        """The excluded files with their extents, one row an extent; bytes of the volume."""
        named = pd.concat([self.exclusion.files, self.exclusion.streams])
        named = named[["inode", "stream", "size", "gone"]].drop_duplicates(["inode", "stream"])
        return self.exclusion.extents.merge(named, on=["inode", "stream"], how="left")

    @cached_property
    def phases(self) -> pd.DataFrame | None:
        """What was written while mounting, deleting and unmounting; None without marks."""
        return written_by_phase(self.interval)

    # Plan -----------------------------------------------------------------------------------

    @cached_property
    def held(self) -> Bitmap:
        """``H_k`` under the policy "allocated"."""
        return held(
            "allocated",
            self.stored_files.in_use,
            self.exclusion.mask,
            volume_size=self.interval.volume_size,
            granularity=self.interval.granularity,
        )

    @cached_property
    def plan(self) -> Plan:
        """What the backup stores and declares zero, under the policy "allocated"."""
        reasons = self._owner.replay().usable(self.k)
        base = None if reasons else self.base
        return plan(
            self.k,
            self.master,
            self.held,
            base,
            None if base is None else self._owner.intervals[base].held,
            max(self.interval.granularity, 4096),
            reason="; ".join(reasons),
        )

    def __repr__(self) -> str:
        lies = "" if self.base is None else f" on {self.base}"
        return f"<backup {self.k}{lies}{'' if self.kept else ', thrown away'}>"


class NotebookCase:
    """A case, opened for a notebook.  ``case`` is the `Case` itself."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.name, self.path = case.name, case.path
        self.volume_size, self.granularity, self.blocks = (
            case.volume_size,
            case.granularity,
            case.blocks,
        )
        self.intervals = [NotebookInterval(self, interval) for interval in case.intervals]

    @property
    def writes(self) -> pd.DataFrame:
        """Every recorded write, on both volumes, in order."""
        return self.case.writes

    @cached_property
    def _replay(self) -> Replay:
        return Replay(self.case)

    def replay(self) -> Replay:
        """The replay of the recorded sequences: ``.at(time)``, ``.merged(k)``, ``.active(…)``."""
        return self._replay

    @property
    def excluded(self) -> pd.DataFrame:
        """The excluded files of every backup ``k``, one row an extent."""
        frames = [each.excluded.assign(k=each.k) for each in self.intervals]
        every = pd.concat(frames, ignore_index=True)
        return every[["k", *(name for name in every.columns if name != "k")]]

    def dry_run(
        self,
        *rules: str,
        sets: Sequence[str] = (),
        exclude_from: str | os.PathLike[str] | None = None,
    ) -> pd.DataFrame:
        """What rules would leave out of each backup; without any, each backup's own rules.

        One row a backup and rule: ``k``, ``rule``, ``set``, ``names`` and their ``bytes``,
        ``freed_bytes`` of the volume, and ``units`` that the backup would not store.
        """
        file = None if exclude_from is None else Path(exclude_from)
        given = rules or sets or file is not None
        return dry_run(self.case, collect_rules(file, rules, sets) if given else None).frame()

    def audit(
        self,
        policy: str = "allocated",
        out: str | os.PathLike[str] | None = None,
        *,
        scrub: bool = False,
        rules: Rules = RULES,
        force: bool = False,
    ) -> Audit:
        """Run every check; the result shows itself as a table.

        ``scrub`` overwrites in the chain what no reading of its files returns.

        ``out`` gets ``audit.json``, ``report.html`` and the chain; without it the
        chain goes to a temporary folder that is removed with this object.
        """
        if out is not None:
            return run(self.case, out, policy, force, scrub=scrub, rules=rules, report=report.write)
        folder = tempfile.mkdtemp(prefix="cbtlab-")
        try:
            made = run(self.case, Path(folder) / "audit", policy, scrub=scrub, rules=rules)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        weakref.finalize(made, shutil.rmtree, folder, True)
        return made

    # Pictures -------------------------------------------------------------------------------

    def plot_writes(self) -> plots.Figure:
        """Draw both volumes' writes over time and place."""
        return plots.timeline(
            self.writes,
            volume_size=self.volume_size,
            instants=instants(self.case),
            spans=[span for each in self.case.intervals for span in spans(each)],
        )

    def plot_merge(self, k: int) -> plots.Figure:
        """Draw how ``M_k`` comes about, step by step."""
        each = self.intervals[k]
        return plots.merge_steps(
            each.written, each.snapshot, each.carry, each.master, k=k, base=each.base
        )

    def plot_blocks(self, k: int) -> plots.Figure:
        """Draw what becomes of each block in backup ``k``."""
        each = self.intervals[k]
        return plots.backup_map(each.plan, each.merged, each.exclusion.mask)

    def plot_excluded(self, k: int) -> plots.Figure:
        """Draw the excluded files' extents above what changed and what is stored."""
        each = self.intervals[k]
        master = None if each.plan.base is None else each.master
        return plots.excluded_files(each.exclusion.extents, master, each.plan.copied)

    def __repr__(self) -> str:
        return f"<case {self.name}: {len(self.intervals)} backups of {self.volume_size} bytes>"

    def _repr_html_(self) -> str:
        head = ("backup", "lies on", "writes in use", "on its snapshot", "leaves out")
        body = ""
        for each in self.intervals:
            lies = "thrown away" if not each.kept else "-" if each.base is None else str(each.base)
            cells = [str(each.k), lies, _recorded(each.interval, "physical")]
            cells += [_recorded(each.interval, "snapshot"), ", ".join(map(clean, each.patterns))]
            body += "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>"
        title = (
            f"<b>{escape(clean(self.name))}</b>: {format_bytes(self.volume_size)} in "
            f"{self.blocks:,} blocks of {self.granularity:,} bytes"
        )
        top = "".join(f"<th>{name}</th>" for name in head)
        return f"<p>{title}</p><table><tr>{top}</tr>{body}</table>"


def _recorded(interval: Interval, volume: str) -> str:
    """Return what was recorded of a volume, in a few words."""
    found: dict[str, Any] = interval.document()[volume]
    words = [f"{found['writes']['rows']:,}"] if found["writes"] else []
    words += ["bitmap"] if found["bitmap"] else []
    return ", ".join(words) or "-"
