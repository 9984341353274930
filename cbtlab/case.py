"""A case on disk: volumes, intervals, images, write sequences, bitmaps, rules, and digests.

A folder with ``case.json`` and, per backup ``k``, the pieces that it names:
``images/000k-snapshot.qcow2`` (S_k, on S_k-1 as backing file),
``images/000k-mended.qcow2`` (S_k at rest, on S_k, where it was mended),
``images/000k-stored.qcow2`` (S_k*, on that), ``writes/000k-VOLUME.parquet`` and
``bitmaps/000k-VOLUME-bitmap.bits.zst``.  Every piece has a SHA-256 in the manifest,
and the manifest has its own.  ``docs/formats.md`` describes it.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from cbtlab.errors import InputError
from cbtlab.folders import locked, refuse_links
from cbtlab.images import image_digest
from cbtlab.interval import (
    MANIFEST,
    Interval,
    entries,
    instant_of,
    mapping,
    read_intervals,
    rules_text,
    volume_key,
)
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
from cbtlab.pack import pack_bitmap, pack_image, pack_writes
from cbtlab.progress import progress
from cbtlab.rules import Rules, with_instant
from cbtlab.units import (
    MAX_GRANULARITY,
    MAX_VOLUME,
    MIN_GRANULARITY,
    check_granularity,
    check_volume_size,
    format_bytes,
)
from cbtlab.writes import empty
from cbtlab.writes.read import concat
from cbtlab.writes.schema import VOLUMES

__all__ = ["MANIFEST", "Case", "Interval", "verify"]

FORMAT, VERSION = "cbtlab-case", 1
FOLDERS = ("images", "writes", "bitmaps")


class Case:
    """A case, opened: its manifest is checked, its pieces are read when asked for."""

    def __init__(self, path: Path, document: dict[str, Any]) -> None:
        self.path = path
        self._document = document
        manifest = path / MANIFEST
        self.name = str(document.get("name") or path.resolve().name)
        self.generation = str(document.get("generation", ""))
        self.recorded: dict[str, Any] = mapping(document.get("recorded", {}), manifest)
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
        self.intervals = read_intervals(path, document, self.volume_size, self.granularity)

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
            for entry in entries(interval.record):
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
        total = sum(len(interval.images()) for interval in self.intervals) * self.volume_size
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
                f" excludes {', '.join(rules_text(entry)) or 'nothing'}"
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
        mended: str | os.PathLike[str] | None = None,
        writes: dict[str, Any] | None = None,
        bitmaps: dict[str, Any] | None = None,
        discarded: dict[str, Any] | None = None,
        patterns: list[str] | None = None,
        sets: list[dict[str, Any]] | None = None,
        instant_ns: int | None = None,
        kept: bool = True,
        unusable: list[str] | None = None,
        marks: list[dict[str, Any]] | None = None,
        log: dict[str, Any] | None = None,
    ) -> Interval:
        """Add the next backup and return its interval.

        ``snapshot`` and ``stored`` are images of S_k before and S_k* after the
        delete; ``mended`` is S_k after its file system was brought to rest and before
        the delete, where that was needed.  ``writes`` maps ``physical`` or ``snapshot``
        to a DataFrame or a file; ``bitmaps`` and ``discarded`` map them to a Bitmap or
        to a file of ``ceil(blocks/8)`` bytes.  ``patterns`` are rules, ``sets`` says
        which of them are from ready-made sets, and ages in them count from
        ``instant_ns`` (nanoseconds since 1970 UTC; else from the mark ``instant``).
        Everything is copied.  Raises InputError, and leaves the case as it was, where a
        piece cannot be used, or an age has no instant.
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
            **({"sets": list(sets)} if sets else {}),
            **({} if instant_ns is None else {"instant_ns": instant_ns}),
            "unusable": list(unusable or []),
            "marks": list(marks or []),
            "log": log or {},
        }
        Rules(with_instant(record["patterns"], instant_of(record))).ready()
        with locked(self.path):
            if digest_of(read_manifest(self.path / MANIFEST, FORMAT, VERSION)) != digest_of(
                self._document
            ):
                raise InputError(self.path, "was changed by another program", "open it again")
            refuse_links(self.path, FOLDERS)
            pieces = _Pieces(self)
            try:
                pieces.pack_images(record, snapshot, mended, stored)
                pieces.pack(record, writes, bitmaps, discarded)
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

    def pack_images(self, record: dict[str, Any], snapshot: Any, mended: Any, stored: Any) -> None:
        """Copy the images: each as its differences from the one before it in time."""
        case, k = self.case, record["k"]
        below = case.intervals[k - 1].record["snapshot"]["file"] if k else None
        for which, image in (("snapshot", snapshot), ("mended", mended), ("stored", stored)):
            if image is not None:
                name = self._name(f"images/{k:04d}-{which}.qcow2")
                record[which] = pack_image(case.path, name, image, case.volume_size, below)
                below = name

    def pack(
        self,
        record: dict[str, Any],
        writes: dict[str, Any],
        bitmaps: dict[str, Any],
        discarded: dict[str, Any],
    ) -> None:
        """Copy sequences and bitmaps and name them in the interval's record."""
        case, k, folder = self.case, record["k"], self.case.path
        size = case.volume_size
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
