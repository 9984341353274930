"""Whether a chain is what was written: every file against its digest, its place, its base.

``verify`` names each fault by the file that has it.  The same checks, of the
links that a restore point needs, stand before every restore.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

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
    image_name,
    parse,
    place_of,
)
from cbtlab.errors import InputError
from cbtlab.manifest import DamagedManifest, Fault, read_manifest
from cbtlab.progress import progress
from cbtlab.qcow2 import Header, read_header

CHUNK = 1 << 20

Update = Callable[[int], Any]


def verify(folder: str | os.PathLike[str]) -> list[Fault]:
    """Return every fault of the chain in ``folder``; an empty list: it holds.

    Raises InputError where there is no chain, or one of another version.
    """
    path = Path(folder)
    manifest, faults = _manifest(path)
    if manifest is None:
        return faults
    faults += [Fault(*pair) for pair in binding_faults(manifest)]
    total = sum(link.bytes for link in manifest.links)
    with progress(f"verifying {path.name}", total) as bar:
        for link in manifest.links:
            faults += link_faults(path, manifest, link, bar.update)
            faults += mask_faults(path, manifest, link)
    return faults


def require_manifest(folder: Path) -> Path:
    """Return the path of the chain's manifest; raises InputError where there is none."""
    path = folder / MANIFEST
    try:
        there, chain = folder.is_dir(), path.is_file()
    except (OSError, ValueError) as error:
        raise InputError(folder, f"cannot be opened: {error}") from error
    if not there:
        raise InputError(folder, "is no folder", "give the folder of a chain")
    if not chain:
        raise InputError(folder, f"has no {MANIFEST}: it is no chain", "give the folder of a chain")
    return path


def _manifest(folder: Path) -> tuple[Manifest | None, list[Fault]]:
    """Return the manifest as far as it can be read, and its own faults."""
    path = require_manifest(folder)
    try:
        document = read_manifest(path, FORMAT, VERSION)
        faults = []
    except DamagedManifest as error:
        faults = [Fault(MANIFEST, error.fault)]
        try:  # for the faults of the links, as far as what is left can be read
            document = json.loads(path.read_bytes().decode("utf-8"))
            return parse(document, path), faults
        except (OSError, ValueError, RecursionError, TypeError, AttributeError):
            return None, faults
    try:
        return parse(document, path), faults
    except InputError as error:
        return None, [Fault(MANIFEST, error.fault)]


def link_faults(
    folder: Path, manifest: Manifest, link: Link, update: Update | None = None
) -> list[Fault]:
    """Return what is wrong with a link's image, told by its file."""
    path = folder / link.file
    try:
        found, size, header = _look(path, update)
    except InputError as error:
        return [Fault(link.file, error.fault)]
    if found != link.sha256:
        return [Fault(link.file, _altered(manifest, link, found, size, header))]
    if header is None:
        return [Fault(link.file, "is no qcow2 image")]
    faults = _header_faults(manifest, link, header)
    if size != link.bytes:
        faults.append(f"has {size} bytes, and its manifest tells {link.bytes}")
    return [Fault(link.file, fault) for fault in faults]


def mask_faults(folder: Path, manifest: Manifest, link: Link) -> list[Fault]:
    """Return what is wrong with the masks beside a link."""
    faults = []
    for mask in link.masks():
        try:
            read_mask(folder, manifest, mask)
        except InputError as error:
            faults.append(Fault(mask.file, error.fault))
    return faults


def read_mask(folder: Path, manifest: Manifest, mask: Mask) -> Bitmap:
    """Return a mask after checking its length and its digest; raises InputError."""
    path = folder / mask.file
    fd = open_regular(path)
    with os.fdopen(fd, "rb") as file:
        blocks = -(-manifest.volume_size // mask.block_size)
        wanted, size = -(-blocks // 8), os.fstat(fd).st_size
        if size != wanted:
            kind = "is cut" if size < wanted else "is too long"
            raise InputError(path, f"{kind}: {size} bytes of {wanted}")
        data = file.read(wanted)
    if hashlib.sha256(data).hexdigest() != mask.sha256:
        raise InputError(path, "was altered: its SHA-256 does not fit")
    return Bitmap.from_bytes(data, manifest.volume_size, mask.block_size, path)


def open_regular(path: Path) -> int:
    """Return a descriptor of a regular file; no link is followed, no pipe waited for."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError as error:
        raise InputError(path, "is missing") from error
    except OSError as error:
        raise InputError(path, f"cannot be opened: {error.strerror}") from error
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise InputError(path, "is no regular file")
    return fd


def _look(path: Path, update: Update | None) -> tuple[str, int, Header | None]:
    """Return a file's SHA-256, its size, and its header where it is a qcow2 image."""
    digest, size = hashlib.sha256(), 0
    with os.fdopen(open_regular(path), "rb", buffering=0) as file:
        try:
            while chunk := file.read(CHUNK):
                digest.update(chunk)
                size += len(chunk)
                if update is not None:
                    update(len(chunk))
        except OSError as error:
            raise InputError(path, f"cannot be read: {error.strerror}") from error
        try:
            header = read_header(file.fileno(), str(path))
        except InputError:
            header = None
    return digest.hexdigest(), size, header


def _altered(manifest: Manifest, link: Link, digest: str, size: int, header: Header | None) -> str:
    """Say in what way a link's file, of the wrong digest, is not the one that was written."""
    for other in manifest.links:
        if other.sha256 == digest:
            return f"is exchanged: it is link {other.k} ({other.file}), not link {link.k}"
    place = _place(header)
    if place and place != json.loads(_written(link)):
        if place.get("generation") != link.generation:
            return f"is of generation {place.get('generation')!r}, not {link.generation!r}"
        if place.get("k") != link.k:
            return f"is exchanged: it was written as link {place.get('k')}, not link {link.k}"
        return "is a link on another base: it was made on other bytes"
    if size < link.bytes:
        return f"is cut: {size} bytes of {link.bytes}"
    if size > link.bytes:
        return f"is too long: {size} bytes instead of {link.bytes}"
    return "was altered: its SHA-256 does not fit"


def _place(header: Header | None) -> dict[str, Any]:
    """Return what an image says of its place; empty where it says nothing that can be read."""
    raw = header.extensions.get(PLACE, b"") if header else b""
    try:
        place = json.loads(raw.decode())
    except (ValueError, RecursionError):
        return {}
    return place if isinstance(place, dict) else {}


def _written(link: Link) -> bytes:
    return place_of(link.k, link.generation, link.base_sha256)


def _header_faults(manifest: Manifest, link: Link, header: Header) -> list[str]:
    """Return where an image whose digest is right still is not the link that it stands for."""
    faults = []
    if header.size != manifest.volume_size:
        faults.append(f"is of {header.size} bytes, the volume of {manifest.volume_size}")
    if header.cluster != manifest.cluster:
        faults.append(f"has clusters of {header.cluster} bytes, its chain of {manifest.cluster}")
    backing = None if link.base is None else image_name(link.base)
    if header.backing != backing:
        faults.append(f"has the backing file {header.backing!r} instead of {backing!r}")
    if header.extensions.get(PLACE) != _written(link):
        faults.append(f"says that it is {_place(header) or 'no link'}, not link {link.k} here")
    return faults
