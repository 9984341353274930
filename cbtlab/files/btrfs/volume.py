"""The VolumeMap of btrfs, put together from its trees."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from cbtlab.bitmap import Bitmap
from cbtlab.files.btrfs import layout as on_disk
from cbtlab.files.btrfs.chunks import bootstrap
from cbtlab.files.btrfs.content import attributes, chunks
from cbtlab.files.btrfs.folders import Folders
from cbtlab.files.btrfs.items import FILE_EXTENT_COLUMNS, Items, joined
from cbtlab.files.btrfs.mapping import Mapping
from cbtlab.files.btrfs.space import Allocated, ChunkItems, Space
from cbtlab.files.btrfs.superblock import Btrfs
from cbtlab.files.btrfs.tree import Leaves, Root, Walker
from cbtlab.files.btrfs.trees import Numbers, Trees, name_of
from cbtlab.files.extents import NOWHERE, Array, Extents, category, holes
from cbtlab.files.in_use import over_image
from cbtlab.files.ranges import Ranges
from cbtlab.files.volume import Volume
from cbtlab.files.volume_map import TYPES, Regions, VolumeMap

_INODE_COLUMNS = (
    *("inode", "size", "mode", "uid", "gid", "nlink", "flags", "device"),
    *("mtime_ns", "atime_ns", "ctime_ns", "crtime_ns"),
)
_REGULAR, _DIRECTORY, _SYMLINK = 8, 4, 10  # mode >> 12
_MOST_NOTES = 20


def map_btrfs(volume: Volume, *, names: bool = True) -> VolumeMap:
    """Map the file system at the volume's start.  Raises NotAtRest and InputError.

    Inodes are numbered over all subvolumes, see `Numbers`; paths begin at the top, see `Folders`.
    """
    reader = _Reader(Btrfs(volume), names)
    return reader.map()


class _Reader:
    """Reads all trees of a file system, in the order in which one leads to the next."""

    def __init__(self, btrfs: Btrfs, names: bool) -> None:
        self.btrfs, self.names = btrfs, names
        sb = btrfs.superblock
        items = ChunkItems(btrfs)
        first = Walker(btrfs, bootstrap(btrfs))
        root = int(sb["chunk_root"]), int(sb["chunk_root_level"]), int(sb["chunk_root_generation"])
        first.walk([_root(btrfs, on_disk.CHUNK_TREE, *root)], items.add)
        self.chunks = items.all()
        self.walker = Walker(btrfs, self.chunks, first.blocks)
        self.trees, self.space = Trees(btrfs), Space(btrfs, self.chunks)
        self._read_trees()

    def _read_trees(self) -> None:
        sb, trees = self.btrfs.superblock, self.trees
        kept: list[Leaves] = []
        root = int(sb["root"]), int(sb["root_level"]), self.btrfs.generation
        self.walker.walk([_root(self.btrfs, on_disk.ROOT_TREE, *root)], kept.append)
        for leaves in kept:
            trees.add(leaves)
        trees.check()
        numbers = [root.tree for root in trees.roots]
        self.numbers = Numbers(self.btrfs, numbers)
        self.items = Items(self.btrfs, self.numbers)
        yes, no = np.ones(1, np.bool_), np.zeros(1, np.bool_)
        for leaves in kept:
            self.items.add(leaves, [on_disk.ROOT_TREE], yes, no)
        wanted = trees.holds_files()
        named = wanted & np.array([tree not in trees.deleted for tree in numbers])
        named &= self.names & (np.array(numbers, np.uint64) != np.uint64(on_disk.DATA_RELOC_TREE))
        as_u64 = np.array(numbers, np.uint64)

        def take(leaves: Leaves) -> None:
            self.space.add(leaves, as_u64)
            self.items.add(leaves, numbers, wanted, named)

        self.walker.walk(trees.roots, take)

    def map(self) -> VolumeMap:
        """Put everything together."""
        btrfs, volume = self.btrfs, self.btrfs.volume
        allocated = self.space.allocated()
        regions = self._regions(allocated)
        rows = joined(self.items.extents, FILE_EXTENT_COLUMNS)
        mapping = Mapping(btrfs, self.chunks, allocated, rows)
        inodes = self._inodes(mapping)
        number = inodes.index.to_numpy().astype(np.int64)
        mapping.check_references()
        lost = np.unique(rows["inode"][~np.isin(rows["inode"], number)])
        special = self._special(np.union1d(number, lost))
        # In the middle of a subvolume's deletion an inode item may be gone before its extents.
        lost = lost[~np.isin(lost, [*special])]
        mapping.damaged.update(dict.fromkeys(lost.tolist(), "has extents and no inode item"))
        found = self._with_holes(mapping, inodes)
        folders = Folders(btrfs, self.trees, self.numbers)
        if self.names:
            self.items.check_names()
            kind = inodes["type"].cat.codes.to_numpy()
            folders.read(self.items.entries, number, number[kind == 1])
            inodes = self._with_empty(inodes, folders.empty)
            folders.faults += self._nameless(inodes, folders, special)
        table = np.concatenate([np.empty((0, 3), np.int64), *self.items.attributes])
        table = table[np.argsort(table[:, 0], kind="stable")]
        used = self._in_use(mapping, allocated, inodes, special)
        sizes = inodes["size"]
        notes = [
            *btrfs.notes,
            *(f"inode {n}: {why}" for n, why in sorted(mapping.damaged.items())[:_MOST_NOTES]),
            *folders.faults[:_MOST_NOTES],
        ]
        result = VolumeMap(
            volume=volume,
            fs="btrfs",
            uuid=btrfs.uuid,
            block_size=btrfs.sectorsize,
            size=btrfs.size,
            in_use=over_image(volume, used.bits, btrfs.size, btrfs.sectorsize),
            inodes=inodes,
            extents=found,
            regions=regions,
            special=special,
            root=self.numbers.base(on_disk.FS_TREE) + on_disk.ROOT_FOLDER,
            xattrs=lambda inode: attributes(mapping, table, inode),
            holders=lambda inode: [],
            notes=notes,
            damaged=mapping.damaged,
            decoded=lambda inode, stream: chunks(mapping, inode, int(sizes[inode])),
        )
        if self.names:
            result.set_names(folders.paths, folders.inodes)
        return result

    # Inodes ---------------------------------------------------------------------------------

    def _inodes(self, mapping: Mapping) -> pd.DataFrame:
        data = joined(self.items.inodes, _INODE_COLUMNS)
        order = np.argsort(data["inode"], kind="stable")
        data = {name: values[order] for name, values in data.items()}
        number = data.pop("inode")
        if not len(number):
            raise self.btrfs.fault("has no inode in use")
        again = np.diff(number) == 0
        if again.any():
            raise self.btrfs.fault(f"inode {int(number[1:][again][0])} is there twice")
        tops = [self.numbers.base(tree) + on_disk.ROOT_FOLDER for tree in self.trees.living()]
        for top in set(tops) - set(number[np.isin(number, tops)].tolist()):
            raise self.btrfs.fault(f"inode {top}, the root of a subvolume, is missing")
        large = data["size"] >= np.uint64(1 << 62)
        data["size"] = np.where(large, np.uint64(0), data["size"]).astype(np.int64)
        mapping.damaged.update(dict.fromkeys(number[large].tolist(), "its size is impossible"))
        data["project"] = np.zeros(len(number), np.uint32)
        return _frame(number, data)

    def _with_empty(self, inodes: pd.DataFrame, empty: set[int]) -> pd.DataFrame:
        """The inodes, with empty folders where a nested subvolume is not in a snapshot."""
        missing = np.array(sorted(empty), np.int64)
        if not len(missing):
            return inodes
        data: dict[str, Any] = {
            name: np.zeros(len(missing), inodes[name].dtype)
            for name in inodes.columns
            if name != "type"
        }
        data["mode"][:], data["nlink"][:] = 0o040755, 1
        more = _frame(missing, data)[list(inodes.columns)]
        whole: pd.DataFrame = pd.concat([inodes, more]).sort_index()
        if not whole.index.is_unique:
            raise self.btrfs.fault("an inode has a number that is reserved")
        whole["type"] = category(_kinds(whole["mode"].to_numpy()), TYPES)
        return whole

    def _special(self, number: Array) -> dict[int, str]:
        """Inodes that serve the file system itself, or a subvolume that is being deleted."""
        bits = self.numbers.shift
        names: dict[int, str] = {}

        def of_tree(tree: int, name: str) -> None:
            low, high = np.searchsorted(
                number, [self.numbers.base(tree) + n for n in (0, 1 << bits)]
            )
            names.update(dict.fromkeys(number[low:high].tolist(), name))

        of_tree(on_disk.ROOT_TREE, "<root tree folder>")
        base = self.numbers.base(on_disk.ROOT_TREE)
        names.update({base + n: "<free space cache>" for n in self.trees.caches if n < 1 << bits})
        of_tree(on_disk.DATA_RELOC_TREE, "<data relocation>")
        for tree in sorted(self.trees.deleted):
            of_tree(tree, f"<deleted subvolume {tree}>")
            self.btrfs.notes.append(f"subvolume {tree} waits for the next mount to be deleted")
        low = (number & (1 << bits) - 1) < on_disk.FIRST_FREE
        for inode in number[low].tolist():
            names.setdefault(inode, "<inode number cache>")
        return names

    def _nameless(
        self, inodes: pd.DataFrame, folders: Folders, special: dict[int, str]
    ) -> list[str]:
        """Inodes that have more names by their own count, or fewer, than folders hold."""
        number = inodes.index.to_numpy().astype(np.int64)
        known = folders.inodes[np.isin(folders.inodes, number)]
        counted = np.bincount(np.searchsorted(number, known), minlength=len(number))
        kind = inodes["type"].cat.codes.to_numpy()
        links = inodes["nlink"].to_numpy().astype(np.int64)
        orphans = (links == 0) & (counted == 0)
        mine = ~np.isin(number, [*special]) & ~orphans & (number != on_disk.ROOT_FOLDER)
        mine &= (number & (1 << self.numbers.shift) - 1) != on_disk.EMPTY_SUBVOLUME
        links = np.where(kind == 1, 1, links)
        bad = mine & (links != counted)
        if orphans.any():
            self.btrfs.notes.append("deleted inodes wait for the next mount to free them")
        return [
            f"inode {number[at]}: {counted[at]} names lead to it, and it counts {links[at]}"
            for at in np.flatnonzero(bad)[:_MOST_NOTES].tolist()
        ]

    # Places ---------------------------------------------------------------------------------

    def _with_holes(self, mapping: Mapping, inodes: pd.DataFrame) -> Extents:
        """Everything in bytes of the image, with the holes of regular files."""
        found = mapping.extents()
        shifted = np.where(found.physical == NOWHERE, NOWHERE, found.physical + self._offset)
        found = Extents.of(
            found.inode,
            found.kind,
            found.logical,
            shifted,
            found.length,
            encoded=found.encoded,
        )
        number = inodes.index.to_numpy().astype(np.int64)
        files = number[inodes["type"].cat.codes.to_numpy() == 0]
        files = files[~np.isin(files, [*mapping.damaged])]
        mapped = mapping.as_mapped()
        mapped = mapped[np.isin(mapped.inode, files)]
        sizes = inodes["size"].reindex(files).to_numpy().astype(np.int64)
        return Extents.join([found, holes(mapped, files, sizes)]).ordered()

    @property
    def _offset(self) -> int:
        return self.btrfs.volume.offset

    def _in_use(
        self,
        mapping: Mapping,
        allocated: Allocated,
        inodes: pd.DataFrame,
        special: dict[int, str],
    ) -> Bitmap:
        """`A_k` over the device: tree blocks, what can be read of files, and what is reserved.

        And the rests of their extents: no file returns them, but a scrub or a balance of the
        restored volume reads them, and finds a wrong checksum where they are zero.
        """
        number = inodes.index.to_numpy().astype(np.int64)
        plain = inodes["type"].cat.codes.to_numpy() == 0
        plain &= (inodes["flags"].to_numpy() & np.uint64(on_disk.INODE_RO_VERITY)) == 0
        plain &= ~np.isin(number, [*mapping.damaged, *special])
        limit = np.where(plain, inodes["size"].to_numpy(), NOWHERE)
        start, length = mapping.readable(number, limit)
        begin, end, _ = mapping.rests()
        start = np.concatenate((start, allocated.start[allocated.tree], begin))
        length = np.concatenate((length, allocated.length[allocated.tree], end - begin))
        start, length = start[length > 0], length[length > 0]
        places = self.chunks.places(start, length)
        row, copy = np.nonzero(places != NOWHERE)
        place, many, _ = self._reserved()
        used = Bitmap(self.btrfs.size, self.btrfs.sectorsize)
        used.set_ranges(places[row, copy], length[row])
        used.set_ranges(place, many)
        return used

    def _reserved(self) -> tuple[Array, Array, list[str]]:
        """Superblocks, and what is left to boot loaders at the start: place, length and name."""
        size = on_disk.SUPERBLOCK_BYTES
        mirrors = [on_disk.SUPERBLOCKS[0], *self.btrfs.mirrors]
        stripe, length, _ = self.chunks.stripes()
        taken = Ranges.union(np.append(stripe, mirrors), np.append(length, [size] * len(mirrors)))
        free_start = np.append(0, taken.end)
        free_end = np.minimum(np.append(taken.start, on_disk.RESERVED), on_disk.RESERVED)
        gaps = Ranges.union(free_start, free_end - free_start)
        place = np.append(mirrors, gaps.start)
        many = np.append([size] * len(mirrors), gaps.length)
        names = ["<superblock>"] * len(mirrors) + ["<boot area>"] * len(gaps.start)
        return place.astype(np.int64), many.astype(np.int64), names

    def _regions(self, allocated: Allocated) -> Regions:
        """The owners of tree blocks, which must be allocated, and of what is reserved."""
        place, length, names = self._reserved()
        starts, ends, labels = [place], [place + length], [np.array(names, object)]
        reached = np.zeros(len(allocated.start), np.bool_)
        size = self.btrfs.nodesize
        files: list[Array] = []
        for tree, parts in self.walker.blocks.items():
            files += parts if name_of(tree) == name_of(on_disk.FS_TREE) else []
        groups = {
            name_of(tree): parts
            for tree, parts in self.walker.blocks.items()
            if name_of(tree) != name_of(on_disk.FS_TREE)
        }
        for name, parts in {**groups, name_of(on_disk.FS_TREE): files}.items():
            blocks = np.unique(np.concatenate([np.empty(0, np.int64), *parts]))
            row = allocated.row_of(blocks, np.full(len(blocks), size), True)
            if (row < 0).any():
                raise self.btrfs.fault(f"the tree block {int(blocks[row < 0][0])} is not allocated")
            reached[row] = True
            places = self.chunks.places(blocks, size)
            places = places[places != NOWHERE]
            starts.append(places)
            ends.append(places + size)
            labels.append(np.full(len(places), name, object))
        lost = allocated.tree & ~reached
        if lost.any():
            self.btrfs.notes.append(f"{int(lost.sum())} tree blocks are allocated, and in no tree")
        start = np.concatenate(starts)
        order = np.argsort(start, kind="stable")
        start, end = start[order], np.concatenate(ends)[order]
        return Regions(start + self._offset, end + self._offset, np.concatenate(labels)[order])


def _root(btrfs: Btrfs, tree: int, bytenr: int, level: int, generation: int) -> Root:
    if level >= on_disk.MOST_LEVELS:
        raise btrfs.fault("the superblock's level of a tree is impossible")
    return Root(tree, bytenr, level, generation)


def _frame(number: Array, data: dict[str, Any]) -> pd.DataFrame:
    columns = {"type": category(_kinds(data["mode"]), TYPES), **data}
    frame: pd.DataFrame = pd.DataFrame(
        columns, index=pd.Index(number.astype(np.uint64), name="inode")
    )
    return frame


def _kinds(mode: Any) -> Any:
    codes = np.full(16, 3, np.int8)
    codes[_REGULAR], codes[_DIRECTORY], codes[_SYMLINK] = 0, 1, 2
    return codes[(mode >> 12) & 15]
