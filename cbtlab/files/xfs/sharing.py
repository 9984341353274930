"""Blocks that two owners claim, and of which at most one can be right.

Files may share their data where both are marked so (reflink).  Everything else has
its blocks for itself; where it has not, the file system is damaged, and without
checksums (version 4) nothing else would tell.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from cbtlab.files.extents import META, Array, Extents
from cbtlab.files.ranges import Ranges


def claimed_twice(
    extents: Extents, may_share: npt.NDArray[np.bool_], start: Array, length: Array
) -> Array:
    """The inodes that claim a block of another owner; all in blocks.

    ``may_share`` says for each extent whether its inode shares data; ``start`` and ``length``
    are the file system's own structures.
    """
    shared = may_share & (extents.kind != META)
    mine, theirs = extents[~shared], extents[shared]
    begin = np.append(mine.physical, start)
    end = begin + np.append(mine.length, length)
    inode = np.append(mine.inode, np.full(len(start), -1))
    order = np.argsort(begin, kind="stable")
    begin, end, inode = begin[order], end[order], inode[order]
    reach = np.maximum.accumulate(end)
    holder = np.maximum.accumulate(np.where(end == reach, np.arange(len(end)), 0))
    clash = np.flatnonzero(begin[1:] < reach[:-1]) + 1
    which, _, _ = Ranges.union(begin, end - begin).clipped(
        theirs.physical, theirs.physical + theirs.length
    )
    found = np.concatenate((inode[clash], inode[holder[clash - 1]], theirs.inode[which]))
    return np.unique(found[found >= 0])
