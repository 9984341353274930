"""The names in the folders of ext2, ext3 and ext4, from their blocks.

All blocks of all folders are gone through together: one step of the loop takes
the next entry of each.  The blocks of a hash tree need no care: its nodes look
like unused entries.  Layout: the kernel's ``struct ext4_dir_entry_2``.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from cbtlab.files.ext import layout as on_disk
from cbtlab.files.ext.superblock import Ext
from cbtlab.files.extents import DATA, INLINE, Array, Extents
from cbtlab.files.tsk import Walk

_AT_ONCE = 8 << 20  # bytes of folders held at once
_HEAD = 8  # bytes of an entry before its name
_INLINE_PARENT = 4  # an inline folder begins with the number of its parent

Bytes = npt.NDArray[np.uint8]
Entries = tuple[Array, Array, list[bytes]]  # of names: the folder, the inode, the name


def names(ext: Ext, extents: Extents, folders: Array, last_inode: int) -> Walk:
    """Every name below the root, as full paths; ``folders`` are the inodes of all folders.

    ``extents`` are `ordered` and in bytes of the image.  A folder that nothing leads to, and
    what cannot be read as an entry, is told in ``faults``.
    """
    faults: list[str] = []
    found = extents[np.isin(extents.inode, folders)]
    parts = [*_of_blocks(ext, found, faults), *_inline(ext, found, faults)]
    parent = np.concatenate([part[0] for part in parts] or [np.empty(0, np.int64)])
    inode = np.concatenate([part[1] for part in parts] or [np.empty(0, np.int64)])
    leaves = [name for part in parts for name in part[2]]
    good = inode <= last_inode
    faults += [f"inode {n}: an entry for an impossible inode" for n in parent[~good][:20].tolist()]
    return _paths(parent, inode, leaves, good, set(folders.tolist()), faults)


def _paths(
    parent: Array,
    inode: Array,
    leaves: list[bytes],
    good: npt.NDArray[np.bool_],
    folders: set[int],
    faults: list[str],
) -> Walk:
    """Put full paths together, from the root down."""
    order = np.argsort(parent, kind="stable")
    order = order[good[order]]
    above, start = np.unique(parent[order], return_index=True)
    bounds = [*start.tolist(), len(order)]
    spans = {n: (bounds[i], bounds[i + 1]) for i, n in enumerate(above.tolist())}
    number = inode[order].tolist()
    own = [leaves[n] for n in order.tolist()]
    paths: list[bytes] = []
    inodes: list[int] = []
    seen = {on_disk.ROOT_INODE}
    todo = [(on_disk.ROOT_INODE, b"/")]
    while todo:
        folder, path = todo.pop()
        first, last = spans.get(folder, (0, 0))
        paths += [path + leaf for leaf in own[first:last]]
        inodes += number[first:last]
        for at in range(first, last):
            if number[at] in folders and number[at] not in seen:
                seen.add(number[at])
                todo.append((number[at], path + own[at] + b"/"))
    faults += [f"inode {n}: a folder without a name" for n in sorted(spans.keys() - seen)[:20]]
    return Walk(paths, np.array(inodes, np.int64), faults)


def _of_blocks(ext: Ext, extents: Extents, faults: list[str]) -> Iterator[Entries]:
    found = extents[extents.kind == DATA]
    count = found.length // ext.block_size
    which = np.repeat(np.arange(len(found)), count)
    within = np.arange(len(which)) - np.repeat(np.cumsum(count) - count, count)
    block = (found.physical[which] - ext.volume.offset) // ext.block_size + within
    inode = found.inode[which]
    most = max(1, _AT_ONCE // ext.block_size)
    for at in range(0, len(block), most):
        part = slice(at, at + most)
        yield _entries(ext.volume.blocks(block[part], ext.block_size), inode[part], faults)


def _inline(ext: Ext, extents: Extents, faults: list[str]) -> Iterator[Entries]:
    """Entries in the inode: after the parent's number, and from the start of an attribute."""
    found = extents[(extents.kind == INLINE) & (extents.length > _INLINE_PARENT)]
    skip = np.where(found.logical == 0, _INLINE_PARENT, 0)
    place, length = found.physical + skip - ext.volume.offset, found.length - skip
    for size in np.unique(length).tolist():
        mine = length == size
        data = [ext.volume.read(at, size) for at in place[mine].tolist()]
        rows = np.frombuffer(b"".join(data), np.uint8).reshape(-1, size)
        yield _entries(rows, found.inode[mine], faults)


def _entries(rows: Bytes, inode: Array, faults: list[str]) -> Entries:
    """The used entries in rows of bytes, but ``.`` and ``..``."""
    width = rows.shape[1]
    flat = np.concatenate((rows.reshape(-1), np.zeros(_HEAD, np.uint8)))
    base = np.arange(len(rows), dtype=np.int64) * width
    at = np.zeros(len(rows), np.int64)
    live = np.arange(len(rows))
    parents: list[Array] = []
    numbers: list[Array] = []
    places: list[Array] = []
    lengths: list[Array] = []
    while len(live):
        here = base[live] + at[live]
        head = flat[here[:, None] + np.arange(_HEAD)].copy()
        number = head.view("<u4")[:, 0].astype(np.int64)
        step = head.view("<u2")[:, 2].astype(np.int64)
        step[(step == 0xFFFF) | ((step == 0) & (width == 1 << 16))] = 1 << 16
        name = head[:, 6].astype(np.int64)
        bad = (step < _HEAD) | (step % 4 != 0) | (at[live] + step > width)
        bad |= (number != 0) & (name + _HEAD > step)
        faults += [
            f"inode {n}: a folder with an impossible entry" for n in inode[live[bad]][:20].tolist()
        ]
        used = ~bad & (number != 0) & (name > 0)
        parents.append(inode[live[used]])
        numbers.append(number[used])
        places.append(here[used] + _HEAD)
        lengths.append(name[used])
        at[live] += np.where(bad, width, step)
        live = live[at[live] + _HEAD <= width]
    parent, number = np.concatenate(parents), np.concatenate(numbers)
    return _named(flat, parent, number, np.concatenate(places), np.concatenate(lengths), faults)


def _named(
    flat: Bytes, parent: Array, number: Array, place: Array, length: Array, faults: list[str]
) -> Entries:
    raw = flat.tobytes()
    ends = (place + length).tolist()
    leaves = [raw[low:high] for low, high in zip(place.tolist(), ends, strict=True)]
    keep = [
        n
        for n, leaf in enumerate(leaves)
        if leaf not in (b".", b"..") and b"/" not in leaf and b"\0" not in leaf
    ]
    odd = [leaf for leaf in leaves if b"/" in leaf or b"\0" in leaf]
    faults += [f"an impossible name {leaf!r}" for leaf in odd[:20]]
    return parent[keep], number[keep], [leaves[n] for n in keep]
