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
    """List files, symlinks and named streams of the file system at ``offset``, one entry a name.

    ``patterns`` are gitignore patterns that select files; none selects all.  All numbers are
    bytes, ``physical`` from the start of the image.  Data and unwritten extents are whole
    blocks of the file system, as FIEMAP reports them, and so may end past the file's
    size; a hole ends at the size.  Neighbouring extents are joined.  Raises InputError.
    """
    volume = map_volume(image, offset)
    names = volume.names
    chosen = names["type"].isin(["file", "symlink", "stream"]).to_numpy()
    if patterns:
        chosen &= match(patterns, volume)
    names = names[chosen]
    size = volume.inodes["size"].reindex(names["inode"], fill_value=0).to_numpy()
    stream = names["stream"].to_numpy()
    named = np.flatnonzero(stream)
    pairs = zip(names["inode"].to_numpy()[named].tolist(), stream[named].tolist(), strict=True)
    size[named] = [volume.streams.size[volume.streams.position(*pair)] for pair in pairs]
    everything = volume.arrays
    everything = everything[~np.isin(everything.kind, (META, RESERVED))]
    inode = names["inode"].to_numpy().astype(np.int64)
    low = np.searchsorted(everything.inode, inode)
    high = np.searchsorted(everything.inode, inode, side="right")
    columns = (names["path"], inode, size, low, high, stream)
    return {
        "files": [
            {
                "path": path,
                "inode": number,
                "size": bytes_,
                "extents": as_documents(everything[a:b], code),
            }
            for path, number, bytes_, a, b, code in zip(*(c.tolist() for c in columns), strict=True)
        ],
        "file_system": volume.fs,
        "notes": [*(f"names may be missing: {fault}" for fault in volume.hidden), *volume.notes],
    }


def as_documents(found: Extents, stream: int = 0) -> list[dict[str, Any]]:
    """The extents of one stream; ``encoded`` stands only where the bytes are not the content."""
    if len(found) and found.stream[-1]:
        found = found[found.stream == stream]
    columns = (found.kind, found.logical, found.physical, found.length, found.encoded)
    return [
        {
            "kind": KINDS[kind],
            "logical": logical,
            "physical": None if physical == NOWHERE else physical,
            "length": length,
            **({"encoded": True} if encoded else {}),
        }
        for kind, logical, physical, length, encoded in zip(
            *(column.tolist() for column in columns), strict=True
        )
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
