"""Compares the content of kept files on S_k and R_k: places first, bytes where they differ.

A kept file lies where it lay, so its blocks are compared in place, streaming.
Only files with another map, or with a block that differs, are read as files.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import zip_longest
from typing import Any

import numpy as np
import pandas as pd

from cbtlab.checks.material import Material
from cbtlab.checks.verdict import item
from cbtlab.errors import InputError
from cbtlab.files import VolumeMap
from cbtlab.files.extents import NOWHERE
from cbtlab.images import differing

_PIECE = 1 << 20
_COLUMNS = ["inode", "kind", "logical", "physical", "length", "stream", "encoded"]


def changed_content(
    m: Material, restored: VolumeMap, names: pd.DataFrame
) -> Iterator[dict[str, Any]]:
    """Yield evidence for every kept file, symlink or stream whose bytes are not those on S_k."""
    assert m.before is not None and m.restored is not None
    readable = names[names["type"].isin(["file", "symlink", "stream"])]
    readable = readable.drop_duplicates(["inode", "stream"])
    readable = readable[readable["inode"].isin(restored.inodes.index)]
    suspects = _suspects(m, restored, readable["inode"].unique())
    columns = (readable[name].tolist() for name in ("path", "inode", "stream"))
    for path, inode, stream in zip(*columns, strict=True):
        other = _same_stream(m.before, restored, inode, stream)
        if inode not in suspects or other is None:
            continue
        try:
            at = first_difference(m.before, restored, inode, stream, other)
        except InputError as error:
            yield item(path=path, note=f"cannot be read: {error.fault}")
            continue
        if at is not None:
            place = _place(m.before, inode, stream, at)
            yield item(
                block=None if place is None else place // m.granularity,
                offset=place,
                path=path,
                link=None if place is None else m.link_of(place) or m.link_name,
                note=f"content differs from byte {at} of the file on",
            )


def _same_stream(before: VolumeMap, restored: VolumeMap, inode: int, stream: int) -> int | None:
    """The code of a stream on the restored volume; None where it is not there."""
    if not stream:
        return 0
    name = before.streams.names[stream]
    codes = restored.streams.codes_of(inode)
    return next((code for code in codes if restored.streams.names[code] == name), None)


def _suspects(m: Material, restored: VolumeMap, inodes: Any) -> set[int]:
    """Return the inodes whose map differs, or one of whose blocks does."""
    assert m.before is not None and m.restored is not None
    parts = []
    for table in (m.before.extents, restored.extents):
        part = table[table["inode"].isin(inodes) & (table["kind"] != "meta")][_COLUMNS]
        parts.append(part.astype({"kind": str, "stream": str}))
    every = pd.concat(parts, ignore_index=True)
    moved = every[~every.duplicated(keep=False)]["inode"]
    changed = differing(m.mapped_image, m.restored, m.before.block_size)
    own = parts[0][parts[0]["physical"].notna() & (parts[0]["length"] > 0)]
    start = own["physical"].to_numpy(np.int64)
    end = start + own["length"].to_numpy(np.int64)
    low, length = (array.astype(np.int64) for array in changed.extents())
    # an extent is hit when a changed run ends after its start and begins before its end
    hit = np.searchsorted(low + length, start, side="right") < np.searchsorted(low, end)
    return set(moved.tolist()) | set(own["inode"].to_numpy()[hit].tolist())


def first_difference(
    one: VolumeMap, other: VolumeMap, inode: int, stream: int = 0, same: int = 0
) -> int | None:
    """Return the first byte at which two volumes differ in a stream of a file, or None.

    ``stream`` is its code on ``one``, and ``same`` on ``other``.
    """
    done = 0
    left_pieces, right_pieces = _pieces(one, inode, stream), _pieces(other, inode, same)
    for left, right in zip_longest(left_pieces, right_pieces, fillvalue=b""):
        if left != right:
            common = min(len(left), len(right))
            a, b = np.frombuffer(left[:common], np.uint8), np.frombuffer(right[:common], np.uint8)
            odd = np.flatnonzero(a != b)
            return done + (int(odd[0]) if len(odd) else common)
        done += len(left)
    return None


def _pieces(volume: VolumeMap, inode: int, stream: int) -> Iterator[bytes]:
    """Yield a file's content in pieces of one size, so that two readers stay in step."""
    rest = bytearray()
    for _, length, data in volume.file_chunks(inode, stream):
        for at in range(0, length, _PIECE):
            count = min(_PIECE, length - at)
            rest += bytes(count) if data is None else data[at : at + count]
            while len(rest) >= _PIECE:
                yield bytes(rest[:_PIECE])
                del rest[:_PIECE]
    if rest:
        yield bytes(rest)


def _place(volume: VolumeMap, inode: int, stream: int, at: int) -> int | None:
    """Return where byte ``at`` of a file lies on the volume, or None where it has no place."""
    own = volume.rows(inode)
    placed = (own.stream == stream) & (own.physical != NOWHERE) & (own.logical != NOWHERE)
    own = own[placed & ~own.encoded]
    hit = np.flatnonzero((own.logical <= at) & (at < own.logical + own.length))
    if not len(hit):
        return None
    return int(own.physical[hit[0]] + at - own.logical[hit[0]])
