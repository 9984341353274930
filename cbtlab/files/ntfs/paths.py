"""Full paths from the $FILE_NAME attributes: each names its folder by number and sequence.

The way from every folder to the root is found for all folders at once, by doubling; a loop
over folders, by rising depth, makes their paths.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cbtlab.files.extents import Array
from cbtlab.files.ntfs import layout as on_disk
from cbtlab.files.ntfs.owned import Owned
from cbtlab.files.ntfs.records import Mask

_LONGEST = 2 << 30  # bytes of all paths together
_TOLD = 20


@dataclass(frozen=True)
class Links:
    """One position a name: its file, its folder (-1 where it is not there), and its text.

    Names in 8.3 form beside a long one are left out.  ``hidden`` tells what has no place.
    """

    inode: Array
    folder: Array
    names: list[bytes]
    hidden: list[str]

    def count(self, inodes: Array) -> Array:
        """How many names each file has, the root one; ``inodes`` ascend."""
        low = np.searchsorted(inodes, self.inode)
        many = np.bincount(low, minlength=len(inodes)).astype(np.int64)
        return np.where(inodes == on_disk.ROOT, 1, many)

    def named(self, folder: int, name: bytes) -> list[int]:
        """The files of that name, in any case, in a folder."""
        near = np.flatnonzero(self.folder == folder).tolist()
        return [int(self.inode[n]) for n in near if self.names[n].lower() == name]


def links(owned: Owned, folder: Mask) -> Links:
    """The names of all files.  Raises InputError for a name that no path can hold."""
    scan, ntfs = owned.scan, owned.ntfs
    inode, parent = owned.name_inode, scan.name.parent
    long = scan.name.space != on_disk.SPACE_DOS
    mine = inode >= 0
    row, count = np.searchsorted(owned.inode, np.maximum(inode, 0)), len(owned.inode)
    alone = np.bincount(row[mine & long], minlength=count)[row] == 0
    keep = np.flatnonzero(mine & (long | alone) & (inode != on_disk.ROOT))
    inode, parent = inode[keep], parent[keep]
    names = [scan.names[n] for n in keep.tolist()]
    if b"\0" in b"".join(names) or b"." in names or b".." in names:
        raise ntfs.fault("a name has a slash or NUL in it, or is . or ..")
    above = (parent & np.uint64(on_disk.NUMBER)).astype(np.int64)
    at = np.minimum(np.searchsorted(owned.inode, above), len(owned.inode) - 1)
    sequence = scan.records.sequence[owned.row][at]
    there = (owned.inode[at] == above) & folder[at]
    there &= sequence == (parent >> np.uint64(48)).astype(np.int64)
    hidden = _told(inode[~there], "names a folder that is not there")
    unnamed = np.bincount(row[keep], minlength=count) == 0
    nameless = owned.inode[unnamed & (owned.inode >= on_disk.RESERVED)]
    hidden += _told(nameless, "has no name")
    return Links(inode, np.where(there, above, -1), names, hidden)


@dataclass(frozen=True)
class Paths:
    """Paths of the files that have one, and those of the file system's own files.

    ``own`` are the names in angle brackets of the records that serve the file system.
    """

    paths: list[bytes]
    inodes: Array
    own: dict[int, str]
    hidden: list[str]


def system_files(owned: Owned, found: Links) -> Array:
    """The file system's own files: the reserved records, and what lies below $Extend."""
    first = owned.inode[owned.inode < on_disk.RESERVED]
    first = first[first != on_disk.ROOT]
    below = np.array([on_disk.EXTEND], np.int64)
    everything = [first]
    known = np.zeros(0, np.int64)
    while len(below):
        below = np.setdiff1d(found.inode[np.isin(found.folder, below)], known)
        known = np.union1d(known, below)
        everything.append(below)
    return np.unique(np.concatenate(everything))


def paths(owned: Owned, found: Links, folder: Mask) -> Paths:
    """Every name with its full path.  Raises InputError when all of them are too long."""
    number = owned.inode[folder]
    nowhere = len(number)  # a place behind all folders
    mine = np.flatnonzero(np.isin(found.inode, number))
    _, once = np.unique(found.inode[mine], return_index=True)
    name = np.full(nowhere + 1, -1, np.int64)
    name[np.searchsorted(number, found.inode[mine[once]])] = mine[once]
    up = np.full(nowhere + 1, nowhere, np.int64)
    linked = np.flatnonzero(name[:-1] >= 0)
    up[linked] = _position(number, found.folder[name[linked]], nowhere)
    root = _position(number, np.array([on_disk.ROOT]), nowhere)[0]
    up[root] = root
    lengths = np.array([len(one) + 1 for one in found.names] + [0], np.int64)
    reached, depth, length = _rise(up, lengths[name])
    sound = (reached == root) & (root != nowhere)
    at = _position(number, found.folder, nowhere)
    good = sound[at] & (found.folder >= 0)
    if int((length[at] + lengths[:-1])[good].sum()) > _LONGEST:
        raise owned.ntfs.fault(f"its paths have more than {_LONGEST} bytes")
    text: list[bytes] = [b""] * (nowhere + 1)
    order = np.argsort(depth, kind="stable")
    for row in order[sound[order] & (order != root)].tolist():
        text[row] = text[up[row]] + b"/" + found.names[name[row]]
    chosen = np.flatnonzero(good)
    rows = zip(at[chosen].tolist(), chosen.tolist(), strict=True)
    every = [text[above] + b"/" + found.names[n] for above, n in rows]
    hidden = list(found.hidden)
    loops = found.inode[(found.folder >= 0) & ~good]
    hidden += _told(loops, "lies below a folder that does not lead to the root")
    hidden += _told(_linked_twice(found, number), "is a folder with more than one name")
    own = system_files(owned, found)
    inodes = found.inode[chosen]
    served = np.isin(inodes, own)
    special = {n: f"<$MFT record {n}>" for n in own.tolist()}
    special |= {
        inode: f"<{path[1:].decode(errors='backslashreplace')}>"
        for path, inode, mine in zip(every, inodes.tolist(), served.tolist(), strict=True)
        if mine
    }
    kept = [path for path, mine in zip(every, served.tolist(), strict=True) if not mine]
    return Paths(kept, inodes[~served], special, hidden)


def _position(number: Array, wanted: Array, nowhere: int) -> Array:
    at = np.minimum(np.searchsorted(number, wanted), max(nowhere - 1, 0))
    if not nowhere:
        return np.zeros(len(wanted), np.int64)
    return np.where(number[at] == wanted, at, nowhere)


def _rise(up: Array, length: Array) -> tuple[Array, Array, Array]:
    """Where the way up ends for each folder, how many steps it has, and the sum of lengths."""
    still = up == np.arange(len(up))
    depth, length = np.where(still, 0, 1), np.where(still, 0, length)
    for _ in range(max(len(up), 2).bit_length()):
        depth, length, up = depth + depth[up], length + length[up], up[up]
    return up, depth, length


def _linked_twice(found: Links, number: Array) -> Array:
    inode, count = np.unique(found.inode[np.isin(found.inode, number)], return_counts=True)
    return inode[count > 1]


def _told(inodes: Array, words: str) -> list[str]:
    """A sentence for each file, and one for all beyond the first few."""
    told = [f"inode {n} {words}" for n in inodes[:_TOLD].tolist()]
    if len(inodes) > _TOLD:
        told.append(f"{len(inodes) - _TOLD} more: {words}")
    return told
