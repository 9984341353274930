"""The names in the folders of ext2, ext3 and ext4, from their blocks.

All blocks of all folders are gone through together: one step of the loop takes
the next entry of each.  The blocks of a hash tree need no care: its nodes look
like unused entries.  Layout: the kernel's ``struct ext4_dir_entry_2``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cbtlab.files.checksum import crc32c
from cbtlab.files.ext import layout as on_disk
from cbtlab.files.ext.superblock import Ext
from cbtlab.files.extents import DATA, INLINE, Array, Extents
from cbtlab.files.names import Walk

_AT_ONCE = 8 << 20  # bytes of folders held at once
_HEAD = 8  # bytes of an entry before its name
_TAIL, _TAIL_HEAD = 12, bytes((0, 0, 0, 0, 12, 0, 0, 0xDE))  # the entry that holds a checksum
_FOLDER = 2  # the type of a folder in an entry; 0 tells nothing
_TOLD = 20  # faults of one kind that are told
_INLINE_PARENT = 4  # an inline folder begins with the number of its parent

Bytes = npt.NDArray[np.uint8]
Entries = tuple[Array, Array, Array, list[bytes]]  # folder, inode, type as told, name


@dataclass(frozen=True)
class Folders:
    """All folders in use: inodes, rising, with their sizes and the seeds of their checksums."""

    inode: Array
    size: Array
    seed: npt.NDArray[np.uint32]


def names(ext: Ext, extents: Extents, folders: Folders, inodes: Array) -> Walk:
    """Every name below the root, as full paths.

    ``extents`` are `ordered` and in bytes of the image, ``inodes`` are those in use, rising.  In
    ``faults`` is told what may hide a name: an entry or a checksum that is wrong, a folder
    that is cut short or that nothing leads to, a name of an inode that is not in use.
    """
    faults: list[str] = []
    found = extents[np.isin(extents.inode, folders.inode)]
    _short(found, folders, faults)
    parts = [*_of_blocks(ext, found, folders, faults), *_inline(ext, found, faults)]
    parent = np.concatenate([part[0] for part in parts] or [np.empty(0, np.int64)])
    inode = np.concatenate([part[1] for part in parts] or [np.empty(0, np.int64)])
    told = np.concatenate([part[2] for part in parts] or [np.empty(0, np.int64)])
    leaves = [name for part in parts for name in part[3]]
    below = np.isin(inode, folders.inode)
    odd = parent[(told != 0) & ((told == _FOLDER) != below)]
    faults += [f"inode {n}: an entry of a wrong type" for n in np.unique(odd)[:_TOLD].tolist()]
    lost = np.flatnonzero(~np.isin(inode, inodes))
    pairs = zip(parent[lost][:_TOLD].tolist(), inode[lost][:_TOLD].tolist(), strict=True)
    faults += [f"inode {n}: a name of inode {to}, which is not in use" for n, to in pairs]
    return _paths(parent, inode, leaves, set(folders.inode.tolist()), faults)


def _short(found: Extents, folders: Folders, faults: list[str]) -> None:
    """Tell of folders whose blocks or bytes in the inode are fewer than their size."""
    content = found[np.isin(found.kind, (DATA, INLINE))]
    held = np.zeros(len(folders.inode), np.int64)
    at = np.searchsorted(folders.inode, content.inode)
    within = np.clip(folders.size[at] - content.logical, 0, content.length)
    np.add.at(held, at, within)
    short = folders.inode[held < folders.size]
    faults += [f"inode {n}: a folder larger than its blocks" for n in short[:_TOLD].tolist()]


def _paths(
    parent: Array,
    inode: Array,
    leaves: list[bytes],
    folders: set[int],
    faults: list[str],
) -> Walk:
    """Put full paths together, from the root down."""
    order = np.argsort(parent, kind="stable")
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
    lost = sorted(spans.keys() - seen)[:_TOLD]
    faults += [f"inode {n}: a folder that nothing leads to" for n in lost]
    return Walk(paths, np.array(inodes, np.int64), faults)


def _of_blocks(
    ext: Ext, extents: Extents, folders: Folders, faults: list[str]
) -> Iterator[Entries]:
    found = extents[extents.kind == DATA]
    count = found.length // ext.block_size
    which = np.repeat(np.arange(len(found)), count)
    within = np.arange(len(which)) - np.repeat(np.cumsum(count) - count, count)
    block = (found.physical[which] - ext.volume.offset) // ext.block_size + within
    inode = found.inode[which]
    size = folders.size[np.searchsorted(folders.inode, inode)]
    inside = found.logical[which] + within * ext.block_size < size  # the kernel reads no more
    block, inode = block[inside], inode[inside]
    most = max(1, _AT_ONCE // ext.block_size)
    for at in range(0, len(block), most):
        part = slice(at, at + most)
        rows = ext.volume.blocks(block[part], ext.block_size)
        if ext.has_checksums:
            seed = folders.seed[np.searchsorted(folders.inode, inode[part])]
            bad = _wrong(rows, seed)
            odd = np.unique(inode[part][bad])[:_TOLD].tolist()
            faults += [f"inode {n}: a block of a folder has a wrong checksum" for n in odd]
        yield _entries(rows, inode[part], faults)


def _wrong(rows: Bytes, seed: npt.NDArray[np.uint32]) -> npt.NDArray[np.bool_]:
    """Which blocks of folders have a wrong checksum, or none.

    It stands in an entry at the end that looks unused.  The nodes of a hash tree, which are
    passed over, hold no names: the root has an entry ``..`` over the rest of the block, the
    others one unused entry over all of it.
    """
    size = rows.shape[1]
    tail = np.ascontiguousarray(rows[:, -_TAIL:])
    has = (tail[:, :8] == np.frombuffer(_TAIL_HEAD, np.uint8)).all(axis=1)
    stored = tail[:, 8:].copy().view("<u4")[:, 0]
    word = np.ascontiguousarray(rows[:, :24]).view("<u2")
    root = (word[:, 2] == 12) & (word[:, 8] == (size - 12) & 0xFFFF)
    node = (word[:, 0] == 0) & (word[:, 1] == 0) & (word[:, 2] == size & 0xFFFF)
    wrong = ~has & ~root & ~node
    wrong[has] = crc32c(rows[has, :-_TAIL], seed[has]) != stored[has]
    return np.asarray(wrong, np.bool_)


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
    kinds: list[Array] = []
    places: list[Array] = []
    lengths: list[Array] = []
    while len(live):
        here = base[live] + at[live]
        head = flat[here[:, None] + np.arange(_HEAD)].copy()
        number = head.view("<u4")[:, 0].astype(np.int64)
        step = head.view("<u2")[:, 2].astype(np.int64)
        step[(step == 0xFFFF) | ((step == 0) & (width == 1 << 16))] = 1 << 16
        name = head[:, 6].astype(np.int64)
        # As in the kernel, what is left must hold an entry, be it an unused one.
        bad = (step < _HEAD) | (step % 4 != 0) | (at[live] + step > width)
        bad |= (number != 0) & (name + _HEAD > step)
        faults += [
            f"inode {n}: a folder with an impossible entry"
            for n in inode[live[bad]][:_TOLD].tolist()
        ]
        used = ~bad & (number != 0) & (name > 0)
        parents.append(inode[live[used]])
        numbers.append(number[used])
        kinds.append(head[used, 7].astype(np.int64))
        places.append(here[used] + _HEAD)
        lengths.append(name[used])
        at[live] += np.where(bad, width, step)
        live = live[at[live] < width]
    place, length = np.concatenate(places), np.concatenate(lengths)
    keep, leaves = _named(flat, place, length, faults)
    parent, number, kind = (np.concatenate(column) for column in (parents, numbers, kinds))
    return parent[keep], number[keep], kind[keep], leaves


def _named(
    flat: Bytes, place: Array, length: Array, faults: list[str]
) -> tuple[Array, list[bytes]]:
    """The names at these places, but ``.`` and ``..``, and the positions of them."""
    raw = flat.tobytes()
    ends = (place + length).tolist()
    leaves = [raw[low:high] for low, high in zip(place.tolist(), ends, strict=True)]
    keep = [n for n, leaf in enumerate(leaves) if leaf not in (b".", b"..") and _possible(leaf)]
    odd = [leaf for leaf in leaves if not _possible(leaf)]
    faults += [f"an impossible name {leaf!r}" for leaf in odd[:_TOLD]]
    return np.array(keep, np.int64), [leaves[n] for n in keep]


def _possible(leaf: bytes) -> bool:
    return b"/" not in leaf and b"\0" not in leaf
