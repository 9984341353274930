"""The VolumeMap of FAT12, FAT16 and FAT32, put together from their structures.

An inode here is the byte offset of a file's record from the volume's start, divided by 32: the
same as long as the record stays where it is.  The root folder has the number 1.  Times are
local times without a zone, taken as UTC.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from cbtlab.files.extents import DATA, Extents, category
from cbtlab.files.fat.boot import Boot
from cbtlab.files.fat.chains import BAD, FAULTS, FREE, Chains, claim_once
from cbtlab.files.fat.clusters import Heap, Named, readable, written
from cbtlab.files.fat.folders import CODEPAGE, ROOT, Folders, Records
from cbtlab.files.fat.times import nanoseconds
from cbtlab.files.names import text
from cbtlab.files.volume import Volume
from cbtlab.files.volume_map import Regions, VolumeMap

_TYPES = ("file", "directory", "symlink", "other")
_EVERYTHING = 1 << 62
SHORT = "its chain is shorter than its size"


def map_fat(volume: Volume, *, names: bool = True, codepage: str = CODEPAGE) -> VolumeMap:
    """Map the file system at the volume's start.  Raises InputError.

    ``codepage`` is that of short names that no long name goes with, as Python calls it.
    """
    boot = Boot(volume)
    notes = boot.check()
    table = boot.table(notes)
    used = (table != FREE) & (table != BAD)
    chains = Chains(table, used)
    folders = Folders(boot, chains, names=names, codepage=codepage)
    content = _Content(boot, chains, folders.records)
    heap = Heap(volume, boot.heap, boot.cluster_size, boot.clusters, boot.size)
    mask, shared = readable(heap, used, content.start, content.length, content.kept)
    lost = used & ~heap.cover(content.start, content.length)
    if folders.full and lost.any():
        raise boot.fault(
            f"the folder {text(folders.full)} may be cut short: it has no end mark, and "
            f"{int(lost.sum())} clusters in use belong to no file"
        )
    notes += [*folders.notes, *content.notes()]
    for count, words in (
        (shared, "clusters in use are not readable for another owner"),
        (int(lost.sum()), "clusters in use belong to no file"),
    ):
        if count:
            notes.append(f"{count} {words}")
    result = VolumeMap(
        volume=volume,
        fs=f"fat{boot.bits}",
        uuid=boot.serial,
        block_size=boot.cluster_size,
        size=boot.size,
        in_use=heap.in_use(mask),
        inodes=content.inodes(),
        extents=content.extents(heap),
        regions=_regions(boot, heap, table == BAD, lost),
        special={},
        root=ROOT,
        xattrs=lambda inode: {},
        holders=lambda inode: [],
        notes=notes,
        damaged=content.damaged,
    )
    if names:
        result.set_names(folders.paths.found, folders.records.inode)
    return result


class _Content:
    """The clusters of every file and folder: ``start``, ``length`` and ``kept`` of each run.

    ``kept`` is how many clusters of it lie before the end of the file; ``damaged`` says for an
    inode what is wrong with its chain.
    """

    def __init__(self, boot: Boot, chains: Chains, records: Records) -> None:
        self._boot, self._records = boot, records
        self.damaged: dict[int, str] = {}
        inode, head = records.inode, records.head
        if boot.bits == 32:
            inode, head = np.append(inode, ROOT), np.append(head, boot.root_cluster)
        self._inode = inode
        folder = np.concatenate((records.folder, np.ones(len(inode) - len(records.inode), bool)))
        size = np.zeros(len(inode), np.int64)
        size[: len(records.inode)] = records.fields["size"]
        low, high, fault = chains.slices(head)
        empty = (head == 0) & (size == 0) & ~folder
        fault[empty] = 0
        claim_once(head, low, high, fault)
        which, logical, start, length = chains.runs(low, high)
        count = np.bincount(which, weights=length, minlength=len(inode)).astype(np.int64)
        need = -(-size // boot.cluster_size)
        for code in np.unique(fault[fault != 0]).tolist():
            self.damaged |= dict.fromkeys(inode[fault == code].tolist(), FAULTS[code])
        short = (count < need) & (fault == 0) & ~folder
        self.damaged |= dict.fromkeys(inode[short].tolist(), SHORT)
        sound = (fault == 0) & ~short & ~folder
        self._long = int((sound & (count > need)).sum())
        limit = np.where(sound, need, _EVERYTHING)
        self._which, self._logical, self.start, self.length = which, logical, start, length
        self.kept = np.clip(limit[which] - logical, 0, length)
        self._limit = np.where(sound, need * boot.cluster_size, _EVERYTHING)
        self._size = np.where(folder, count * boot.cluster_size, size)

    def notes(self) -> list[str]:
        """What is odd about the files."""
        found = [f"inode {n}: {why}" for n, why in sorted(self.damaged.items())[:20]]
        if self._long:
            found.append(f"{self._long} files hold clusters behind their end")
        return found

    def extents(self, heap: Heap) -> Extents:
        """The extents of all; the root folder of FAT12 and FAT16 lies before the clusters."""
        found = heap.extents(self._inode[self._which], self._logical, self.start, self.length)
        found = written(found, self._limit[self._which])
        if self._boot.bits != 32:
            place = self._boot.root_offset + heap.volume.offset
            root = Extents.of(np.array([ROOT]), DATA, 0, place, heap.heap - self._boot.root_offset)
            found = Extents.join([found, root])
        return found.ordered().merged()

    def inodes(self) -> pd.DataFrame:
        """The table of inodes, the root folder first."""
        records, fields = self._records, self._records.fields
        number = len(records.inode)
        size = self._boot.root_size if self._boot.bits != 32 else int(self._size[-1])
        order = np.argsort(records.inode, kind="stable")

        def column(values: Any, root: int = 0, dtype: Any = np.int64) -> npt.NDArray[Any]:
            rows = np.broadcast_to(np.asarray(values), (number,))
            return np.concatenate(([root], rows[order])).astype(dtype)

        modified = nanoseconds(fields["modified_date"], fields["modified_time"])
        created = nanoseconds(
            fields["created_date"], fields["created_time"], fields["created_centiseconds"]
        )
        frame: pd.DataFrame = pd.DataFrame(
            {
                "type": category(column(records.folder, 1), _TYPES),
                "size": column(self._size[:number], size),
                "mode": column(0, dtype=np.uint32),
                "uid": column(0, dtype=np.uint32),
                "gid": column(0, dtype=np.uint32),
                "nlink": column(1, 1, np.uint32),
                "mtime_ns": column(modified),
                "atime_ns": column(nanoseconds(fields["accessed_date"])),
                "ctime_ns": column(0),
                "crtime_ns": column(created),
                "flags": column(fields["attributes"], 0x10, np.uint32),
                "device": column(0, dtype=np.uint32),
                "project": column(0, dtype=np.uint32),
            },
            index=pd.Index(column(records.inode, ROOT, np.uint64), name="inode"),
        )
        return frame


def _regions(boot: Boot, heap: Heap, bad: npt.NDArray[np.bool_], lost: Any) -> Regions:
    """Everything before the clusters, bad clusters, and those of no file."""
    sector = boot.sector
    parts: list[Named] = [(0, sector, "<boot sector>")]
    copies = [(boot.fsinfo, "<FSInfo>"), (boot.backup, "<backup boot sector>")]
    copies.append((boot.backup and boot.fsinfo and boot.backup + boot.fsinfo, "<backup FSInfo>"))
    for place, name in sorted(copies):
        at = parts[-1][1]
        if at <= place < boot.reserved:
            parts += [(at, place, "<reserved sectors>"), (place, place + sector, name)]
    parts.append((parts[-1][1], boot.reserved, "<reserved sectors>"))
    for number in range(boot.fats):
        place = boot.fat_offset + number * boot.fat_size
        parts.append((place, place + boot.fat_size, f"<FAT {number + 1}>"))
    return heap.regions(parts, [(bad, "<bad clusters>"), (lost, "<lost clusters>")])
