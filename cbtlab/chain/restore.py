"""A restore point written out as a raw image, sparse, checked while it is written."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np

from cbtlab.chain.store import Chain
from cbtlab.errors import InputError
from cbtlab.images import CHUNK, Image
from cbtlab.progress import progress

HOLE = 64 << 10  # what is zero in such pieces is left out of the file


def restore(
    chain: Chain, k: int, to: str | os.PathLike[str], force: bool = False
) -> dict[str, Any]:
    """Write backup ``k`` to the raw image ``to``; return what was written.

    The links that it needs are checked first, and its content, against the
    manifest, before the file appears under its name.  Raises InputError when
    ``to`` exists and ``force`` is not set, when it is no regular file or a
    file of the chain itself, and for a chain that does not hold.
    """
    target = Path(to)
    link = chain.link(k)
    try:
        _check_target(target, chain, force)
    except OSError as error:
        raise InputError(target, f"cannot be written: {error.strerror}") from error
    with chain.restored(k) as image:
        digest = write_raw(image, target, link.content_sha256)
    return {
        "chain": str(chain.path),
        "k": k,
        "to": str(target),
        "size": image.size,
        "sha256": digest,
        "links": [needed.k for needed in reversed(chain.manifest.needed(k))],
    }


def write_raw(image: Image, target: Path, expected: str | None = None) -> str:
    """Write ``image`` as a sparse raw file, which appears whole or not at all; return its SHA-256.

    Raises InputError when the digest is not the ``expected`` one.
    """
    digest, zeros = hashlib.sha256(), memoryview(bytes(CHUNK))
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        with (
            part.open("xb", buffering=0) as file,
            progress(f"restoring {target.name}", image.size) as bar,
        ):
            file.truncate(image.size)
            for offset, data in image.chunks():
                length = min(CHUNK, image.size - offset)
                digest.update(zeros[:length] if data is None else data)
                if data is not None:
                    _write_sparse(file.fileno(), data, offset)
                bar.update(length)
            found = digest.hexdigest()
            if expected is not None and found != expected:
                raise InputError(
                    image.name, "restores to another content than was stored", "verify the chain"
                )
            os.fsync(file.fileno())
        part.replace(target)
    except OSError as error:
        raise InputError(target, f"cannot be written: {error.strerror or error}") from error
    finally:
        part.unlink(missing_ok=True)
    return found


def _check_target(target: Path, chain: Chain, force: bool) -> None:
    if target.is_symlink() or (target.exists() and not target.is_file()):
        raise InputError(target, "is no regular file", "name a new file")
    if target.exists() and not force:
        raise InputError(target, "exists", "name a new file, or use --force")
    if not target.parent.is_dir():
        raise InputError(target.parent, "is no folder", "make it first")
    if target.parent.resolve() == chain.path.resolve():
        raise InputError(target, "lies in the chain's own folder", "name a file elsewhere")


def _write_sparse(fd: int, data: memoryview, offset: int) -> None:
    """Write the pieces of ``data`` that are not zero."""
    flat = np.frombuffer(data, np.uint8)
    starts = np.arange(0, len(flat), HOLE)
    used = np.append(np.logical_or.reduceat(flat, starts), False)
    edges = np.flatnonzero(np.diff(used, prepend=False))
    for first, last in edges.reshape(-1, 2).tolist():
        view = data[first * HOLE : min(last * HOLE, len(flat))]
        place = offset + first * HOLE
        while len(view):
            done = os.pwrite(fd, view, place)
            view, place = view[done:], place + done
