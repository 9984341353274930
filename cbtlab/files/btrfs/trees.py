"""Which trees a btrfs has: the root tree's items, and how inodes of many trees are numbered."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from cbtlab.files.btrfs import layout as on_disk
from cbtlab.files.btrfs.superblock import Btrfs
from cbtlab.files.btrfs.tree import LEAST, Leaves, Root, sortable
from cbtlab.files.volume import structure

NAMES = {
    on_disk.ROOT_TREE: "<root tree>",
    on_disk.EXTENT_TREE: "<extent tree>",
    on_disk.CHUNK_TREE: "<chunk tree>",
    on_disk.DEV_TREE: "<device tree>",
    on_disk.FS_TREE: "<fs tree>",
    on_disk.CSUM_TREE: "<checksum tree>",
    on_disk.QUOTA_TREE: "<quota tree>",
    on_disk.UUID_TREE: "<uuid tree>",
    on_disk.FREE_SPACE_TREE: "<free space tree>",
    on_disk.BLOCK_GROUP_TREE: "<block group tree>",
    on_disk.DATA_RELOC_TREE: "<data relocation tree>",
}
#: Trees whose nodes have owners, and whose leaves say nothing that is needed.
_UNREAD = (
    on_disk.CSUM_TREE,
    on_disk.QUOTA_TREE,
    on_disk.UUID_TREE,
    on_disk.FREE_SPACE_TREE,
)
_SHIFTS = (48, 40, 32)


def name_of(tree: int) -> str:
    """What to call the nodes of a tree; those of all subvolumes are alike."""
    return NAMES.get(tree, NAMES[on_disk.FS_TREE])


class Numbers:
    """Numbers for inodes over all trees: ``tree << 48 | objectid``; in tree 5, the objectid.

    The root tree is 1 (it holds the free space caches), and the data relocation tree 9.  Where
    there is a subvolume with a number of 32768 or more, the shift is 40, and then 32, and
    a note says so.  Raises InputError where nothing fits.
    """

    def __init__(self, btrfs: Btrfs, trees: list[int]) -> None:
        most = max([0, *(tree for tree in trees if tree <= on_disk.LAST_FREE)])
        fitting = [shift for shift in _SHIFTS if most < 1 << (63 - shift)]
        if not fitting:
            raise btrfs.fault(f"has a subvolume with the number {most}", "it cannot be mapped")
        self.shift = fitting[0]
        if self.shift != _SHIFTS[0]:
            btrfs.notes.append(f"inodes of subvolumes are numbered ID << {self.shift} | inode")

    def base(self, tree: int) -> int:
        """What the numbers of a tree's inodes begin with."""
        code = {on_disk.FS_TREE: 0, on_disk.DATA_RELOC_TREE: 9}.get(tree, tree)
        return code << self.shift


@dataclass
class Trees:
    """What the root tree names.

    ``roots`` are the trees to walk.  ``deleted`` are subvolumes whose deletion goes on at
    the next mount.  ``places`` says where a subvolume is to be seen: by its parent and its own
    number, the folder in the parent, and its name there.  ``caches`` are the inodes
    of free space caches.
    """

    btrfs: Btrfs
    roots: list[Root] = field(default_factory=list)
    deleted: set[int] = field(default_factory=set)
    places: dict[tuple[int, int], tuple[int, bytes]] = field(default_factory=dict)
    caches: set[int] = field(default_factory=set)

    def add(self, leaves: Leaves) -> None:
        """Take the items of some leaves of the root tree.  Raises InputError."""
        for row in np.flatnonzero(leaves.type == on_disk.ROOT_ITEM_KEY).tolist():
            self._root(int(leaves.objectid[row]), leaves.item(row))
        for row in np.flatnonzero(leaves.type == on_disk.ROOT_REF_KEY).tolist():
            item = leaves.item(row)
            if len(item) < on_disk.ROOT_REF.itemsize:
                raise self.btrfs.fault("a reference to a subvolume is damaged")
            ref = structure(item, on_disk.ROOT_REF)
            name = item[on_disk.ROOT_REF.itemsize :][: int(ref["name_len"])]
            key = int(leaves.objectid[row]), int(leaves.offset[row])
            self.places[key] = int(ref["dirid"]), name
        header = leaves.objectid == np.uint64(on_disk.FREE_SPACE_OBJECT)
        header &= (leaves.type == on_disk.FREE_SPACE_HEADER_KEY) & (leaves.size >= 17)
        inodes = leaves.records(np.flatnonzero(header), on_disk.FREE_SPACE_HEADER)["inode"]
        self.caches.update(inodes.tolist())

    def _root(self, tree: int, item: bytes) -> None:
        if len(item) < on_disk.ROOT_ITEM.itemsize:
            raise self.btrfs.fault(f"the root item of tree {tree} is damaged")
        if tree == on_disk.RELOC_TREE:
            raise self.btrfs.volume.not_at_rest(
                "a balance was cut off, and goes on at the next mount",
                "mount a copy once, for writing, and let the balance end or cancel it",
            )
        files = on_disk.FIRST_FREE <= tree <= on_disk.LAST_FREE
        if tree not in NAMES and not files:
            raise self.btrfs.fault(f"has a tree that is not known, {tree}", "it cannot be mapped")
        if any(root.tree == tree for root in self.roots):
            raise self.btrfs.fault(f"has two root items of tree {tree}")
        root = structure(item, on_disk.ROOT_ITEM)
        dropped, level = LEAST, int(root["level"])
        if files and not int(root["refs"]):
            self.deleted.add(tree)
            dropped = bytes(sortable(np.array([root["drop_progress"]]))[0])
        if level >= on_disk.MOST_LEVELS:
            raise self.btrfs.fault(f"the root item of tree {tree} is damaged")
        self.roots.append(
            Root(
                tree,
                int(root["bytenr"]),
                level,
                int(root["generation"]),
                shared=files or tree == on_disk.FS_TREE,
                leaves=tree not in _UNREAD,
                dropped=dropped,
            )
        )

    def check(self) -> None:
        """Raise InputError where a tree is missing that no file system is without."""
        there = {root.tree for root in self.roots}
        needed = {on_disk.EXTENT_TREE, on_disk.DEV_TREE, on_disk.FS_TREE, on_disk.CSUM_TREE}
        if self.btrfs.compat_ro & on_disk.COMPAT_RO_BLOCK_GROUP_TREE:
            needed.add(on_disk.BLOCK_GROUP_TREE)
        for tree in sorted(needed - there):
            raise self.btrfs.fault(f"has no {NAMES[tree].strip('<>')}")

    def holds_files(self) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
        """For each root, whether its tree holds inodes."""
        return np.array([_holds_files(root.tree) for root in self.roots], np.bool_)

    def living(self) -> list[int]:
        """The subvolumes that are not being deleted, by number, tree 5 among them."""
        known = {root.tree for root in self.roots if _holds_files(root.tree)}
        return sorted(known - self.deleted - {on_disk.DATA_RELOC_TREE})


def _holds_files(tree: int) -> bool:
    own = (on_disk.FS_TREE, on_disk.DATA_RELOC_TREE)
    return tree in own or on_disk.FIRST_FREE <= tree <= on_disk.LAST_FREE
