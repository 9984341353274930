"""The report's pictures, as data URIs; their sum is bounded, so that the file stays small."""

from __future__ import annotations

import base64
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from markupsafe import Markup
from matplotlib.figure import Figure

from cbtlab import plots
from cbtlab.audit import Audit, Backup
from cbtlab.bitmap import Bitmap
from cbtlab.case import Case
from cbtlab.phases import instants, spans
from cbtlab.replay import Replay
from cbtlab.writes import empty
from cbtlab.writes.read import concat
from cbtlab.writes.schema import VOLUMES

BUDGET = 1_300_000  # bytes of all pictures in the file
DRAWN = 2_000_000  # writes in the timeline; of more, one in so many is drawn


class Pictures:
    """Draws until the budget is used up; a picture that does not fit is None."""

    def __init__(self, budget: int = BUDGET) -> None:
        self._left = budget
        self.left_out = 0

    def add(self, draw: Callable[[], Figure]) -> str | None:
        """Return the picture as a data URI, or None where there is no room for it."""
        if self._left <= 0:
            self.left_out += 1
            return None
        uri = "data:image/png;base64," + base64.b64encode(plots.png(draw())).decode()
        if len(uri) > self._left:
            self.left_out += 1
            self._left = 0
            return None
        self._left -= len(uri)
        return Markup(uri)  # made here, and too long for a value


@dataclass(frozen=True)
class Sample:
    """A write sequence that fits into memory: one in ``every`` of ``rows`` writes."""

    writes: pd.DataFrame
    every: int
    rows: int
    first: np.datetime64 | None
    last: np.datetime64 | None


def sample(case: Case, most: int = DRAWN) -> Sample:
    """Return at most about ``most`` writes of a case, evenly taken, and the extent of all."""
    sources = [(each, volume) for each in case.intervals for volume in VOLUMES]
    rows = sum(
        each.document()[volume]["writes"]["rows"]
        for each, volume in sources
        if each.has(volume, "writes")
    )
    every = max(-(-rows // most), 1)
    frames, times = [empty()], []
    for each, volume in sources:
        for chunk in each.iter_writes(volume):
            if len(chunk):
                time = chunk["time"].to_numpy()
                times += [time.min(), time.max()]
                frames.append(chunk.iloc[::every])
    first, last = (min(times), max(times)) if times else (None, None)
    return Sample(concat(frames, source=case.path), every, rows, first, last)


def overview(
    audit: Audit, document: dict[str, Any], taken: Sample, pictures: Pictures
) -> dict[str, str | None]:
    """Return the timeline and the bars of what each backup stored; None where nothing is."""
    case, writes = audit.case, taken.writes
    phases = [span for interval in case.intervals for span in spans(interval)]
    made: dict[str, str | None] = {"timeline": None, "costs": None}
    if len(writes):
        made["timeline"] = pictures.add(
            lambda: plots.timeline(
                writes,
                volume_size=case.volume_size,
                instants=instants(case),
                spans=phases,
                every=taken.every,
            )
        )
    if any(entry["copied"] is not None for entry in document["intervals"]):
        made["costs"] = pictures.add(lambda: plots.costs(document, document["unit"]))
    return made


def of_backup(
    audit: Audit, backup: Backup, entry: dict[str, Any], pictures: Pictures
) -> dict[str, str | None]:
    """Return the work on its snapshot, merge, block map and excluded files of one backup."""
    made: dict[str, str | None] = {"work": None, "merge": None, "map": None, "excluded": None}
    phases = spans(backup.interval)
    written = backup.interval.writes("snapshot") if phases else None
    if written is not None and len(written) and written["seq"].notna().all():
        made["work"] = pictures.add(
            lambda: plots.snapshot_work(written, phases, volume_size=audit.case.volume_size)
        )
    plan, merged = backup.plan, backup.merged
    if backup.k and entry["base"] is not None:
        made["merge"] = pictures.add(
            lambda: plots.merge_steps(
                _physical(audit.case, entry["base"], backup.k),
                merged.snapshot,
                merged.carry,
                merged.master,
                k=backup.k,
                base=entry["base"],
            )
        )
    if plan is not None:
        made["map"] = pictures.add(lambda: plots.backup_map(plan, merged, backup.mask))
        extents = placed(entry)
        if len(extents):
            made["excluded"] = pictures.add(
                lambda: plots.excluded_files(
                    extents, None if plan.base is None else plan.master, plan.copied
                )
            )
    return made


def _physical(case: Case, base: int, k: int) -> dict[int, Bitmap]:
    """Return ``W_P`` of every interval since the base."""
    replay = Replay(case)
    found = {i: replay.active("physical", i).bitmap for i in range(base + 1, k + 1)}
    return {i: bitmap for i, bitmap in found.items() if bitmap is not None}


def placed(entry: dict[str, Any]) -> pd.DataFrame:
    """Return the extents of the excluded files of a backup that have a place on the volume."""
    rows = [
        (file["path"], extent["physical"], extent["length"])
        for file in entry.get("excluded_files", [])
        for extent in file["extents"]
        if extent["physical"] is not None and extent["kind"] != "inline"
    ]
    path, physical, length = zip(*rows, strict=True) if rows else ((), (), ())
    return pd.DataFrame(
        {
            "path": pd.Series(path, dtype=object),
            "physical": np.array(physical, np.uint64),
            "length": np.array(length, np.uint64),
        }
    )
