"""Leftovers that every file system has: behind the end of files, and what was never written.

They follow from the map alone.  Content that is encoded (compressed, encrypted) has none here:
its bytes are needed to the last.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from cbtlab.files.extents import DATA, RESERVED, UNWRITTEN
from cbtlab.files.volume_map import TYPES, VolumeMap
from cbtlab.leftovers import table
from cbtlab.leftovers.table import Bools, Ints, Leftovers

_WITH_CONTENT = [TYPES.index("file"), TYPES.index("symlink")]


def of_contents(volume: VolumeMap, untouchable: Bools | None = None) -> list[Leftovers]:
    """Slack, bytes past the valid length, and unwritten extents, with the path of each file.

    ``untouchable`` marks rows of ``volume.inodes`` whose bytes past the end are not slack.
    """
    found = volume.arrays
    placed = np.isin(found.kind, (DATA, UNWRITTEN, RESERVED)) & ~found.encoded
    found = found[placed & (found.physical >= 0)]
    row = np.searchsorted(volume.inodes.index.to_numpy().astype(np.int64), found.inode)
    kind = volume.inodes["type"].cat.codes.to_numpy()[row]
    mine = (np.isin(kind, _WITH_CONTENT) | (found.stream != 0)) & ~_serves(volume, found.inode)
    mine &= ~np.isin(found.inode, list(volume.damaged))
    if untouchable is not None:
        mine &= ~untouchable[row]
    found, row = found[mine], row[mine]
    size, valid = lengths(volume, found, row)
    start, end = found.physical, found.physical + found.length
    data, rest = found.kind == DATA, found.kind == RESERVED
    past = start + np.clip(size - found.logical, 0, found.length)
    invalid = start + np.clip(np.minimum(valid, size) - found.logical, 0, found.length)
    owner = labels(volume, found.inode, found.stream)
    unwritten = found.kind == UNWRITTEN
    return [
        Leftovers.of(table.SLACK, past[data], end[data], owner[data]),
        Leftovers.of(table.PAST_VALID, invalid[data], past[data], owner[data]),
        Leftovers.of(table.UNWRITTEN, start[unwritten], end[unwritten], owner[unwritten]),
        Leftovers.of(table.SLACK, start[rest], end[rest], owner[rest]),
    ]


def labels(volume: VolumeMap, inode: Ints, stream: Any = None) -> Any:
    """The path of each inode, with the name of the stream behind it."""
    code = np.zeros(len(inode), np.int64) if stream is None else stream.astype(np.int64)
    pairs, which = np.unique(np.stack((inode, code)), axis=1, return_inverse=True)
    names = [
        volume.label(n) + (":" + volume.streams.names[c].decode(errors="replace") if c else "")
        for n, c in pairs.T.tolist()
    ]
    return np.array([*names, ""], object)[which.reshape(-1)]


def lengths(volume: VolumeMap, found: Any, row: Ints) -> tuple[Ints, Ints]:
    """The size of each extent's stream, and how many bytes of it were written."""
    size = volume.inodes["size"].to_numpy()[row].astype(np.int64)
    valid = size
    if "valid" in volume.inodes:
        valid = volume.inodes["valid"].to_numpy()[row].astype(np.int64)
    more = np.flatnonzero(found.stream)
    if len(more):
        size, valid = size.copy(), valid.copy()
    for at in more.tolist():
        position = volume.streams.position(int(found.inode[at]), int(found.stream[at]))
        size[at], valid[at] = volume.streams.size[position], volume.streams.valid[position]
    return size, valid


def _serves(volume: VolumeMap, inode: Ints) -> Bools:
    """Which inodes serve the file system itself: the journal, quota files."""
    named = np.isin(inode, volume.names["inode"].to_numpy().astype(np.int64))
    own = [n for n in np.unique(inode[~named]).tolist() if not volume.label(n).startswith("<inode")]
    return np.asarray(np.isin(inode, own), np.bool_)
