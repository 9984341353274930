"""A case on disk: volumes, intervals, images, write sequences, bitmaps, rules, and digests.

A folder with ``case.json`` and, per backup ``k``, the pieces that it names:
``images/000k-snapshot.qcow2`` (S_k, on S_k-1 as backing file),
``images/000k-stored.qcow2`` (S_k*, on S_k), ``writes/000k-VOLUME.parquet`` and
``bitmaps/000k-VOLUME-bitmap.bits.zst``.  Every piece has a SHA-256 in the manifest,
and the manifest has its own.  ``docs/formats.md`` describes it.
"""

from __future__ import annotations

import os
import re
import uuid
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from cbtlab.bitmap import Bitmap
from cbtlab.errors import InputError
from cbtlab.folders import locked, refuse_links
from cbtlab.images import Image, image_digest, open_image
from cbtlab.manifest import (
    DamagedManifest,
    Fault,
    digest_of,
    file_digest,
    piece_path,
    read_manifest,
    whole,
    write_manifest,
)
from cbtlab.pack import pack_bitmap, pack_image, pack_writes, unpack_bitmap
from cbtlab.progress import progress
from cbtlab.units import (
    MAX_GRANULARITY,
    MAX_VOLUME,
    MIN_GRANULARITY,
    check_granularity,
    check_volume_size,
    format_bytes,
)
from cbtlab.writes import empty, iter_writes, read_writes
from cbtlab.writes.read import concat
from cbtlab.writes.schema import VOLUMES

FORMAT, VERSION = "cbtlab-case", 1
MANIFEST = "case.json"
FOLDERS = ("images", "writes", "bitmaps")
IMAGES = ("snapshot", "stored")
_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Interval:
    """Backup ``k`` and what was recorded for it.

    ``base`` is the last kept backup before it (None for none); ``unusable``
    holds the reasons for which the tracker's record of it cannot be relied on;
    ``marks`` are named instants of the recording.
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

    def snapshot(self) -> Image:
        """Return S_k, as it was before the delete."""
        return self._image("snapshot")

    def stored(self) -> Image:
        """Return S_k*, as it was after the delete."""
        return self._image("stored")

    def document(self) -> dict[str, Any]:
        """Return what was recorded, by name of the piece; None for what was not."""
        records = {volume: self.record.get(volume_key(volume)) or {} for volume in VOLUMES}
        return {
            "k": self.k,
            "kept": self.kept,
            "base": self.base,
            "patterns": list(self.patterns),
            "unusable": list(self.unusable),
            "marks": self.marks,
            "log": self.record.get("log", {}),
            "snapshot_image": self.record["snapshot"],
            "stored_image": self.record["stored"],
            **{
                volume: {kind: record.get(kind) for kind in ("writes", "bitmap", "discarded")}
                for volume, record in records.items()
            },
        }

    def images(self) -> dict[str, dict[str, Any]]:
        """Return the entries of ``snapshot`` and ``stored``, as recorded."""
        return {which: self.record[which] for which in IMAGES}

    def content_digest(self, which: str) -> str:
        """Return the SHA-256 of the content of ``snapshot`` or ``stored``, as recorded."""
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


class Case:
    """A case, opened: its manifest is checked, its pieces are read when asked for."""

    def __init__(self, path: Path, document: dict[str, Any]) -> None:
        self.path = path
        self._document = document
        manifest = path / MANIFEST
        self.name = str(document.get("name") or path.resolve().name)
        self.generation = str(document.get("generation", ""))
        self.recorded: dict[str, Any] = _mapping(document.get("recorded", {}), manifest)
        self.volume_size = check_volume_size(
            whole(document.get("volume_size"), manifest, "volume_size", 512, MAX_VOLUME), manifest
        )
        self.granularity = check_granularity(
            whole(
                document.get("granularity"),
                manifest,
                "granularity",
                MIN_GRANULARITY,
                MAX_GRANULARITY,
            ),
            manifest,
        )
        self.intervals = _intervals(path, document, self.volume_size, self.granularity)

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Case:
        """Open a case; its manifest is checked, the digests of its pieces are not (``verify``)."""
        path = Path(path)
        if not (path / MANIFEST).is_file():
            raise InputError(path, f"is not a case: it has no {MANIFEST}")
        refuse_links(path, FOLDERS)
        return cls(path, read_manifest(path / MANIFEST, FORMAT, VERSION))

    @classmethod
    def create(
        cls,
        path: str | os.PathLike[str],
        volume_size: int,
        granularity: int,
        *,
        name: str | None = None,
        recorded: dict[str, Any] | None = None,
        force: bool = False,
    ) -> Case:
        """Make an empty case.  ``recorded`` tells how: versions, kernel, clock anchor."""
        path = Path(path)
        check_volume_size(volume_size)
        check_granularity(granularity)
        _check_place(path, force)
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(path, f"cannot be made: {error.strerror}") from error
        document = {
            "format": FORMAT,
            "version": VERSION,
            "name": name or path.resolve().name,
            "generation": str(uuid.uuid4()),
            "volume_size": volume_size,
            "granularity": granularity,
            "recorded": recorded or {},
            "intervals": [],
        }
        with locked(path):
            _check_place(path, force)  # another program may have made a case meanwhile
            old = _own_pieces(path)
            # The new manifest first: a kill leaves pieces without a manifest, never the reverse.
            write_manifest(path / MANIFEST, document)
            for piece in old:
                with suppress(OSError):
                    piece.unlink()
            for name in FOLDERS:
                with suppress(OSError):
                    (path / name).rmdir()
        return cls.open(path)

    @property
    def blocks(self) -> int:
        """Return how many blocks of the granularity the volume has."""
        return -(-self.volume_size // self.granularity)

    @cached_property
    def writes(self) -> pd.DataFrame:
        """Return the write sequences of all volumes and intervals as one, in order."""
        frames = [
            frame
            for interval in self.intervals
            for volume in VOLUMES
            if (frame := interval.writes(volume)) is not None
        ]
        return concat(frames, source=self.path) if frames else empty()

    def pieces(self) -> Iterator[tuple[str, Path, str]]:
        """Yield name, path and SHA-256 of every piece that the manifest names."""
        for interval in self.intervals:
            for entry in _entries(interval.record):
                name = entry["file"]
                yield name, piece_path(self.path, name), str(entry.get("sha256"))

    def verify(self) -> list[Fault]:
        """Return what is wrong with the pieces: missing, altered, or of other content than told.

        The content of the images is read through where all their files are whole.
        """
        faults = []
        pieces = list(self.pieces())
        sizes = {path: path.stat().st_size if path.is_file() else 0 for _, path, _ in pieces}
        with progress(f"verifying {self.name}", sum(sizes.values())) as bar:
            for name, path, digest in pieces:
                if not path.is_file():
                    faults.append(Fault(name, "is missing"))
                elif file_digest(path) != digest:
                    faults.append(Fault(name, "was altered: its SHA-256 is not the recorded one"))
                bar.update(sizes[path])
        images = {entry["file"] for k in self.intervals for entry in k.images().values()}
        if not any(fault.piece in images for fault in faults):
            faults += self.content_faults()
        return faults

    def content_faults(self) -> list[Fault]:
        """Return which images hold other bytes than their ``content_sha256`` tells."""
        faults = []
        total = 2 * len(self.intervals) * self.volume_size
        with progress(f"reading {self.name}", total) as bar:
            for interval in self.intervals:
                for which, entry in interval.images().items():
                    try:
                        with getattr(interval, which)() as image:
                            found = image_digest(image)
                    except InputError as error:
                        faults.append(Fault(entry["file"], error.fault))
                    else:
                        if found != interval.content_digest(which):
                            told = "holds other content than its content_sha256 tells"
                            faults.append(Fault(entry["file"], told))
                    bar.update(self.volume_size)
        return faults

    def document(self) -> dict[str, Any]:
        """Return what is in the case, as ``cbtlab case show --json`` prints it."""
        return {
            "case": self.name,
            "volume_size": self.volume_size,
            "granularity": self.granularity,
            "volume_blocks": self.blocks,
            "generation": self.generation,
            "recorded": self.recorded,
            "intervals": [interval.document() for interval in self.intervals],
        }

    def text(self) -> str:
        """Return what is in the case, in words."""
        lines = [
            f"{self.name}: {format_bytes(self.volume_size)} in blocks of {self.granularity} bytes,"
            f" {len(self.intervals)} backups"
        ]
        for entry in self.document()["intervals"]:
            held = [
                f"{volume} {kind}"
                for volume in VOLUMES
                for kind in ("writes", "bitmap")
                if entry[volume][kind] is not None
            ]
            base = "" if entry["base"] is None else f" on {entry['base']}"
            lines.append(
                f"  {entry['k']}{base}{'' if entry['kept'] else ' (thrown away)'}:"
                f" {', '.join(held) or 'images alone'};"
                f" excludes {', '.join(entry['patterns']) or 'nothing'}"
            )
        return "\n".join(lines)

    def interval(self, k: int) -> Interval:
        """Return interval ``k``, or raise InputError."""
        if not 0 <= k < len(self.intervals):
            held = f"it has 0 to {len(self.intervals) - 1}" if self.intervals else "it has none"
            raise InputError(self.path, f"has no interval {k}", held)
        return self.intervals[k]

    def add(
        self,
        *,
        snapshot: str | os.PathLike[str],
        stored: str | os.PathLike[str],
        writes: dict[str, Any] | None = None,
        bitmaps: dict[str, Any] | None = None,
        discarded: dict[str, Any] | None = None,
        patterns: list[str] | None = None,
        kept: bool = True,
        unusable: list[str] | None = None,
        marks: list[dict[str, Any]] | None = None,
        log: dict[str, Any] | None = None,
    ) -> Interval:
        """Add the next backup and return its interval.

        ``snapshot`` and ``stored`` are images of S_k before and S_k* after the
        delete.  ``writes`` maps ``physical`` or ``snapshot`` to a DataFrame or
        a file; ``bitmaps`` and ``discarded`` map them to a Bitmap or to a file
        of ``ceil(blocks/8)`` bytes.  Everything is copied.  Raises InputError,
        and leaves the case as it was, where a piece cannot be used.
        """
        k = len(self.intervals)
        writes, bitmaps, discarded = writes or {}, bitmaps or {}, discarded or {}
        if k == 0 and ("physical" in writes or "physical" in bitmaps):
            raise InputError(
                self.path,
                "backup 0 is full and has no interval before it",
                "leave out --physical and --physical-bitmap in the first call",
            )
        if k and "physical" not in writes and "physical" not in bitmaps:
            raise InputError(
                self.path,
                f"backup {k} needs a record of the physical volume",
                "give --physical or --physical-bitmap",
            )
        record: dict[str, Any] = {
            "k": k,
            "kept": kept,
            "patterns": list(patterns or []),
            "unusable": list(unusable or []),
            "marks": list(marks or []),
            "log": log or {},
        }
        with locked(self.path):
            if digest_of(read_manifest(self.path / MANIFEST, FORMAT, VERSION)) != digest_of(
                self._document
            ):
                raise InputError(self.path, "was changed by another program", "open it again")
            refuse_links(self.path, FOLDERS)
            pieces = _Pieces(self)
            try:
                pieces.pack(record, snapshot, stored, writes, bitmaps, discarded)
                document = {**self._document, "intervals": [*self._document["intervals"], record]}
                checked = Case(self.path, document)
                write_manifest(self.path / MANIFEST, document)
            except BaseException:
                pieces.remove()
                raise
        self.__dict__.pop("writes", None)
        self._document, self.intervals = document, checked.intervals
        return self.intervals[k]


class _Pieces:
    """The pieces that one ``add`` writes; on failure they go, and nothing else does."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self._before: dict[Path, tuple[int, int, int] | None] = {}

    def pack(
        self,
        record: dict[str, Any],
        snapshot: Any,
        stored: Any,
        writes: dict[str, Any],
        bitmaps: dict[str, Any],
        discarded: dict[str, Any],
    ) -> None:
        """Copy everything into the case's folder and name it in the interval's record."""
        case, k, folder = self.case, record["k"], self.case.path
        size = case.volume_size
        before = case.intervals[k - 1].record["snapshot"]["file"] if k else None
        names = [self._name(f"images/{k:04d}-{which}.qcow2") for which in ("snapshot", "stored")]
        record["snapshot"] = pack_image(folder, names[0], snapshot, size, before)
        record["stored"] = pack_image(folder, names[1], stored, size, names[0])
        for volume in VOLUMES:
            entries: dict[str, Any] = {}
            if (source := writes.get(volume)) is not None:
                name = self._name(f"writes/{k:04d}-{volume}.parquet")
                entries["writes"] = pack_writes(folder, name, source, size, k, volume)
            for kind, sources in (("bitmap", bitmaps), ("discarded", discarded)):
                if (source := sources.get(volume)) is not None:
                    name = self._name(f"bitmaps/{k:04d}-{volume}-{kind}.bits.zst")
                    entries[kind] = pack_bitmap(folder, name, source, size, case.granularity)
            record[volume_key(volume)] = entries

    def remove(self) -> None:
        """Remove what was written; a file that stood there and was not replaced stays."""
        for path, stamp in self._before.items():
            if _stamp(path) != stamp:
                path.unlink(missing_ok=True)

    def _name(self, name: str) -> str:
        path = piece_path(self.case.path, name)
        self._before[path] = _stamp(path)
        return name


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        about = path.lstat()
    except OSError:
        return None
    return about.st_ino, about.st_size, about.st_mtime_ns


def verify(path: str | os.PathLike[str]) -> list[Fault]:
    """Return what is wrong with a case: its manifest, or its pieces.

    Raises InputError where there is no case, or one of another version.
    """
    path = Path(path)
    manifest = path / MANIFEST
    if not manifest.is_file():
        raise InputError(path, f"is not a case: it has no {MANIFEST}")
    try:
        return Case.open(path).verify()
    except DamagedManifest as error:
        return [Fault(MANIFEST, error.fault)]


def _intervals(
    path: Path, document: dict[str, Any], volume_size: int, granularity: int
) -> list[Interval]:
    manifest = path / MANIFEST
    records = document.get("intervals")
    if not isinstance(records, list):
        raise InputError(manifest, "has no list of intervals; it is damaged")
    intervals: list[Interval] = []
    base: int | None = None
    for k, record in enumerate(records):
        record = _mapping(record, manifest)
        if whole(record.get("k"), manifest, "k") != k:
            raise InputError(manifest, f"interval {record.get('k')} stands at place {k}")
        if not isinstance(record.get("kept"), bool):
            raise InputError(manifest, f"interval {k} does not say whether it was kept")
        for which in IMAGES:
            entry = _mapping(record.get(which), manifest)
            _piece_entry(path, entry)
            _digest(entry.get("content_sha256"), manifest, f"content_sha256 of {entry['file']}")
        for volume in VOLUMES:
            volume_record = record.get(volume_key(volume))
            for kind, entry in _mapping(
                {} if volume_record is None else volume_record, manifest
            ).items():
                if entry is not None:
                    _piece_entry(path, _mapping(entry, manifest))
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
                patterns=_strings(record.get("patterns", []), manifest),
                unusable=_strings(record.get("unusable", []), manifest),
                record=record,
            )
        )
        base = k if record["kept"] else base
    return intervals


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
        if not isinstance(_mapping(mark, manifest).get("name"), str):
            raise InputError(manifest, "has a mark without a name; it is damaged")
        for key in ("time_ns", "seq"):
            whole(mark.get(key), manifest, f"{key} of the mark {mark['name']}")
    _mapping(record.get("log", {}), manifest)


def _entries(record: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield record["snapshot"]
    yield record["stored"]
    for volume in VOLUMES:
        for entry in (record.get(volume_key(volume)) or {}).values():
            if entry is not None:
                yield entry


def _mapping(value: object, manifest: Path) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InputError(manifest, "has a part that is not what it should be; it is damaged")
    return value


def _strings(value: object, manifest: Path) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise InputError(manifest, "has a list that holds other things than words; it is damaged")
    return tuple(value)


def _check_place(path: Path, force: bool) -> None:
    """Refuse to make a case where something else is, or a case that is not to be replaced."""
    if not (path.exists() or path.is_symlink()):
        return
    if not path.is_dir():
        raise InputError(path, "exists and is no folder", "choose another name")
    refuse_links(path, FOLDERS)
    manifest = path / MANIFEST
    left = {entry.name for entry in path.iterdir()} - {f"{MANIFEST}.part"}
    if not left:
        return
    if not (force and manifest.is_file() and _is_case(manifest)):
        raise InputError(path, "exists", "choose another name, or replace a case with --force")


def _is_case(manifest: Path) -> bool:
    """Return whether a manifest is a case's own, be it damaged; another program's is not."""
    try:
        with manifest.open("rb") as file:
            return FORMAT.encode() in file.read(1 << 16)
    except OSError as error:
        raise InputError(manifest, f"cannot be read: {error.strerror}") from error


def _own_pieces(path: Path) -> list[Path]:
    """Return the pieces that the manifest in a folder names; none where it cannot be read."""
    try:
        named = Case.open(path).pieces()
    except InputError:
        return []
    return [piece for name, piece, _ in named if name.split("/")[0] in FOLDERS]
