"""Leftovers of FAT and exFAT: records of folders that were deleted, or follow the folder's end.

A deleted record keeps all but its first byte: the name, the size, the first cluster.  What
follows the end mark was never a record, or was one before the folder was made anew.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from cbtlab.files.exfat import layout as exfat
from cbtlab.files.extents import DATA
from cbtlab.files.fat import layout as fat
from cbtlab.files.volume import Volume
from cbtlab.files.volume_map import TYPES, VolumeMap
from cbtlab.images import Image
from cbtlab.leftovers import table
from cbtlab.leftovers.contents import labels, of_contents
from cbtlab.leftovers.table import Bools, Ints, Leftovers

_RECORD = 32  # bytes, of both
_AT_ONCE = 8 << 20


class FatLeftovers:
    """The leftovers of FAT12, FAT16 and FAT32, in bytes of the image."""

    def __init__(self, volume: VolumeMap, place: Volume) -> None:
        self.volume, self.place = volume, place

    def find(self) -> list[Leftovers]:
        """All of them."""
        return [*of_contents(self.volume), *self._folders()]

    def mend(self, image: Image, changed: Leftovers) -> list[tuple[int, bytes, str]]:
        """Nothing here has a checksum."""
        return []

    def record(self, offset: int) -> tuple[str, str] | None:
        """There is no table of inodes."""
        return None

    def deleted(self, kind: npt.NDArray[np.uint8]) -> Bools:
        """Which records are deleted, by their first byte."""
        return np.asarray(kind == fat.DELETED, np.bool_)

    def _folders(self) -> list[Leftovers]:
        place, inode, kind = self._records()
        end = np.flatnonzero(kind == fat.END)
        ended, first = np.unique(inode[end], return_index=True)
        at = np.minimum(np.searchsorted(ended, inode), max(len(ended) - 1, 0))
        behind = np.zeros(len(inode), np.bool_)
        if len(ended):
            mark = end[first][at]
            behind = (ended[at] == inode) & (np.arange(len(inode)) >= mark)
        gone = self.deleted(kind) & ~behind
        owner = labels(self.volume, inode)
        return [
            Leftovers.of(table.ENTRY, place[gone] + 1, place[gone] + _RECORD, owner[gone]),
            _joined(place[behind], inode[behind], owner[behind]),
        ]

    def _records(self) -> tuple[Ints, Ints, npt.NDArray[np.uint8]]:
        """Every record of every folder, in its order: place, folder, and first byte."""
        inodes = self.volume.inodes
        folder = inodes["type"].cat.codes.to_numpy() == TYPES.index("directory")
        number = inodes.index.to_numpy().astype(np.int64)[folder]
        number = number[~np.isin(number, list(self.volume.damaged))]
        found = self.volume.arrays
        found = found[np.isin(found.inode, number) & (found.kind == DATA)]
        places, kinds, owners = [np.zeros(0, np.int64)], [np.zeros(0, np.uint8)], [found.inode[:0]]
        columns = (found.physical.tolist(), found.length.tolist(), found.inode.tolist())
        for start, length, inode in zip(*columns, strict=True):
            for low in range(start, start + length, _AT_ONCE):
                many = min(_AT_ONCE, start + length - low)
                rows = np.frombuffer(self.place.read(low - self.volume.offset, many), np.uint8)
                kinds.append(rows[::_RECORD].copy())
                places.append(low + np.arange(len(kinds[-1]), dtype=np.int64) * _RECORD)
                owners.append(np.full(len(kinds[-1]), inode, np.int64))
        return np.concatenate(places), np.concatenate(owners), np.concatenate(kinds)


class ExfatLeftovers(FatLeftovers):
    """The leftovers of exFAT, in bytes of the image."""

    def deleted(self, kind: npt.NDArray[np.uint8]) -> Bools:
        """Which records are not in use, by their first byte."""
        return np.asarray(kind & exfat.IN_USE == 0, np.bool_)


def _joined(place: Ints, inode: Ints, owner: npt.NDArray[np.object_]) -> Leftovers:
    """Neighbouring records behind the end of a folder, as one range."""
    same = (np.diff(place) == _RECORD) & (np.diff(inode) == 0)
    first = np.flatnonzero(np.concatenate(([True], ~same)))[: len(place)]
    count = np.diff(np.concatenate((first, [len(place)])))
    start = place[first]
    return Leftovers.of(table.DIRECTORY, start, start + count * _RECORD, owner[first])
