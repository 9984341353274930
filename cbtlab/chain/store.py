"""A chain on disk: create it, append a backup, read a restore point."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from cbtlab.bitmap import Bitmap
from cbtlab.chain.layout import (
    FORMAT,
    MANIFEST,
    PLACE,
    VERSION,
    Link,
    Manifest,
    Mask,
    binding_faults,
    check_cluster,
    image_name,
    mask_name,
    parse,
    place_of,
    strays,
)
from cbtlab.chain.verify import link_faults, read_mask, require_manifest
from cbtlab.errors import InputError
from cbtlab.images import Image, image_digest, open_image
from cbtlab.manifest import file_digest, read_manifest, write_manifest
from cbtlab.plan import POLICIES, Plan
from cbtlab.qcow2 import write as write_qcow2
from cbtlab.units import check_granularity, check_volume_size

MAX_DEPTH = 450  # incrementals on one full: what ``open_image`` follows, less a margin


class Chain:
    """The chain in folder ``path``; ``manifest`` is what its ``chain.json`` says."""

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path = path
        self.manifest = manifest
        # Files whose digests were right, by what tells that they were touched since.
        self._known: dict[str, tuple[int, int, int, str]] = {}

    @classmethod
    def create(
        cls,
        folder: str | os.PathLike[str],
        volume_size: int,
        granularity: int,
        cluster: int | None = None,
        generation: str = "",
        policy: str = "allocated",
    ) -> Chain:
        """Make an empty chain in a new or empty folder.

        Sizes in bytes.  The default cluster is the granularity, at least 4 KiB.
        ``generation`` names the uninterrupted life of the tracker.
        """
        path = Path(folder)
        manifest = Manifest(
            check_volume_size(volume_size),
            check_granularity(granularity),
            check_cluster(max(granularity, 4096) if cluster is None else cluster),
            generation,
            policy,
        )
        if policy not in POLICIES:
            raise InputError("policy", f"{policy!r} is none of {', '.join(POLICIES)}")
        document = {**manifest.document(), "links": [], "digest": ""}
        parse(document, path / MANIFEST)  # bounds
        with _writing(path):
            if path.exists() and (not path.is_dir() or any(path.iterdir())):
                raise InputError(path, "exists and is not an empty folder", "name a new folder")
            path.mkdir(parents=True, exist_ok=True)
            write_manifest(path / MANIFEST, manifest.document())
            _sync(path)
        return cls(path, manifest)

    @property
    def volume_size(self) -> int:
        return self.manifest.volume_size

    @property
    def granularity(self) -> int:
        return self.manifest.granularity

    @property
    def cluster(self) -> int:
        return self.manifest.cluster

    @property
    def unit(self) -> int:
        """What is stored at once: the larger of granularity and cluster."""
        return self.manifest.unit

    @property
    def generation(self) -> str:
        return self.manifest.generation

    @property
    def policy(self) -> str:
        return self.manifest.policy

    @property
    def links(self) -> tuple[Link, ...]:
        return self.manifest.links

    def link(self, k: int) -> Link:
        """Return backup ``k``; raises InputError where the chain has none."""
        return self.manifest.link(k)

    def __repr__(self) -> str:
        return f"<Chain {self.path}: {len(self.links)} links of {self.volume_size} bytes>"

    # Reading --------------------------------------------------------------------------------

    def restored(self, k: int, *, check: bool = True) -> Image:
        """Return ``R_k``, the volume as backup ``k`` restores it.

        Unless ``check`` is off, the links that it is made of are compared with
        their digests first, those that did not change since only once; a link
        that is not what was written raises InputError with its name and fault.
        """
        link = self.link(k)
        if check:
            self.require(k)
        return open_image(self.path / link.file, root=self.path)

    def require(self, k: int) -> None:
        """Raise InputError, naming the first faulty link, unless backup ``k`` can be read."""
        needed = self.manifest.needed(k)
        remedy = "take it from a good copy, or restore an earlier backup"
        names = {link.file for link in needed}
        for name, told in binding_faults(self.manifest):
            if name in names:
                raise InputError(self.path / name, told, remedy)
        for link in reversed(needed):
            stamp = self._stamp(link)
            if stamp is not None and self._known.get(link.file) == stamp:
                continue
            for fault in link_faults(self.path, self.manifest, link):
                raise InputError(self.path / fault.piece, fault.fault, remedy)
            self._remember(link)

    def held(self, k: int) -> Bitmap:
        """Return ``H_k``: the bytes that backup ``k`` answers for."""
        return read_mask(self.path, self.manifest, self.link(k).held)

    def physical(self, k: int) -> Bitmap | None:
        """Return ``W_P(k)`` as it was kept with backup ``k``, or None."""
        mask = self.link(k).physical
        return None if mask is None else read_mask(self.path, self.manifest, mask)

    def snapshot(self, k: int) -> Bitmap | None:
        """Return ``W_S(k)``, which the next backup carries over, or None."""
        mask = self.link(k).snapshot
        return None if mask is None else read_mask(self.path, self.manifest, mask)

    def strays(self) -> list[str]:
        """Return the names of files left over by an append that was broken off."""
        return [path.name for path in strays(self.path, self.manifest)]

    def _stamp(self, link: Link) -> tuple[int, int, int, str] | None:
        try:
            about = (self.path / link.file).lstat()
        except OSError:
            return None
        return about.st_ino, about.st_size, about.st_ctime_ns, link.sha256

    def _remember(self, link: Link) -> None:
        stamp = self._stamp(link)
        if stamp is not None:
            self._known[link.file] = stamp

    # Writing --------------------------------------------------------------------------------

    def append(
        self,
        plan: Plan,
        image: Image,
        physical: Bitmap | None = None,
        snapshot: Bitmap | None = None,
        *,
        generation: str | None = None,
        scrubbed: Sequence[dict[str, Any]] = (),
    ) -> Link:
        """Store backup ``plan.k`` of ``image``, which is ``S_k*``, and return its link.

        A stored unit gets the bytes read from ``image`` where ``plan.held``
        marks them, and zero elsewhere.  ``physical`` and ``snapshot`` are
        ``W_P(k)`` and ``W_S(k)``, kept with the backup.  ``generation`` is that of the
        base unless told; a new one needs a full backup.  ``scrubbed`` says what of
        ``image`` is not as on ``S_k*``, and stands in the manifest.  Raises InputError
        when plan, image and chain do not fit, or the base is damaged.
        """
        with _writing(self.path), self._locked():
            draft = self._draft(plan, image, physical, snapshot, generation)
            draft = replace(draft, scrubbed=tuple(scrubbed))
            for path in strays(self.path, self.manifest):
                path.unlink()
            link = self._write(draft, plan, image, physical, snapshot)
            manifest = replace(self.manifest, links=(*self.links, link))
            _sync(self.path)  # the files are durable before the manifest names them
            write_manifest(self.path / MANIFEST, manifest.document())
            _sync(self.path)
            self.manifest = manifest
            self._remember(link)
        return link

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Keep other writers out, and make sure that the chain is still as it was read."""
        fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise InputError(self.path, "is being written by another program") from error
            if _read(self.path) != self.manifest:
                raise InputError(self.path, "was changed by another program", "open it again")
            yield
        finally:
            os.close(fd)

    def _draft(
        self,
        plan: Plan,
        image: Image,
        physical: Bitmap | None,
        snapshot: Bitmap | None,
        generation: str | None,
    ) -> Link:
        """Check that everything fits; return the link, its digests still empty."""
        told = f"backup {plan.k}"
        last = self.links[-1] if self.links else None
        if plan.k < 0 or (last is not None and plan.k <= last.k):
            raise InputError(told, f"does not come after backup {last.k if last else 0}")
        if image.size != self.volume_size:
            raise InputError(
                image.name, f"has {image.size} bytes, the chain's volume {self.volume_size}"
            )
        for units in (plan.copied, plan.zeroed):
            if (units.volume_size, units.granularity) != (self.volume_size, self.unit):
                raise InputError(told, f"is planned in {units!r}, the chain is in {self.unit}")
        for mask in (plan.held, physical, snapshot):
            if mask is not None and mask.volume_size != self.volume_size:
                raise InputError(told, f"comes with {mask!r}, the volume is {self.volume_size}")
        base = None
        if plan.base is not None:
            if last is None or plan.base != last.k:
                raise InputError(told, f"has the base {plan.base}, which is not the last link")
            base = last
            self.require(base.k)
            if len(self.manifest.needed(base.k)) >= MAX_DEPTH:
                raise InputError(told, f"would be link {MAX_DEPTH} on one full", "take a full one")
        known = base.generation if base else self.generation
        own = known if generation is None else generation
        if base is not None and own != known:
            raise InputError(
                told, f"is of generation {own!r}, its base of {known!r}", "take a full backup"
            )
        held = Mask(mask_name(plan.k, "held"), "", plan.held.granularity)
        return Link(
            k=plan.k,
            file=image_name(plan.k),
            kind=plan.kind,
            base=plan.base,
            base_sha256=base.sha256 if base else None,
            sha256="",
            bytes=0,
            generation=own,
            volume_size=self.volume_size,
            granularity=self.granularity,
            copied=plan.copied.count(),
            zeroed=plan.zeroed.count(),
            content_sha256="",
            held=held,
            snapshot=None,
            physical=None,
            reason=plan.reason,
        )

    def _write(
        self,
        draft: Link,
        plan: Plan,
        image: Image,
        physical: Bitmap | None,
        snapshot: Bitmap | None,
    ) -> Link:
        """Write the files of a link durably; return it complete."""
        masks = {"held": plan.held, "physical": physical, "snapshot": snapshot}
        written = {name: self._write_mask(draft.k, name, mask) for name, mask in masks.items()}
        path = self.path / draft.file
        write_qcow2(
            path,
            self.volume_size,
            self.cluster,
            plan.copied,
            plan.zeroed,
            _Masked(image, plan.held, self.unit).read,
            backing=None if draft.base is None else image_name(draft.base),
            extensions={PLACE: place_of(draft.k, draft.generation, draft.base_sha256)},
        )
        with open_image(path, root=self.path) as restored:
            content = image_digest(restored)
        fields: dict[str, Any] = {name: mask for name, mask in written.items() if mask is not None}
        return replace(
            draft,
            sha256=file_digest(path),
            bytes=path.stat().st_size,
            content_sha256=content,
            **fields,
        )

    def _write_mask(self, k: int, name: str, mask: Bitmap | None) -> Mask | None:
        if mask is None:
            return None
        path = self.path / mask_name(k, name)
        part = path.with_name(path.name + ".part")
        try:
            with part.open("wb") as file:
                file.write(mask.to_bytes())
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
        except OSError as error:
            raise InputError(path, f"cannot be written: {error.strerror}") from error
        finally:
            part.unlink(missing_ok=True)
        return Mask(path.name, file_digest(path), mask.granularity)


class _Masked:
    """An image of which only the held bytes show; the rest reads as zero."""

    def __init__(self, image: Image, held: Bitmap, unit: int) -> None:
        self.image = image
        # Reads begin at a unit, so at a block of a mask that is not coarser.
        self.held = held if held.granularity <= unit else held.outward(unit)

    def read(self, offset: int, length: int) -> Any:
        block = self.held.granularity
        first, last = offset // block, -(-(offset + length) // block)
        bits = self.held.bits[first:last]
        if not bits.any():
            return None
        data = self.image.load(offset, length)
        if data is None or bits.all():
            return data
        packed = np.frombuffer(bits.tobytes(), np.uint8)
        drop = np.unpackbits(packed, count=len(bits), bitorder="little") == 0
        whole = length // block
        data[: whole * block].reshape(whole, block)[drop[:whole]] = 0
        if whole < len(drop) and drop[whole]:
            data[whole * block :] = 0
        return data


def open_chain(folder: str | os.PathLike[str]) -> Chain:
    """Open the chain in ``folder``; its manifest is checked, its images are when they are read."""
    path = Path(folder)
    return Chain(path, _read(path))


def _read(folder: Path) -> Manifest:
    path = require_manifest(folder)
    return parse(read_manifest(path, FORMAT, VERSION), path)


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Turn what the operating system refuses into one line."""
    try:
        yield
    except OSError as error:
        where = error.filename or folder
        raise InputError(where, f"cannot be written: {error.strerror or error}") from error


def _sync(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
