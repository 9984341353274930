"""The VolumeMap of exFAT, put together from its structures.

An inode here is the byte offset of the first record of a file from the volume's start, divided
by 32: the same as long as the records stay where they are.  The root folder has the number 1.
Times carry their zone; where they do not they are taken as UTC.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from cbtlab.files.exfat import layout as on_disk
from cbtlab.files.exfat.boot import Boot
from cbtlab.files.exfat.folders import ROOT, Folders, Runs
from cbtlab.files.exfat.records import times
from cbtlab.files.extents import META, Array, Extents, category
from cbtlab.files.fat.chains import BAD, FAULTS, FREE, OUTSIDE, SHARED, Chains, Table, claim_once
from cbtlab.files.fat.clusters import Heap, Mask, Named, readable, written
from cbtlab.files.volume import Volume
from cbtlab.files.volume_map import VolumeMap

_TYPES = ("file", "directory", "symlink", "other")
_EVERYTHING = 1 << 62
_MORE_FAULTS = (
    "its chain is shorter than its size",
    "some of its clusters are marked free",
    "more of it is valid than its size",
    "it has a size, and no clusters",
)
SHORT, UNMARKED, VALID, NOTHING = range(len(FAULTS), len(FAULTS) + len(_MORE_FAULTS))
_WORDS = (*FAULTS, *_MORE_FAULTS)


def map_exfat(volume: Volume, *, names: bool = True) -> VolumeMap:
    """Map the file system at the volume's start.  Raises InputError."""
    boot = Boot(volume)
    table = boot.table()
    folders = Folders(boot, table, names=names)
    heap = Heap(volume, boot.heap, boot.cluster_size, boot.clusters, boot.size)
    content = _Content(heap, table, folders)
    own = [(heap.cover(part, np.ones_like(part)), name) for name, part in folders.system]
    allocated = folders.allocated.copy()
    for mask, _ in own:
        allocated |= mask
    mask, shared = readable(heap, allocated, content.start, content.length, content.kept)
    taken = heap.cover(content.start, content.length)
    rest = allocated & ~taken & ~np.logical_or.reduce([part for part, _ in own])
    bad = rest & (table == BAD)
    lost = rest & ~bad
    if folders.root_is_full and lost.any():
        raise boot.fault(
            "the root folder may be cut short: it has no end mark, and "
            f"{int(lost.sum())} clusters in use belong to no file"
        )
    notes = [*boot.notes, *folders.notes, *content.notes()]
    for count, words in (
        (shared, "clusters in use are free, or not readable, for another owner"),
        (int(lost.sum()), "clusters in use belong to no file"),
    ):
        if count:
            notes.append(f"{count} {words}")
    masks = [*own, (bad, "<bad clusters>"), (lost, "<lost clusters>")]
    result = VolumeMap(
        volume=volume,
        fs="exfat",
        uuid=boot.serial,
        block_size=boot.cluster_size,
        size=boot.size,
        in_use=heap.in_use(mask),
        inodes=content.inodes,
        extents=content.extents(),
        regions=heap.regions(_structures(boot), masks),
        special={},
        root=ROOT,
        xattrs=lambda inode: {},
        holders=lambda inode: [],
        notes=notes,
        damaged=content.damaged,
    )
    if names:
        result.set_names(folders.paths.found, content.inode_of_names)
    return result


class _Content:
    """The clusters of every file and folder: ``start``, ``length`` and ``kept`` of each run.

    ``kept`` is how many clusters of it lie before the end of what was ever written; ``damaged``
    says for an inode what is wrong with it.
    """

    def __init__(self, heap: Heap, table: Table, folders: Folders) -> None:
        self._heap, self._folders = heap, folders
        self._size = heap.cluster_size
        runs = Runs.join([part.runs for part in folders.found])
        others = Runs.join([part.others for part in folders.found])
        files = np.concatenate([part.files for part in folders.found])
        streams = np.concatenate([part.streams for part in folders.found])
        self.inode_of_names = runs.inode
        root = np.array([folders.root_clusters[0]])
        size = np.array([len(folders.root_clusters) * self._size])
        own = Runs(np.array([ROOT]), root, size, np.zeros(1, bool), np.ones(1, np.uint8))
        self._files = len(runs.inode)
        self._runs = Runs.join([runs, others, own])
        folder = np.ones(len(self._runs.inode), np.bool_)  # others are never cut, as folders are
        folder[: self._files] = files["attributes"] & on_disk.ATTR_DIRECTORY != 0
        valid = np.minimum(streams["valid"], _EVERYTHING).astype(np.int64)
        valid = np.where(folder[: self._files], runs.size, valid)
        self._fault = np.zeros(len(folder), np.int8)
        self._map(table)
        self._judge(valid)
        self.damaged = {
            inode: _WORDS[code]
            for inode, code in zip(self._runs.inode.tolist(), self._fault.tolist(), strict=True)
            if code
        }
        limit = np.full(len(folder), _EVERYTHING)
        limit[: self._files] = -(-valid // self._size)
        limit[(self._fault != 0) | folder] = _EVERYTHING
        self.kept = np.clip(limit[self._which] - self._logical, 0, self.length)
        self._limit = np.minimum(limit, _EVERYTHING // self._size) * self._size
        self.inodes = self._table(files, np.minimum(valid, runs.size), folder)

    def _map(self, table: Table) -> None:
        """Find the runs of all: of those in one piece, and then the chains in the rest."""
        runs, last = self._runs, self._heap.clusters + 2
        need = -(-runs.size // self._size)
        fault, empty = self._fault, runs.size == 0
        fault[(runs.flags & on_disk.ALLOCATED == 0) & ~empty] = NOTHING
        whole = runs.whole & ~empty & (fault == 0)
        outside = whole & ((runs.head < 2) | (runs.head >= last) | (need > last - runs.head))
        fault[outside] = OUTSIDE
        solid = np.flatnonzero(whole & ~outside)
        in_one = self._heap.cover(runs.head[solid], need[solid])
        used = self._folders.allocated & (table != FREE) & (table != BAD) & ~in_one
        chained = np.flatnonzero(~runs.whole & (fault == 0) & (~empty | (runs.head != 0)))
        chains = Chains(table, used)
        low, high, wrong = chains.slices(runs.head[chained])
        claim_once(runs.head[chained], low, high, wrong)
        fault[chained] = wrong
        which, logical, start, length = chains.runs(low, high)
        self._which = np.concatenate((solid, chained[which]))
        self._logical = np.concatenate((np.zeros(len(solid), np.int64), logical))
        self.start = np.concatenate((runs.head[solid], start))
        self.length = np.concatenate((need[solid], length))
        count = np.bincount(self._which, weights=self.length, minlength=len(fault))
        fault[(count < need) & (fault == 0)] = SHORT
        self._long = int(((count > need) & (fault == 0)).sum())

    def _judge(self, valid: Array) -> None:
        """Clusters that are marked free, or have two owners, and sizes that cannot be."""
        fault = self._fault
        step = np.zeros(self._heap.clusters + 3, np.int32)
        np.add.at(step, self.start, 1)
        np.add.at(step, self.start + self.length, -1)
        for part in (part for _, part in self._folders.system):
            step[part] += 1
            step[part + 1] -= 1
        owners = np.cumsum(step[:-1])
        for wrong, code in ((owners > 1, SHARED), (~self._folders.allocated, UNMARKED)):
            before = np.concatenate(([0], np.cumsum(wrong)))
            hit = before[self.start + self.length] > before[self.start]
            some = np.unique(self._which[hit])
            fault[some[fault[some] == 0]] = code
        files = slice(0, self._files)
        over = (valid > self._runs.size[files]) & (fault[files] == 0)
        fault[files][over] = VALID

    def notes(self) -> list[str]:
        """What is odd about the files."""
        found = [f"inode {n}: {why}" for n, why in sorted(self.damaged.items())[:20]]
        if self._long:
            found.append(f"{self._long} files hold clusters behind their end")
        return found

    def extents(self) -> Extents:
        """The extents of all, in bytes of the image."""
        inode = self._runs.inode[self._which]
        found = self._heap.extents(inode, self._logical, self.start, self.length)
        other = self._which >= self._files
        other &= self._which < len(self._runs.inode) - 1
        extra = found[other]
        extra = Extents.of(extra.inode, META, -1, extra.physical, extra.length)
        content = written(found[~other], self._limit[self._which[~other]])
        return Extents.join([content, extra]).ordered().merged()

    def _table(self, files: npt.NDArray[Any], valid: Array, folder: Mask) -> pd.DataFrame:
        """The table of inodes, the root folder first."""
        number, size = self._runs.inode[: self._files], self._runs.size
        order = np.argsort(number, kind="stable")

        def column(values: Any, root: int = 0, dtype: Any = np.int64) -> npt.NDArray[Any]:
            rows = np.broadcast_to(np.asarray(values), number.shape)
            return np.concatenate(([root], rows[order])).astype(dtype)

        def time(name: str) -> npt.NDArray[np.int64]:
            fine = f"{name}_centiseconds"
            more = files[fine] if fine in (files.dtype.names or ()) else 0
            return column(times(files[name], more, files[f"{name}_zone"]))

        frame: pd.DataFrame = pd.DataFrame(
            {
                "type": category(column(folder[: self._files], 1), _TYPES),
                "size": column(size[: self._files], int(size[-1])),
                "valid": column(valid, int(size[-1])),
                "mode": column(0, dtype=np.uint32),
                "uid": column(0, dtype=np.uint32),
                "gid": column(0, dtype=np.uint32),
                "nlink": column(1, 1, np.uint32),
                "mtime_ns": time("modified"),
                "atime_ns": time("accessed"),
                "ctime_ns": column(0),
                "crtime_ns": time("created"),
                "flags": column(files["attributes"], on_disk.ATTR_DIRECTORY, np.uint32),
                "device": column(0, dtype=np.uint32),
                "project": column(0, dtype=np.uint32),
            },
            index=pd.Index(column(number, ROOT, np.uint64), name="inode"),
        )
        return frame


def _structures(boot: Boot) -> list[Named]:
    """Everything before the clusters."""
    region = on_disk.BOOT_SECTORS * boot.sector
    parts: list[Named] = [
        (0, region, "<boot region>"),
        (region, 2 * region, "<backup boot region>"),
        (2 * region, boot.fat_offset, "<reserved sectors>"),
    ]
    end = boot.fat_offset
    for number in range(boot.fats):
        name = "<FAT>" if boot.fats == 1 else f"<FAT {number + 1}>"
        parts.append((end, end + boot.fat_size, name))
        end += boot.fat_size
    return [*parts, (end, boot.heap, "<reserved sectors>")]
