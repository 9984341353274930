"""Makes a case of what the recorder left: sequences split by interval, bitmaps, images.

The recorder's folder holds ``recording.json``, ``events.native`` and for each
backup ``backups/000k/`` with ``backup.json`` and the trackers' bitmaps; the
images lie one after the other on a raw disk, those of backup k in the slots from
3k on, in the order of `SLOTS`; the slot of one that was not made is empty.
"""

from __future__ import annotations

import json
import os
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from cbtlab import __version__
from cbtlab.case import Case
from cbtlab.errors import InputError
from cbtlab.lab.stage import SLOTS
from cbtlab.progress import progress
from cbtlab.writes.native import Stream, open_stream

_COPY = 4 << 20


def pack(
    recorded: Path, images: Path, to: Path, *, facts: dict[str, Any], force: bool = False
) -> Case:
    """Make the case ``to`` of the recorder's folder and the disk of images.

    ``facts`` go into the manifest beside what the recorder says of itself.
    """
    about = _json(recorded / "recording.json")
    backups = [_json(path) for path in sorted(recorded.glob("backups/*/backup.json"))]
    stream = open_stream(recorded / "events.native")
    frame, numbers = events_of(stream, len(backups))
    case = Case.create(
        to,
        about["volume_size"],
        about["granularity"],
        name=about["name"],
        recorded={
            **facts,
            **{key: about[key] for key in ("title", "release", "events_lost", "memory_locked")},
            "clock": {
                "monotonic_ns": stream.anchor_monotonic_ns,
                "realtime_ns": stream.anchor_realtime_ns,
            },
            "cbtlab": __version__,
        },
        force=force,
    )
    size = about["volume_size"]
    with (
        tempfile.TemporaryDirectory(dir=images.parent) as draft,
        progress("packing the case", len(backups), "backup") as bar,
    ):
        for backup in backups:
            _add(case, backup, recorded, (images, size, Path(draft)), frame, (stream, numbers))
            bar.update(1)
    return case


def events_of(stream: Stream, backups: int) -> tuple[pd.DataFrame, npt.NDArray[np.uint64]]:
    """Return the events that belong to an interval of the case, numbered anew.

    What ran before backup 0 and after the last one is left out.  Those events
    took numbers too; the others move up by as many, so that a gap still is a
    loss and nothing else.  The second value is the numbers left out, in order.
    """
    frame = stream.frame()
    interval = frame["interval"].to_numpy()
    snapshot = (frame["volume"] == "snapshot").to_numpy()
    inside = snapshot | ((interval >= 1) & (interval < backups))
    seq = frame["seq"].to_numpy(np.uint64)
    out = np.sort(seq[~inside])
    kept = frame[inside].copy()
    kept["seq"] = pd.array(renumbered(seq[inside], out), dtype="UInt64")
    return kept.reset_index(drop=True), out


def renumbered(seq: npt.NDArray[np.uint64], out: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Return ``seq`` less the count of the smaller ones among ``out`` (sorted)."""
    return seq - np.searchsorted(out, seq).astype(np.uint64)


def _add(
    case: Case,
    backup: dict[str, Any],
    recorded: Path,
    slots: tuple[Path, int, Path],
    frame: pd.DataFrame,
    numbering: tuple[Stream, npt.NDArray[np.uint64]],
) -> None:
    k = backup["k"]
    images, size, draft = slots
    stream, out = numbering
    volumes = ("physical", "snapshot") if k else ("snapshot",)
    folder = recorded / "backups" / f"{k:04d}"
    places = {}
    for number, which in enumerate(SLOTS):
        if which != "mended" or backup.get("mended"):
            places[which] = draft / f"{which}.raw"
            cut(images, (len(SLOTS) * k + number) * size, size, places[which])
    of_interval = frame[frame["interval"] == k]
    shift = stream.anchor_realtime_ns - stream.anchor_monotonic_ns
    marks = [
        {
            "name": mark["name"],
            "time_ns": mark["time_ns"] + shift,
            "seq": int(renumbered(np.array([mark["seq"]], np.uint64), out)[0]),
        }
        for mark in backup["marks"]
    ]
    case.add(
        snapshot=places["snapshot"],
        stored=places["stored"],
        mended=places.get("mended"),
        writes={volume: of_interval[of_interval["volume"] == volume] for volume in volumes},
        bitmaps={volume: folder / f"{volume}-bitmap.bits" for volume in volumes},
        discarded={volume: folder / f"{volume}-discarded.bits" for volume in volumes},
        patterns=backup["patterns"],
        instant_ns=backup.get("instant_ns"),
        kept=backup["kept"],
        unusable=backup["unusable"],
        marks=marks,
        log=backup["log"],
    )


def cut(source: Path, offset: int, size: int, to: Path) -> None:
    """Copy ``size`` bytes from ``offset`` of ``source`` to the new file ``to``, without holes."""
    end = offset + size
    reader = os.open(source, os.O_RDONLY)
    writer = os.open(to, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    try:
        os.ftruncate(writer, size)
        place = offset
        while place < end:
            try:
                place = os.lseek(reader, place, os.SEEK_DATA)
            except OSError:
                break  # nothing but holes from here on
            hole = min(os.lseek(reader, place, os.SEEK_HOLE), end)
            while place < hole:
                data = os.pread(reader, min(_COPY, hole - place), place)
                os.pwrite(writer, data, place - offset)
                place += len(data)
    finally:
        os.close(reader)
        os.close(writer)


def _json(path: Path) -> dict[str, Any]:
    with suppress(OSError, ValueError):
        document = json.loads(path.read_text())
        if isinstance(document, dict):
            return document
    raise InputError(path, "the guest left no such record, or a damaged one", "record again")
