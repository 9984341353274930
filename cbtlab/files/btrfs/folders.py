"""Full paths from the entries of all folders of all subvolumes.

Paths begin at the top of the file system (subvolume 5), whatever subvolume is
mounted by default; a subvolume lies where its parent shows it.  In a snapshot a
nested subvolume is an empty folder, as the kernel shows it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from cbtlab.files.btrfs import layout as on_disk
from cbtlab.files.btrfs.items import Entries
from cbtlab.files.btrfs.superblock import Btrfs
from cbtlab.files.btrfs.trees import Numbers, Trees
from cbtlab.files.extents import Array

_LONGEST = 64 << 10  # bytes of a path
_ALL_TOGETHER = 2 << 30
_MOST_NOTES = 20


@dataclass
class Folders:
    """Names of all trees: ``paths`` with their ``inodes``, and ``faults`` in sentences.

    ``empty`` are inodes that stand for a nested subvolume that a snapshot does not hold.
    """

    btrfs: Btrfs
    trees: Trees
    numbers: Numbers
    paths: list[bytes] = field(default_factory=list)
    inodes: Array = field(default_factory=lambda: np.empty(0, np.int64))
    faults: list[str] = field(default_factory=list)
    empty: set[int] = field(default_factory=set)

    def read(self, entries: list[Entries], known: Array, folders: Array) -> None:
        """Put the paths together; ``known`` are all inodes and ``folders`` those of folders."""
        names = [name for part in entries for name in part.name]
        parent = np.concatenate([np.empty(0, np.int64), *(part.folder for part in entries)])
        child = np.concatenate([np.empty(0, np.int64), *map(self._children, entries)])
        self._check(names, parent, child, known, folders)
        self._walk(names, parent, child, set(folders.tolist()) | self.empty)

    def _children(self, part: Entries) -> Array:
        """The inodes that entries lead to, over all trees."""
        bases = np.array([self.numbers.base(root.tree) for root in self.trees.roots], np.int64)
        limit = np.uint64(1 << self.numbers.shift)
        if (part.objectid[~part.subvolume] >= limit).any():
            raise self.btrfs.fault("a folder's entry leads to an impossible inode")
        child = bases[part.root] + np.where(part.objectid < limit, part.objectid, 0).astype(
            np.int64
        )
        living = set(self.trees.living())
        for at in np.flatnonzero(part.subvolume).tolist():
            parent, own = self.trees.roots[int(part.root[at])].tree, int(part.objectid[at])
            objectid = int(part.folder[at]) - self.numbers.base(parent)
            if self.trees.places.get((parent, own)) == (objectid, part.name[at]) and own in living:
                child[at] = self.numbers.base(own) + on_disk.ROOT_FOLDER
            else:
                child[at] = self.numbers.base(parent) + on_disk.EMPTY_SUBVOLUME
                self.empty.add(int(child[at]))
        return np.asarray(child, np.int64)

    def _check(
        self, names: list[bytes], parent: Array, child: Array, known: Array, folders: Array
    ) -> None:
        odd = [
            name for name in names if b"/" in name or b"\0" in name or name in (b"", b".", b"..")
        ]
        if odd:
            raise self.btrfs.fault(f"has an impossible name, {odd[0]!r}")
        lost = ~np.isin(parent, folders)
        if lost.any():
            raise self.btrfs.fault(f"inode {int(parent[lost][0])} has entries and is no folder")
        nothing = ~np.isin(child, known) & ~np.isin(child, np.array([*self.empty], np.int64))
        for at in np.flatnonzero(nothing)[:_MOST_NOTES].tolist():
            self.faults.append(
                f"folder inode {int(parent[at])}: {names[at]!r} leads to an inode that is not there"
            )

    def _walk(self, names: list[bytes], parent: Array, child: Array, folders: set[int]) -> None:
        order = np.argsort(parent, kind="stable")
        above, start = np.unique(parent[order], return_index=True)
        bounds = [*start.tolist(), len(order)]
        spans = {n: (bounds[i], bounds[i + 1]) for i, n in enumerate(above.tolist())}
        number, own = child[order].tolist(), [names[n] for n in order.tolist()]
        inodes: list[int] = []
        total = 0
        top = self.numbers.base(on_disk.FS_TREE) + on_disk.ROOT_FOLDER
        seen, todo = {top}, [(top, b"/")]
        while todo:
            folder, path = todo.pop()
            first, last = spans.get(folder, (0, 0))
            total += (last - first) * len(path)
            if len(path) > _LONGEST or total > _ALL_TOGETHER:
                raise self.btrfs.fault("has folders in folders, deeper than can be told")
            self.paths += [path + name for name in own[first:last]]
            inodes += number[first:last]
            for at in range(first, last):
                if number[at] in folders and number[at] not in seen:
                    seen.add(number[at])
                    todo.append((number[at], path + own[at] + b"/"))
        self.inodes = np.array(inodes, np.int64)
        lost = sorted(spans.keys() - seen)
        self.faults += [f"inode {n}: a folder that no path leads to" for n in lost[:_MOST_NOTES]]
        for tree in self.trees.living():
            if self.numbers.base(tree) + on_disk.ROOT_FOLDER not in seen:
                self.faults.append(f"subvolume {tree}: no path leads to it")
