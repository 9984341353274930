"""The folders' own indexes ($I30), compared with the names in the records.

Every name is kept twice: in the file's record and in its folder's index.  The trees of all
folders are gone through level by level, each level of all folders together.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from cbtlab.files.extents import Array
from cbtlab.files.ntfs import layout as on_disk
from cbtlab.files.ntfs.owned import Owned
from cbtlab.files.ntfs.places import INDEX
from cbtlab.files.ntfs.records import PAD, Bytes, Mask, chain, fix_up, gather, hashes

_AT_ONCE = 8 << 20  # bytes of blocks held at once
_ROWS = 4096
_TOLD = 20
_FOLDER, _FILE = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xC2B2AE3D27D4EB4F)
Hash = npt.NDArray[np.uint64]
Level = tuple[Array, Array]  # of blocks: the folder, and the virtual cluster or sector


class Indexes:
    """Reads the indexes of all folders; ``notes`` and ``hidden`` say what does not agree."""

    def __init__(self, owned: Owned, folder: Mask) -> None:
        self._owned, self._ntfs = owned, owned.ntfs
        self._folders = owned.inode[folder]
        self._keys: list[Hash] = []
        self._who: list[tuple[Array, Array]] = []
        self._broken: list[Array] = []
        words = owned.scan.words
        self._word = words.index(INDEX) if INDEX in words else -1
        self._size = self._ntfs.boot.index_block
        # Blocks smaller than a cluster are numbered in sectors of 512 bytes.
        self._unit = self._ntfs.cluster if self._ntfs.cluster <= self._size else on_disk.STRIDE
        self._prepare()
        level = self._roots()
        seen: Hash = np.empty(0, np.uint64)
        while len(level[0]):
            level, seen = self._once(level, seen)
            level = self._blocks(level)
        self.notes: list[str] = []
        self.hidden: list[str] = []
        self._compare()

    def _prepare(self) -> None:
        """The runs of all indexes under one key, that rises with folder and cluster."""
        owned = self._owned
        mine = (owned.whole.type == on_disk.INDEX_ALLOCATION) & (owned.whole.name == self._word)
        mine &= owned.whole.sound
        at = np.flatnonzero(mine[owned.attribute])
        inode = owned.whole.inode[owned.attribute[at]]
        self._run = at
        self._run_key = inode.astype(np.uint64) << np.uint64(32) | owned.vcn[at].astype(np.uint64)
        self._run_end = owned.vcn[at] + owned.length[at]
        self._run_inode = inode

    def _roots(self) -> Level:
        owned, values = self._owned, self._owned.scan.resident
        which = np.flatnonzero((values.type == on_disk.INDEX_ROOT) & (values.name == self._word))
        which = which[np.isin(owned.value_inode[which], self._folders)]
        self._blame(np.setdiff1d(self._folders, owned.value_inode[which]))
        below = [self._root_rows(which[at : at + _ROWS]) for at in range(0, len(which), _ROWS)]
        return _join(below)

    def _root_rows(self, which: Array) -> Level:
        values, folder = self._owned.scan.resident, self._owned.value_inode[which]
        rows, good = self._ntfs.rows(values.record[which])
        start = np.arange(len(which)) * rows.shape[1] + values.at[which] + on_disk.ROOT_HEADER
        end = start + values.length[which] - on_disk.ROOT_HEADER
        good &= values.length[which] >= on_disk.ROOT_HEADER + on_disk.INDEX_HEADER.itemsize
        return self._entries(rows, folder, start, end, good)

    def _blocks(self, level: Level) -> Level:
        below, each = [], max(_AT_ONCE // self._size, 1)
        for first in range(0, len(level[0]), each):
            folder, number = (part[first : first + each] for part in level)
            rows, good = self._read(folder, number)
            place = rows[:, on_disk.BLOCK_NUMBER : on_disk.BLOCK_NUMBER + 8].copy().view("<i8")
            good &= place[:, 0] == number
            start = np.arange(len(rows)) * self._size + on_disk.BLOCK_HEADER
            end = (np.arange(len(rows)) + 1) * self._size
            below.append(self._entries(rows, folder, start, end, good))
        return _join(below)

    def _read(self, folder: Array, number: Array) -> tuple[Bytes, Mask]:
        """The blocks, zeros where there is none, and which are whole."""
        owned, cluster = self._owned, self._ntfs.cluster
        piece = min(self._size, cluster)
        offset = (number * self._unit)[:, None] + np.arange(0, self._size, piece)
        vcn = offset // cluster
        key = folder.astype(np.uint64)[:, None] << np.uint64(32) | vcn.astype(np.uint64)
        at = np.searchsorted(self._run_key, key, side="right") - 1
        if not len(self._run):
            return np.zeros((len(folder), self._size), np.uint8), np.zeros(len(folder), np.bool_)
        near = np.maximum(at, 0)
        good = (at >= 0) & (self._run_inode[near] == folder[:, None]) & (vcn < self._run_end[near])
        run = self._run[near]
        good &= owned.lcn[run] >= 0
        place = (owned.lcn[run] - owned.vcn[run]) * cluster + offset
        place = np.where(good, place, 0)
        rows = self._ntfs.volume.blocks(place.ravel() // piece, piece).reshape(-1, self._size)
        whole: Mask = good.all(axis=1)
        return rows, whole & fix_up(rows, b"INDX")

    def _entries(self, rows: Bytes, folder: Array, start: Array, end: Array, good: Mask) -> Level:
        """Keep the entries of nodes whose header is at ``start``; return the nodes below."""
        flat = np.concatenate((rows.ravel(), np.zeros(PAD + 512, np.uint8)))
        header = gather(flat, start, on_disk.INDEX_HEADER)
        first, used = header["first"].astype(np.int64), header["used"].astype(np.int64)
        good = good & (first >= 16) & (first % 8 == 0) & (first <= used) & (used <= end - start)
        self._blame(folder[~good])
        folder, start, first, used = folder[good], start[good], first[good], used[good]
        which, place, bad = chain(flat, start + first, start + used, 8, 16, last=12)
        self._blame(folder[bad])
        entry = gather(flat, place, on_disk.INDEX_ENTRY)
        length = entry["length"].astype(np.int64)
        deeper = entry["flags"] & on_disk.ENTRY_BELOW != 0
        fits = ~deeper | (length >= 24)
        self._blame(folder[which[~fits]])
        link = place[deeper & fits] + length[deeper & fits] - 8
        below = gather(flat, link, np.dtype([("vcn", "<i8")]))["vcn"].astype(np.int64)
        parent = folder[which[deeper & fits]]
        named = entry["flags"] & on_disk.ENTRY_LAST == 0
        self._keep(flat, folder[which[named]], place[named], entry[named])
        far = (below < 0) | (below >= 1 << 32)
        self._blame(parent[far])
        return parent[~far], below[~far]

    def _keep(self, flat: Bytes, folder: Array, place: Array, entry: npt.NDArray[np.void]) -> None:
        key = entry["key"].astype(np.int64)
        good = (key >= on_disk.NAME.itemsize) & (key + 16 <= entry["length"])
        name = gather(flat, place + 16, on_disk.NAME)
        many = name["length"].astype(np.int64)
        good &= on_disk.NAME.itemsize + 2 * many <= key
        self._blame(folder[~good])
        folder, place, many = folder[good], place[good], many[good]
        child = entry["reference"][good].copy()
        own = hashes(flat, place + 16 + on_disk.NAME.itemsize, many)
        self._keys.append(_key(folder, child, own))
        number = (child & np.uint64(on_disk.NUMBER)).astype(np.int64)
        self._who.append((folder, number))

    def _once(self, level: Level, seen: Hash) -> tuple[Level, Hash]:
        """The blocks that were not met before; a tree that leads back into itself is damaged."""
        key = level[0].astype(np.uint64) << np.uint64(32) | level[1].astype(np.uint64)
        unique, first = np.unique(key, return_index=True)
        new = first[~np.isin(unique, seen)]
        again = np.ones(len(key), np.bool_)
        again[new] = False
        self._blame(level[0][again])
        return (level[0][new], level[1][new]), np.union1d(seen, unique)

    def _blame(self, folders: Array) -> None:
        if len(folders):
            self._broken.append(np.unique(folders))

    def _compare(self) -> None:
        owned, scan = self._owned, self._owned.scan
        mine = np.flatnonzero(owned.name_inode >= 0)
        inode = owned.name_inode[mine]
        at = scan.records.rows_of(inode)
        child = inode.astype(np.uint64) | scan.records.sequence[at].astype(np.uint64) << np.uint64(
            48
        )
        parent = scan.name.parent[mine] & np.uint64(on_disk.NUMBER)
        own = _key(parent.astype(np.int64), child, scan.name.hash[mine])
        broken = np.unique(np.concatenate([np.empty(0, np.int64), *self._broken]))
        for folder in broken.tolist():
            owned.damaged.setdefault(folder, "its index is damaged")
        keys = np.concatenate([np.empty(0, np.uint64), *self._keys])
        folder = np.concatenate([np.empty(0, np.int64), *(one for one, _ in self._who)])
        number = np.concatenate([np.empty(0, np.int64), *(two for _, two in self._who)])
        strange = np.flatnonzero(~np.isin(keys, own))
        for n in strange[:_TOLD].tolist():
            words = f"folder {folder[n]} has a name for inode {number[n]} that it does not have"
            self.hidden.append(words)
        if len(strange) > _TOLD:
            self.hidden.append(f"{len(strange) - _TOLD} more names are in folders alone")
        alone = np.unique(inode[~np.isin(own, keys)])
        if len(alone):
            some = ", ".join(map(str, alone[:_TOLD].tolist()))
            self.notes.append(f"{len(alone)} files have a name that no folder has: inodes {some}")


def _key(folder: Array, child: Hash, name: Hash) -> Hash:
    return name + folder.astype(np.uint64) * _FOLDER + child * _FILE


def _join(levels: list[Level]) -> Level:
    empty = [np.empty(0, np.int64)]
    return (
        np.concatenate(empty + [one for one, _ in levels]),
        np.concatenate(empty + [two for _, two in levels]),
    )
