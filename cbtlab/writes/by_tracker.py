"""A native stream with the tracker of each row: several volumes, or products, in one recording."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cbtlab.errors import InputError
from cbtlab.writes.native import MAGIC, open_stream
from cbtlab.writes.trackers import listed


def is_stream(path: str | os.PathLike[str]) -> bool:
    """Return whether a file is a native stream, by its first bytes."""
    with Path(path).open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def read_by_tracker(
    path: str | os.PathLike[str], *, tracker: int | None = None, salvage: bool = False
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Return the rows of a stream, or of one of its trackers, and the summary of them.

    The write sequence has two columns more: ``tracker`` (the id, uint16) and
    ``name`` (of its volume; empty where the stream does not say).  What was
    lost is counted over the whole stream, since nobody knows whose it was; the
    summary's ``trackers`` lists id, role, name, volume size and events of each,
    and ``attrs["notes"]`` is what a reader should know.  InputError when there
    is no such tracker.
    """
    stream = open_stream(path, allow_cut=salvage)
    trackers = listed(stream.trackers, stream.counts)
    frame = stream.frame()
    frame.attrs.update(first_seq=stream.first_seq, next_seq=stream.next_seq, notes=stream.notes)
    names = np.full(1 << 16, "", object)
    for one in trackers:
        names[one["id"]] = one["name"]
    ids = stream.events["tracker"]
    frame.insert(3, "tracker", ids.copy())
    frame.insert(4, "name", names[ids])
    summary = frame.writes.summary()
    if tracker is not None:
        if all(one["id"] != tracker for one in trackers):
            known = ", ".join(f"{one['id']} ({one['name'] or 'unknown'})" for one in trackers)
            raise InputError(path, f"has no tracker {tracker}", f"it has {known or 'none'}")
        frame = frame[ids == tracker].reset_index(drop=True)
        frame.attrs["notes"] = []
        lost = {key: summary[key] for key in ("lost", "gaps")}
        summary = frame.assign(seq=pd.NA).writes.summary() | lost
    return frame, summary | {"trackers": trackers}
