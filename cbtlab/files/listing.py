"""The document of ``cbtlab files``: files and symlinks with their extents."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from cbtlab.exclude import match
from cbtlab.files import map_volume
from cbtlab.files.extents import KINDS, META, NOWHERE, RESERVED, Extents
from cbtlab.files.volume import Readable


def listing(image: Readable, offset: int = 0, patterns: Sequence[str] = ()) -> dict[str, Any]:
    """List regular files and symlinks of the file system at ``offset``, one entry a name.

    ``patterns`` are gitignore patterns that select files; none selects all.  All numbers are
    bytes, ``physical`` from the start of the image.  Data and unwritten extents are whole
    blocks of the file system, as FIEMAP reports them, and so may end past the file's
    size; a hole ends at the size.  Neighbouring extents are joined.  Raises InputError.
    """
    volume = map_volume(image, offset)
    names = volume.names
    chosen = names["type"].isin(["file", "symlink"]).to_numpy()
    if patterns:
        chosen &= match(patterns, volume)
    names = names[chosen]
    size = volume.inodes["size"].reindex(names["inode"], fill_value=0)
    everything = volume.arrays
    everything = everything[~np.isin(everything.kind, (META, RESERVED))]
    inode = names["inode"].to_numpy().astype(np.int64)
    low = np.searchsorted(everything.inode, inode)
    high = np.searchsorted(everything.inode, inode, side="right")
    columns = (names["path"], inode, size, low, high)
    return {
        "files": [
            {"path": path, "inode": number, "size": bytes_, "extents": _extents(everything[a:b])}
            for path, number, bytes_, a, b in zip(*(c.tolist() for c in columns), strict=True)
        ]
    }


def _extents(found: Extents) -> list[dict[str, Any]]:
    rows = zip(
        found.kind.tolist(),
        found.logical.tolist(),
        found.physical.tolist(),
        found.length.tolist(),
        strict=True,
    )
    return [
        {
            "kind": KINDS[kind],
            "logical": logical,
            "physical": None if physical == NOWHERE else physical,
            "length": length,
        }
        for kind, logical, physical, length in rows
    ]


def listing_text(document: dict[str, Any]) -> str:
    """Return a listing in words: one line a file, one more for each extent."""
    lines = []
    for file in document["files"]:
        lines.append(f"{file['path']}  inode {file['inode']}, {file['size']} bytes")
        for extent in file["extents"]:
            place = "" if extent["physical"] is None else f" at {extent['physical']}"
            lines.append(
                f"    {extent['kind']:9} {extent['logical']:>12} +{extent['length']}{place}"
            )
    return "\n".join(lines) or "no file"
