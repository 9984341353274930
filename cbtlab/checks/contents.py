"""Where on S_k the content of excluded files lies, and that of kept ones.

A file is a pair of an inode and a stream: a named stream can be excluded while its file stays.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cbtlab.checks.material import Material
from cbtlab.checks.streams import Bools, Ints
from cbtlab.files.extents import DATA, INLINE, Extents
from cbtlab.files.ranges import Ranges
from cbtlab.leftovers.contents import labels, lengths

_STREAMS = 1 << 20  # no volume has so many names of streams
_CONTENT = ("file", "symlink", "stream")


@dataclass(frozen=True)
class Spots:
    """Ranges of S_k that hold content, rising: ``valid`` bytes from ``start`` on, of a stream.

    ``inline`` ones lie in records, ``encoded`` ones are not the content itself.
    """

    start: Ints
    valid: Ints
    inode: Ints
    stream: Ints
    path: npt.NDArray[np.object_]
    inline: Bools
    encoded: Bools

    def __getitem__(self, which: Bools) -> Spots:
        return Spots(*(column[which] for column in vars(self).values()))


def excluded_inodes(m: Material, *types: str) -> Ints:
    """Return the inodes of these types (regular files) all of whose names a rule gives."""
    assert m.before is not None and m.exclusion is not None
    inodes = m.before.inodes
    files = inodes.index[inodes["type"].isin(types or ("file",))]
    pairs = m.exclusion.pairs
    going = pairs.loc[(pairs["stream"] == 0) & pairs["inode"].isin(files), "inode"]
    return going.unique().astype(np.int64)


def going_symlinks(m: Material) -> Ints:
    """Return the symlinks that go."""
    return excluded_inodes(m, "symlink")


def going_spots(m: Material) -> Spots:
    """Return where the content of what goes lies."""
    assert m.before is not None and m.exclusion is not None
    found = m.before.arrays
    whole = excluded_inodes(m, "file", "symlink")
    pairs = m.exclusion.pairs
    single = pairs[pairs["stream"] != 0]
    keys = _keys(single["inode"].to_numpy(np.int64), single["stream"].to_numpy(np.int64))
    mine = np.isin(found.inode, whole)
    if len(keys):
        mine |= np.isin(_keys(found.inode, found.stream), keys)
    return _spots(m, found[mine])


def kept_ranges(m: Material) -> Ranges:
    """Return the bytes of S_k that are content of files and symlinks with a kept name.

    What has no name is nobody's: the journal, the resize inode, quota files, orphans.
    """
    assert m.before is not None and m.exclusion is not None
    names, found = m.before.names, m.before.arrays
    out = set(m.exclusion.files["path"]) | set(m.exclusion.streams["path"])
    kept = names[names["type"].isin(_CONTENT) & ~names["path"].isin(out)]
    keys = _keys(kept["inode"].to_numpy(np.int64), kept["stream"].to_numpy(np.int64))
    spots = _spots(m, found[np.isin(_keys(found.inode, found.stream), keys)], named=False)
    return Ranges.union(spots.start, spots.valid)


def _keys(inode: Ints, stream: npt.NDArray[np.integer[Any]]) -> Ints:
    return np.asarray(inode * _STREAMS + stream, np.int64)


def _spots(m: Material, found: Extents, named: bool = True) -> Spots:
    """The bytes of these extents that are content."""
    assert m.before is not None
    found = found[np.isin(found.kind, (DATA, INLINE)) & (found.physical >= 0)]
    found = found[found.logical >= 0]
    row = np.searchsorted(m.before.inodes.index.to_numpy().astype(np.int64), found.inode)
    size, valid = lengths(m.before, found, row)
    inside = np.clip(np.minimum(size, valid) - found.logical, 0, found.length)
    inside = np.where(found.encoded, found.length, inside)
    found, inside = found[inside > 0], inside[inside > 0]
    order = np.argsort(found.physical, kind="stable")
    found, inside = found[order], inside[order]
    path = np.full(len(found), "", object)
    if named:
        path = labels(m.before, found.inode, found.stream)
    return Spots(
        found.physical,
        inside,
        found.inode,
        found.stream.astype(np.int64),
        path,
        found.kind == INLINE,
        found.encoded,
    )
