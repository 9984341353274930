"""Gaps in the blocks of ext's folders: what no entry in use takes.

All blocks are gone through together: one step of the loop takes the next entry of each.
Layout: the kernel's ``struct ext4_dir_entry_2``, ``struct dx_root`` and ``struct dx_node``.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from cbtlab.leftovers.table import Bools, Ints

_HEAD = 8  # bytes of an entry before its name
_TAIL = 12  # the entry at the end that holds a checksum
_TAIL_KIND = 0xDE
_INDEX_ENTRY = 8  # a hash and a block; the first holds limit and count in the hash's place
_ROOT_INFO = 24  # behind the entries of `.` and `..`

Bytes = npt.NDArray[np.uint8]


def gaps(rows: Bytes, first: Bools, indexed: Bools) -> tuple[Ints, Ints, Ints]:
    """The gaps of blocks, one a row of ``rows``: row, and begin and end within it.

    ``first`` marks the first block of a folder, ``indexed`` those of folders with a hash tree,
    of whose nodes the slots that are not in use are gaps.  A block that makes no sense has none.
    """
    width = rows.shape[1]
    root, node = first & indexed, ~first & indexed & _whole(rows)
    parts = [_index(rows, np.flatnonzero(node), np.full(int(node.sum()), _HEAD))]
    info = rows[:, _ROOT_INFO + 5].astype(np.int64)  # its length; the tree begins behind it
    parts.append(_index(rows, np.flatnonzero(root), _ROOT_INFO + info[root]))
    plain = np.flatnonzero(~root & ~node)
    row, low, high, good = _linear(rows[plain])
    sound = good[row]
    parts.append((plain[row[sound]], low[sound], high[sound]))
    row, low, high = (np.concatenate(column) for column in zip(*parts, strict=True))
    some = (high > low) & (high <= width)
    return row[some], low[some], high[some]


def _whole(rows: Bytes) -> Bools:
    """Which blocks are one unused entry: nodes of a hash tree, or empty without a checksum."""
    head = np.ascontiguousarray(rows[:, :_HEAD])
    step = head.view("<u2")[:, 2]
    return np.asarray((head.view("<u4")[:, 0] == 0) & (step == rows.shape[1] & 0xFFFF), np.bool_)


def _index(rows: Bytes, which: Ints, at: Ints) -> tuple[Ints, Ints, Ints]:
    """The slots of hash tree nodes that are not in use."""
    at = np.minimum(at, rows.shape[1] - 4)
    words = [rows[which, at + n].astype(np.int64) for n in range(4)]
    limit, count = words[0] | words[1] << 8, words[2] | words[3] << 8
    low, high = at + _INDEX_ENTRY * count, at + _INDEX_ENTRY * limit
    good = (count >= 1) & (count <= limit) & (high <= rows.shape[1])
    return which[good], low[good], high[good]


def _linear(rows: Bytes) -> tuple[Ints, Ints, Ints, Bools]:
    """The gaps of plain blocks, and which blocks are sound."""
    count, width = rows.shape
    flat = np.concatenate((rows.reshape(-1), np.zeros(_HEAD, np.uint8)))
    at, live = np.zeros(count, np.int64), np.arange(count)
    good = np.ones(count, np.bool_)
    found: list[tuple[Ints, Ints, Ints]] = [(live[:0], at[:0], at[:0])]
    while len(live):
        here = live * width + at[live]
        head = flat[here[:, None] + np.arange(_HEAD)].copy()
        inode, step = head.view("<u4")[:, 0], head.view("<u2")[:, 2].astype(np.int64)
        step[(step == 0xFFFF) | ((step == 0) & (width == 1 << 16))] = 1 << 16
        name = head[:, 6].astype(np.int64)
        used = inode != 0
        bad = (step < _HEAD) | (step % 4 != 0) | (at[live] + step > width)
        bad |= used & (name + _HEAD > step)
        good[live[bad]] = False
        tail = ~used & (step == _TAIL) & (head[:, 7] == _TAIL_KIND) & (at[live] + step == width)
        begin = at[live] + np.where(used, _HEAD + name, _HEAD - 2)  # the length of no name is 0
        gap = ~bad & ~tail
        found.append((live[gap], begin[gap], (at[live] + step)[gap]))
        at[live] += np.where(bad, width, step)
        live = live[at[live] < width]
    row, low, high = (np.concatenate(column) for column in zip(*found, strict=True))
    return row, low, high, good
