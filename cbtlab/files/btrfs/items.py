"""What the leaves of file trees hold: inodes, file extents, names and extended attributes.

Items stream through some leaves at a time; of a leaf that a snapshot shares,
an item counts once for every tree.  Nothing loops over items but what makes the
bytes of a name.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from cbtlab.files.btrfs import layout as on_disk
from cbtlab.files.btrfs.superblock import Btrfs
from cbtlab.files.btrfs.tree import Leaves, at_places
from cbtlab.files.btrfs.trees import Numbers
from cbtlab.files.checksum import crc32c
from cbtlab.files.extents import Array

_SECOND = 1_000_000_000
_LATEST = np.iinfo(np.int64).max // _SECOND - 1
_MOST_ROWS = 1 << 28  # items of all trees together
_NAME_SEED = 0xFFFFFFFE
_INODE_CACHE = 12  # how the inode of the old cache of inode numbers is numbered in a tree

#: Columns of a file extent: the inode, its place in the file, what it says, and where on the
#: disk its bytes are when it is inline; ``fresh`` is 1 the first time that the item is met.
FILE_EXTENT_COLUMNS = (
    "inode",
    "logical",
    "type",
    "compression",
    "disk_bytenr",
    "disk_num_bytes",
    "offset",
    "num_bytes",
    "ram_bytes",
    "inline",
    "fresh",
    "odd",
)
Columns = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class Entries:
    """Names: the folder's inode, the tree it lies in, and what each name leads to.

    ``objectid`` is an inode of the same tree, or where ``subvolume`` a tree; ``hash`` is of the
    name.
    """

    folder: Array
    root: Array
    objectid: npt.NDArray[np.uint64]
    subvolume: npt.NDArray[np.bool_]
    name: list[bytes]
    hash: Array


@dataclass
class Items:
    """Collects the items of file trees; ``tree`` of a leaf's visit is a position in ``trees``."""

    btrfs: Btrfs
    numbers: Numbers
    inodes: list[Columns] = field(default_factory=list)
    extents: list[Columns] = field(default_factory=list)
    entries: list[Entries] = field(default_factory=list)
    hashed: list[Array] = field(default_factory=list)
    attributes: list[Array] = field(default_factory=list)
    _rows: int = 0

    def add(
        self,
        leaves: Leaves,
        trees: list[int],
        wanted: npt.NDArray[np.bool_],
        named: npt.NDArray[np.bool_],
    ) -> None:
        """Take what the ``wanted`` trees hold, and names of those that are ``named``."""
        self._bases = np.array([self.numbers.base(tree) for tree in trees], np.int64)
        kind = leaves.type

        def of(type_: int, which: npt.NDArray[np.bool_]) -> tuple[Array, Array]:
            found = leaves.of_trees(np.flatnonzero(kind == type_), which)
            self._rows += len(found[0])
            if self._rows > _MOST_ROWS:
                raise self.btrfs.fault("has more files and snapshots than can be mapped")
            return found

        self._inodes(leaves, *of(on_disk.INODE_ITEM_KEY, wanted))
        self._extents(leaves, *of(on_disk.EXTENT_DATA_KEY, wanted))
        self._attributes(leaves, *of(on_disk.XATTR_ITEM_KEY, wanted))
        if named.any():
            self._names(leaves, *of(on_disk.DIR_INDEX_KEY, named))
            self._hashed(leaves, *of(on_disk.DIR_ITEM_KEY, named))

    def _number(self, objectid: npt.NDArray[np.uint64], tree: Array) -> Array:
        """The number over all trees of inodes of a tree."""
        cache = objectid == np.uint64(on_disk.FREE_INO_OBJECT)
        objectid = np.where(cache, np.uint64(_INODE_CACHE), objectid)
        large = objectid >= np.uint64(1 << self.numbers.shift)
        if large.any():
            raise self.btrfs.fault(f"has an inode with the number {int(objectid[large][0])}")
        return np.asarray(self._bases[tree] + objectid.astype(np.int64), np.int64)

    def _need(self, leaves: Leaves, rows: Array, size: Any, what: str) -> None:
        short = leaves.size[rows] < size
        if short.any():
            at = int(leaves.objectid[rows[short]][0])
            raise self.btrfs.fault(f"inode {at}: {what} is damaged")

    # Inodes ---------------------------------------------------------------------------------

    def _inodes(self, leaves: Leaves, rows: Array, tree: Array) -> None:
        self._need(leaves, rows, on_disk.INODE_ITEM.itemsize, "its inode item")
        item = leaves.records(rows, on_disk.INODE_ITEM)

        def time(name: str) -> npt.NDArray[np.int64]:
            seconds = np.clip(item[name], -_LATEST, _LATEST)
            nanoseconds = np.minimum(item[f"{name}_nsec"], _SECOND - 1).astype(np.int64)
            return np.asarray(seconds * _SECOND + nanoseconds, np.int64)

        self.inodes.append(
            {
                "inode": self._number(leaves.objectid[rows], tree),
                "size": item["size"].astype(np.uint64),
                "mode": item["mode"].astype(np.uint32),
                "uid": item["uid"].astype(np.uint32),
                "gid": item["gid"].astype(np.uint32),
                "nlink": item["nlink"].astype(np.uint32),
                "mtime_ns": time("mtime"),
                "atime_ns": time("atime"),
                "ctime_ns": time("ctime"),
                "crtime_ns": time("otime"),
                "flags": item["flags"].astype(np.uint64),
                "device": item["rdev"].astype(np.uint32),
            }
        )

    # File extents ---------------------------------------------------------------------------

    def _extents(self, leaves: Leaves, rows: Array, tree: Array) -> None:
        head_bytes = on_disk.FILE_EXTENT_HEAD.itemsize
        self._need(leaves, rows, head_bytes, "an item of a file extent")
        head = leaves.records(rows, on_disk.FILE_EXTENT_HEAD)
        inline = head["type"] == on_disk.INLINE
        full = on_disk.FILE_EXTENT.itemsize
        self._need(leaves, rows, np.where(inline, head_bytes, full), "an item of a file extent")
        body = np.zeros(len(rows), on_disk.FILE_EXTENT)
        body[~inline] = leaves.records(rows[~inline], on_disk.FILE_EXTENT)
        number = self._number(leaves.objectid[rows], tree)
        fresh = np.zeros(len(rows), np.bool_)
        fresh[np.unique(rows, return_index=True)[1]] = True
        columns = {name: body[name] for name in ("disk_bytenr", "offset")}
        columns["disk_num_bytes"] = np.where(
            inline, leaves.size[rows] - head_bytes, body["disk_num_bytes"].astype(np.int64)
        )
        columns["num_bytes"] = np.where(inline, head["ram_bytes"], body["num_bytes"])
        columns |= {"logical": leaves.offset[rows], "ram_bytes": head["ram_bytes"]}
        signed = {name: values.astype(np.int64) for name, values in columns.items()}
        odd = (head["encryption"] != 0) | (head["other_encoding"] != 0)
        for values in signed.values():
            odd |= (values < 0) | (values >= 1 << 60)
        place = leaves.on_disk(leaves.place[rows] + head_bytes)
        self.extents.append(
            {
                "inode": number,
                "type": head["type"],
                "compression": head["compression"],
                "inline": np.where(inline, place, 0),
                "fresh": fresh,
                "odd": odd,
                **signed,
            }
        )

    # Names ----------------------------------------------------------------------------------

    def _names(self, leaves: Leaves, rows: Array, tree: Array) -> None:
        """Entries as readdir gives them: one an item."""
        head_bytes = on_disk.DIR_ITEM.itemsize
        self._need(leaves, rows, head_bytes, "an entry")
        item = leaves.records(rows, on_disk.DIR_ITEM)
        length = item["name_len"].astype(np.int64)
        self._need(leaves, rows, head_bytes + length, "an entry")
        place = leaves.place[rows] + head_bytes
        raw = leaves.flat.tobytes() if len(rows) else b""
        ends = (place + length).tolist()
        names = [raw[low:high] for low, high in zip(place.tolist(), ends, strict=True)]
        folder = self._number(leaves.objectid[rows], tree)
        subvolume = self._leads_to_tree(item["type"])
        objectid, hashes = item["objectid"].copy(), name_hashes(leaves.flat, place, length)
        self.entries.append(Entries(folder, tree, objectid, subvolume, names, hashes))

    def _leads_to_tree(self, kind: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
        known = np.isin(kind, (on_disk.INODE_ITEM_KEY, on_disk.ROOT_ITEM_KEY))
        if not known.all():
            raise self.btrfs.fault("a folder's entry leads neither to an inode nor to a subvolume")
        return np.asarray(kind == on_disk.ROOT_ITEM_KEY, np.bool_)

    def _hashed(self, leaves: Leaves, rows: Array, tree: Array) -> None:
        """Entries as lookups find them: several in an item where their hashes are equal."""
        at, left = leaves.place[rows], leaves.size[rows]
        folder, key = self._number(leaves.objectid[rows], tree), leaves.offset[rows]
        head = on_disk.DIR_ITEM.itemsize
        while len(at):
            if (left < head).any():
                raise self.btrfs.fault("a folder's entry is damaged")
            item = at_places(leaves.flat, at, on_disk.DIR_ITEM)
            name = item["name_len"].astype(np.int64)
            step = head + name + item["data_len"]
            if (step > left).any():
                raise self.btrfs.fault("a folder's entry is damaged")
            subvolume = self._leads_to_tree(item["type"])
            hashes = name_hashes(leaves.flat, at + head, name)
            if (hashes != key.astype(np.int64)).any():
                raise self.btrfs.fault("a folder's entry cannot be found by its name")
            self.hashed.append(_summary(folder, item["objectid"], subvolume, hashes))
            more = step < left
            at, left, folder, key = (at + step)[more], (left - step)[more], folder[more], key[more]

    def check_names(self) -> None:
        """Raise InputError where a folder lists other entries than a lookup finds in it."""
        listed = [
            _summary(part.folder, part.objectid, part.subvolume, part.hash) for part in self.entries
        ]
        empty = np.empty((0, 4), np.int64)
        one, other = (np.concatenate([empty, *parts]) for parts in (listed, self.hashed))
        one, other = (rows[np.lexsort(rows.T)] for rows in (one, other))
        if len(one) == len(other) and np.array_equal(one, other):
            return
        first = (one[: len(other)] != other[: len(one)]).any(axis=1)
        at = int(np.argmax(first)) if first.any() else min(len(one), len(other))
        folder = int((one if at < len(one) else other)[at, 0])
        raise self.btrfs.fault(
            f"folder inode {folder}: what it lists is not what is found in it by name"
        )

    # Extended attributes --------------------------------------------------------------------

    def _attributes(self, leaves: Leaves, rows: Array, tree: Array) -> None:
        number = self._number(leaves.objectid[rows], tree)
        place = leaves.on_disk(leaves.place[rows])
        self.attributes.append(np.stack((number, place, leaves.size[rows]), axis=1))


def _summary(
    folder: Array,
    objectid: npt.NDArray[np.uint64],
    subvolume: npt.NDArray[np.bool_],
    hashes: Array,
) -> Array:
    """Rows that say of an entry all that there is, its name by the hash of it."""
    columns = folder, objectid.astype(np.int64), subvolume.astype(np.int64), hashes
    return np.stack([np.asarray(column, np.int64) for column in columns], axis=1)


def name_hashes(flat: npt.NDArray[np.uint8], place: Array, length: Array) -> Array:
    """The hashes by which names are found, as the kernel's ``btrfs_name_hash``: CRC-32C."""
    found = np.zeros(len(place), np.int64)
    for size in np.unique(length).tolist():
        rows = np.flatnonzero(length == size)
        found[rows] = crc32c(flat[place[rows][:, None] + np.arange(size)], _NAME_SEED)
    return found


def joined(parts: list[Columns], names: tuple[str, ...]) -> Columns:
    """The columns of all parts, one after the other."""
    return {
        name: np.concatenate([part[name] for part in parts]) if parts else np.empty(0, np.int64)
        for name in names
    }
