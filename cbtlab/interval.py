"""One backup of a case: its record in the manifest, checked, and the pieces it names."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from cbtlab.bitmap import Bitmap
from cbtlab.errors import InputError
from cbtlab.images import Image, open_image
from cbtlab.manifest import piece_path, whole
from cbtlab.pack import unpack_bitmap
from cbtlab.rules import with_instant
from cbtlab.writes import iter_writes, read_writes
from cbtlab.writes.schema import VOLUMES

MANIFEST = "case.json"
IMAGES = ("snapshot", "mended", "stored")
_ABSENT = ("mended",)  # where nothing was to be mended
_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Interval:
    """Backup ``k`` and what was recorded for it.

    ``base`` is the last kept backup before it (None for none); ``unusable``
    holds the reasons for which the tracker's record of it cannot be relied on;
    ``marks`` are named instants of the recording.  In ``patterns`` every age
    says which instant it counts from: the snapshot's.
    """

    folder: Path
    k: int
    kept: bool
    base: int | None
    volume_size: int
    granularity: int
    patterns: tuple[str, ...]
    unusable: tuple[str, ...]
    record: dict[str, Any] = field(repr=False)

    @property
    def marks(self) -> list[dict[str, Any]]:
        """Return the named instants of the recording: ``name``, ``time_ns``, ``seq``."""
        return list(self.record.get("marks", []))

    @property
    def instant_ns(self) -> int | None:
        """Return the snapshot's instant, nanoseconds since 1970 UTC; None for not recorded."""
        return instant_of(self.record)

    @property
    def sets(self) -> list[dict[str, Any]]:
        """Return which rules came from ready-made sets: ``name``, ``first``, ``count``."""
        return list(self.record.get("sets", []))

    def snapshot(self) -> Image:
        """Return S_k, as it was before the delete."""
        return self._image("snapshot")

    def mended(self) -> Image:
        """Return S_k at rest: its log replayed, its dirty marks cleared, before the delete.

        It is what the files are mapped on.  Where nothing was mended it is the snapshot.
        """
        return self._image("mended" if self.was_mended else "snapshot")

    def stored(self) -> Image:
        """Return S_k*, as it was after the delete."""
        return self._image("stored")

    @property
    def was_mended(self) -> bool:
        """Return whether the snapshot was mended before the delete, and its image kept."""
        return self.record.get("mended") is not None

    def document(self) -> dict[str, Any]:
        """Return what was recorded, by name of the piece; None for what was not."""
        records = {volume: self.record.get(volume_key(volume)) or {} for volume in VOLUMES}
        return {
            "k": self.k,
            "kept": self.kept,
            "base": self.base,
            "patterns": list(self.patterns),
            "sets": self.sets,
            "instant_ns": self.instant_ns,
            "unusable": list(self.unusable),
            "marks": self.marks,
            "log": self.record.get("log", {}),
            "snapshot_image": self.record["snapshot"],
            "mended_image": self.record.get("mended"),
            "stored_image": self.record["stored"],
            **{
                volume: {kind: record.get(kind) for kind in ("writes", "bitmap", "discarded")}
                for volume, record in records.items()
            },
        }

    def images(self) -> dict[str, dict[str, Any]]:
        """Return the entries of ``snapshot``, ``mended`` (where it is) and ``stored``."""
        return {which: entry for which in IMAGES if (entry := self.record.get(which)) is not None}

    def content_digest(self, which: str) -> str:
        """Return the SHA-256 of the content of one of the ``images``, as recorded."""
        return str(self.record[which]["content_sha256"])

    def has(self, volume: str, kind: str) -> bool:
        """Return whether ``writes``, ``bitmap`` or ``discarded`` of a volume was recorded."""
        return self._piece(volume, kind) is not None

    def writes(self, volume: str) -> pd.DataFrame | None:
        """Return the write sequence of a volume in this interval, or None for none recorded."""
        piece = self._piece(volume, "writes")
        return None if piece is None else self._checked(read_writes(piece), piece)

    def iter_writes(self, volume: str, rows: int = 1 << 20) -> Iterator[pd.DataFrame]:
        """Yield the write sequence of a volume in chunks."""
        piece = self._piece(volume, "writes")
        if piece is not None:
            for chunk in iter_writes(piece, rows):
                yield self._checked(chunk, piece)

    def bitmap(self, volume: str, kind: str = "active") -> Bitmap | None:
        """Return a tracker's own bitmap of this interval, or None for none recorded.

        ``kind`` is ``active`` (every write) or ``discarded`` (blocks whose last touch was a
        discard of the whole block).
        """
        piece = self._piece(volume, "bitmap" if kind == "active" else kind)
        return None if piece is None else unpack_bitmap(piece, self.volume_size, self.granularity)

    def _image(self, which: str) -> Image:
        image = open_image(piece_path(self.folder, self.record[which]["file"]))
        if image.size != self.volume_size:
            name, size = image.name, image.size
            image.close()
            raise InputError(name, f"has {size} bytes, the case's volume {self.volume_size}")
        return image

    def _piece(self, volume: str, kind: str) -> Path | None:
        entry = (self.record.get(volume_key(volume)) or {}).get(kind)
        return None if entry is None else piece_path(self.folder, entry["file"])

    def _checked(self, frame: pd.DataFrame, piece: Path) -> pd.DataFrame:
        past = frame["offset"] + frame["length"] > self.volume_size
        if past.any():
            raise InputError(piece, f"a write ends past the volume's {self.volume_size} bytes")
        return frame


def volume_key(volume: str) -> str:
    """Return the key of a volume's record in the manifest."""
    if volume not in VOLUMES:
        raise ValueError(f"{volume!r} is none of {VOLUMES}")
    return "physical_record" if volume == "physical" else "snapshot_record"


def read_intervals(
    path: Path, document: dict[str, Any], volume_size: int, granularity: int
) -> list[Interval]:
    """Return the backups of a manifest; raises InputError for a value that cannot be."""
    manifest = path / MANIFEST
    records = document.get("intervals")
    if not isinstance(records, list):
        raise InputError(manifest, "has no list of intervals; it is damaged")
    intervals: list[Interval] = []
    base: int | None = None
    for k, record in enumerate(records):
        record = mapping(record, manifest)
        if whole(record.get("k"), manifest, "k") != k:
            raise InputError(manifest, f"interval {record.get('k')} stands at place {k}")
        if not isinstance(record.get("kept"), bool):
            raise InputError(manifest, f"interval {k} does not say whether it was kept")
        for which in IMAGES:
            if which in _ABSENT and record.get(which) is None:
                continue
            entry = mapping(record.get(which), manifest)
            _piece_entry(path, entry)
            _digest(entry.get("content_sha256"), manifest, f"content_sha256 of {entry['file']}")
        for volume in VOLUMES:
            volume_record = record.get(volume_key(volume))
            for kind, entry in mapping(
                {} if volume_record is None else volume_record, manifest
            ).items():
                if entry is not None:
                    _piece_entry(path, mapping(entry, manifest))
                    if kind == "writes":
                        whole(entry.get("rows"), manifest, f"rows of {entry['file']}")
        _check_story(record, manifest)
        intervals.append(
            Interval(
                folder=path,
                k=k,
                kept=record["kept"],
                base=base,
                volume_size=volume_size,
                granularity=granularity,
                patterns=_patterns(record, manifest),
                unusable=_strings(record.get("unusable", []), manifest),
                record=record,
            )
        )
        base = k if record["kept"] else base
    return intervals


def instant_of(record: dict[str, Any]) -> int | None:
    """Return the instant of a backup's snapshot: as given, or as the recorder marked it."""
    if record.get("instant_ns") is not None:
        return int(record["instant_ns"])
    for mark in reversed(record.get("marks", [])):
        time_ns = mark.get("time_ns") if isinstance(mark, dict) else None
        if isinstance(time_ns, int) and mark.get("name") == "instant":
            return time_ns
    return None  # a mark that is none is told of by those who check the marks


def rules_text(entry: dict[str, Any]) -> list[str]:
    """Return the rules of a backup for a line of text: a ready-made set by its name."""
    told, rest = [], dict(enumerate(entry["patterns"]))
    for one in entry["sets"]:
        told.append(f"set {one['name']}")
        for number in range(one["first"], one["first"] + one["count"]):
            rest.pop(number, None)
    return [*told, *rest.values()]


def _patterns(record: dict[str, Any], manifest: Path) -> tuple[str, ...]:
    """Return the rules as they are judged: ages count from the snapshot's instant."""
    patterns = _strings(record.get("patterns", []), manifest)
    if record.get("instant_ns") is not None:
        whole(record["instant_ns"], manifest, "instant_ns")
    sets = record.get("sets", [])
    if not isinstance(sets, list):
        raise InputError(manifest, "has sets that are no list; it is damaged")
    for entry in sets:
        if not isinstance(mapping(entry, manifest).get("name"), str):
            raise InputError(manifest, "has a set without a name; it is damaged")
        for key in ("first", "count"):
            whole(entry.get(key), manifest, f"{key} of the set {entry['name']}")
    return tuple(with_instant(patterns, instant_of(record)))


def _piece_entry(path: Path, entry: dict[str, Any]) -> None:
    piece_path(path, entry.get("file"))
    _digest(entry.get("sha256"), path / MANIFEST, f"sha256 of {entry['file']}")


def _digest(value: object, manifest: Path, name: str) -> None:
    if not isinstance(value, str) or not _DIGEST.fullmatch(value):
        raise InputError(manifest, f"{name} is no SHA-256; it is damaged")


def _check_story(record: dict[str, Any], manifest: Path) -> None:
    """Check the marks and the log, which the report and the phases rely on."""
    marks = record.get("marks", [])
    if not isinstance(marks, list):
        raise InputError(manifest, "has marks that are no list; it is damaged")
    for mark in marks:
        if not isinstance(mapping(mark, manifest).get("name"), str):
            raise InputError(manifest, "has a mark without a name; it is damaged")
        for key in ("time_ns", "seq"):
            whole(mark.get(key), manifest, f"{key} of the mark {mark['name']}")
    mapping(record.get("log", {}), manifest)


def entries(record: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the entry of every piece of a backup."""
    yield from (entry for which in IMAGES if (entry := record.get(which)) is not None)
    for volume in VOLUMES:
        for entry in (record.get(volume_key(volume)) or {}).values():
            if entry is not None:
                yield entry


def mapping(value: object, manifest: Path) -> dict[str, Any]:
    """Return ``value`` if it is a mapping; raises InputError."""
    if not isinstance(value, dict):
        raise InputError(manifest, "has a part that is not what it should be; it is damaged")
    return value


def _strings(value: object, manifest: Path) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise InputError(manifest, "has a list that holds other things than words; it is damaged")
    return tuple(value)
