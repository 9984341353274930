"""The names in the folders of XFS: in the inode (short form), and in blocks of entries.

All blocks of all folders are gone through together: one step of the loop takes the
next entry of each.  What finds names by their hashes (leaves, nodes and lists of
free space, kept beyond `layout.FOLDER_LEAVES`) holds no names, and is passed over.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cbtlab.files.extents import DATA, Array, Extents
from cbtlab.files.names import Walk
from cbtlab.files.volume import structure
from cbtlab.files.xfs import layout as on_disk
from cbtlab.files.xfs.checksum import right
from cbtlab.files.xfs.inodes import Inodes
from cbtlab.files.xfs.superblock import Xfs

_AT_ONCE = 8 << 20  # bytes of folders held at once
#: For the type that an entry tells, the code of the inode's: file, folder, symlink, other.
_TYPES = np.array((-1, 0, 1, 3, 3, 3, 3, 2, 3), np.int64)
_TOLD = 20  # faults of one kind that are told

Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Entries:
    """Entries of folders: the folder, the inode, the type as told, and the name of each."""

    folder: Array
    inode: Array
    kind: Array
    names: list[bytes]


def short_form(xfs: Xfs, inodes: Inodes, rows: Array, faults: list[str]) -> Entries:
    """The entries of folders that lie in their inodes; ``rows`` are those folders.

    Layout: the number of entries, how many of them need 8 bytes for an inode (then all have
    8), the parent; and for each entry the length of its name, two bytes, name, type, inode.
    """
    folder, size = inodes.number[rows], inodes.size[rows]
    raw = inodes.raw[rows]
    width = xfs.inode_size + 8
    padded = np.zeros((len(rows), width), np.uint8)
    padded[:, : xfs.inode_size - xfs.core] = raw[:, xfs.core :]
    flat = padded.reshape(-1)
    base = np.arange(len(rows), dtype=np.int64) * width
    wide = np.where(flat[base + 1] != 0, 8, 4).astype(np.int64)
    left = flat[base].astype(np.int64)
    at = 2 + wide
    told = 1 if xfs.has_ftype else 0
    found = _Found(flat, folder)
    live = np.flatnonzero(left > 0)
    bad = size < at
    while len(live):
        here = np.minimum(at[live], xfs.inode_size)
        length = flat[base[live] + here].astype(np.int64)
        end = here + 3 + length + told + wide[live]
        good = (length > 0) & (end <= np.minimum(size[live], xfs.inode_size - xfs.core))
        bad[live[~good]] = True
        live, here, length, end = live[good], here[good], length[good], end[good]
        place = base[live] + here + 3
        number = _number(flat, base[live] + end - wide[live], wide[live])
        kind = flat[place + length].astype(np.int64) if told else np.zeros(len(live), np.int64)
        found.add(live, number, kind, place, length)
        at[live] = end
        left[live] -= 1
        live = live[left[live] > 0]
    bad |= at != size  # an entry that the count leaves out, or the other way round
    faults += [
        f"inode {n}: a folder with an impossible entry" for n in folder[bad][:_TOLD].tolist()
    ]
    return found.entries(faults)


def _number(flat: Bytes, at: Array, wide: Array) -> Array:
    """Inode numbers of 4 or 8 bytes; one too large for any volume is -1."""
    number = _u64(flat, at)
    return np.where(wide == 8, number, number >> np.uint64(32)).astype(np.int64)


def _u64(flat: Bytes, at: Array) -> npt.NDArray[np.uint64]:
    found = np.ascontiguousarray(flat[at[:, None] + np.arange(8)]).view(">u8")[:, 0]
    return found.astype(np.uint64)


class _Found:
    """Collects entries, in bytes of ``flat``, of the folders in ``folder``."""

    def __init__(self, flat: Bytes, folder: Array) -> None:
        self._flat, self._folder = flat, folder
        self._parts: list[tuple[Array, ...]] = [(np.empty(0, np.int64),) * 5]

    def add(self, row: Array, inode: Array, kind: Array, place: Array, length: Array) -> None:
        self._parts.append((row, inode, kind, place, length))

    def entries(self, faults: list[str]) -> Entries:
        """All of them but ``.`` and ``..``, and impossible ones, which are told."""
        row, inode, kind, place, length = (
            np.concatenate([part[n] for part in self._parts]) for n in range(5)
        )
        raw = self._flat.tobytes()
        ends = (place + length).tolist()
        leaves = [raw[low:high] for low, high in zip(place.tolist(), ends, strict=True)]
        keep = [n for n, leaf in enumerate(leaves) if leaf not in (b".", b"..") and possible(leaf)]
        odd = [leaf for leaf in leaves if not possible(leaf)]
        faults += [f"an impossible name {leaf!r}" for leaf in odd[:_TOLD]]
        at = np.array(keep, np.int64)
        return Entries(self._folder[row[at]], inode[at], kind[at], [leaves[n] for n in keep])


def possible(leaf: bytes) -> bool:
    """Whether this can be a name."""
    return b"/" not in leaf and b"\0" not in leaf


def in_blocks(
    xfs: Xfs, extents: Extents, size: dict[int, int], faults: list[str]
) -> Iterator[Entries]:
    """The entries in the blocks of folders; ``extents`` are `ordered`, in blocks, theirs alone.

    A folder's block has one or more blocks of the file system, which may lie apart.  ``size``
    is of each folder in bytes.
    """
    found = extents[extents.kind == DATA]
    count = found.length
    which = np.repeat(np.arange(len(found)), count)
    within = np.arange(len(which)) - np.repeat(np.cumsum(count) - count, count)
    inode, logical = found.inode[which], found.logical[which] + within
    place = found.physical[which] + within
    each = xfs.folder_block // xfs.block_size
    key = logical // each
    starts = np.flatnonzero(np.append(True, (np.diff(inode) != 0) | (np.diff(key) != 0)))
    starts = starts[: len(inode)]
    whole = np.diff(np.append(starts, len(inode))) == each
    faults += [
        f"inode {n}: a folder with a part of a block"
        for n in np.unique(inode[starts[~whole]])[:_TOLD].tolist()
    ]
    starts = starts[whole]
    _short(inode[starts], (key[starts] + 1) * xfs.folder_block, size, faults)
    most = max(1, _AT_ONCE // xfs.folder_block)
    for at in range(0, len(starts), most):
        first = starts[at : at + most]
        blocks = place[first[:, None] + np.arange(each)]
        rows = xfs.volume.blocks(blocks.reshape(-1), xfs.block_size)
        yield _block(xfs, rows.reshape(len(first), -1), inode[first], blocks[:, 0], faults)


def _short(folder: Array, end: Array, size: dict[int, int], faults: list[str]) -> None:
    """Tell of folders whose blocks end before their size does."""
    reached: dict[int, int] = dict(zip(folder.tolist(), end.tolist(), strict=True))  # the last wins
    short = [n for n, wanted in size.items() if reached.get(n, 0) < wanted]
    faults += [f"inode {n}: a folder larger than its blocks" for n in short[:_TOLD]]


def _block(xfs: Xfs, rows: Bytes, folder: Array, place: Array, faults: list[str]) -> Entries:
    """The entries in some blocks of folders, those at ``place``."""
    head = structure(rows, on_disk.FOLDER_HEAD)
    data, single = (
        (on_disk.FOLDER_DATA, on_disk.FOLDER_BLOCK)
        if xfs.has_checksums
        else (on_disk.FOLDER_DATA_4, on_disk.FOLDER_BLOCK_4)
    )
    alone = head["magic"] == single
    good = alone | (head["magic"] == data)
    if xfs.has_checksums:
        good &= (head["owner"] == folder.astype(np.uint64)) & xfs.is_ours(head)
        good &= head["place"] == (place * (xfs.block_size // on_disk.SECTOR)).astype(np.uint64)
        odd = good & ~right(rows, on_disk.FOLDER_CHECKSUM)
        _tell(folder[odd], "a block of a folder has a wrong checksum", faults)
    _tell(folder[~good], "a damaged block of a folder", faults)
    start = on_disk.FOLDER_HEAD.itemsize if xfs.has_checksums else on_disk.FOLDER_HEAD_4
    tail = np.ascontiguousarray(rows[:, -on_disk.FOLDER_TAIL.itemsize :])
    leaves = tail.view(on_disk.FOLDER_TAIL)["count"][:, 0].astype(np.int64)
    end = np.where(alone, rows.shape[1] - on_disk.FOLDER_TAIL.itemsize - 8 * leaves, rows.shape[1])
    _tell(folder[good & (end < start)], "a damaged block of a folder", faults)
    end[~good] = 0
    return _entries(xfs, rows, folder, start, end, faults)


def _entries(
    xfs: Xfs, rows: Bytes, folder: Array, start: int, end: Array, faults: list[str]
) -> Entries:
    """An entry: inode, length of the name, name, type, and its own place in the last 2 bytes."""
    width = rows.shape[1]
    flat = np.concatenate((rows.reshape(-1), np.zeros(512, np.uint8)))
    base = np.arange(len(rows), dtype=np.int64) * width
    at = np.full(len(rows), start, np.int64)
    told = 1 if xfs.has_ftype else 0
    found = _Found(flat, folder)
    live = np.flatnonzero(at < end)
    while len(live):
        here = base[live] + at[live]
        number = _u64(flat, here)
        length = flat[here + 8].astype(np.int64)
        free = number >> np.uint64(48) == on_disk.FOLDER_FREE
        step = 8 + 1 + length + told + 2 + 7 & ~7
        step = np.where(free, (number >> np.uint64(32) & np.uint64(0xFFFF)).astype(np.int64), step)
        bad = (step < 8) | (step % 8 != 0) | (at[live] + step > end[live])
        bad |= ~free & (length == 0)
        step = np.where(bad, width, step)
        last = here + step - 2
        tag = flat[np.minimum(last, len(flat) - 2)].astype(np.int64) << 8
        tag |= flat[np.minimum(last + 1, len(flat) - 1)]
        bad |= tag != at[live]
        _tell(folder[live[bad]], "a folder with an impossible entry", faults)
        used = ~bad & ~free
        place = here[used] + 9
        kind = flat[place + length[used]].astype(np.int64) if told else np.zeros_like(place)
        found.add(live[used], number[used].astype(np.int64), kind, place, length[used])
        at[live] += np.where(bad, width, step)
        live = live[at[live] < end[live]]
    return found.entries(faults)


def _tell(folder: Array, fault: str, faults: list[str]) -> None:
    faults += [f"inode {n}: {fault}" for n in np.unique(folder)[:_TOLD].tolist()]


def walk(
    xfs: Xfs,
    parts: list[Entries],
    inodes: Array,
    types: npt.NDArray[np.int8],
    faults: list[str],
) -> Walk:
    """Every name below the root, as full paths.

    ``inodes`` are the numbers of those in use, rising, and ``types`` their codes.  In ``faults``
    is told what may hide a name: also a folder that nothing leads to, and a name of an inode
    that is not in use or of another type.
    """
    parent = np.concatenate([part.folder for part in parts] or [np.empty(0, np.int64)])
    inode = np.concatenate([part.inode for part in parts] or [np.empty(0, np.int64)])
    kind = np.concatenate([part.kind for part in parts] or [np.empty(0, np.int64)])
    leaves = [name for part in parts for name in part.names]
    at = np.minimum(np.searchsorted(inodes, inode), len(inodes) - 1)
    known = inodes[at] == inode
    own, told = types[at], _TYPES[np.where(kind < len(_TYPES), kind, 0)]
    odd = known & (told != own) & (kind != 0)  # 0 tells nothing
    _tell(parent[odd], "an entry of a wrong type", faults)
    lost = np.flatnonzero(~known)[:_TOLD]
    pairs = zip(parent[lost].tolist(), inode[lost].tolist(), strict=True)
    faults += [f"inode {n}: a name of inode {to}, which is not in use" for n, to in pairs]
    below = known & (own == _TYPES[2])
    return _paths(xfs.root, parent, inode, leaves, below, faults)


def _paths(
    root: int,
    parent: Array,
    inode: Array,
    leaves: list[bytes],
    below: npt.NDArray[np.bool_],
    faults: list[str],
) -> Walk:
    """Put full paths together, from the root down; ``below`` marks the folders."""
    order = np.argsort(parent, kind="stable")
    above, start = np.unique(parent[order], return_index=True)
    bounds = [*start.tolist(), len(order)]
    spans = {n: (bounds[i], bounds[i + 1]) for i, n in enumerate(above.tolist())}
    number, deeper = inode[order].tolist(), np.flatnonzero(below[order])
    own = [leaves[n] for n in order.tolist()]
    paths: list[bytes] = []
    inodes: list[int] = []
    seen = {root}
    todo = [(root, b"/")]
    while todo:
        folder, path = todo.pop()
        first, last = spans.get(folder, (0, 0))
        paths += [path + leaf for leaf in own[first:last]]
        inodes += number[first:last]
        low, high = np.searchsorted(deeper, [first, last])
        for at in deeper[low:high].tolist():
            if number[at] not in seen:
                seen.add(number[at])
                todo.append((number[at], path + own[at] + b"/"))
    _tell(np.array(sorted(spans.keys() - seen), np.int64), "a folder that nothing leads to", faults)
    return Walk(paths, np.array(inodes, np.int64), faults)
