"""Leftovers of NTFS: records of $MFT, blocks of indexes, and $LogFile.

The last two bytes of every 512 of a record or block are a number that tells a torn write; what
belongs there stands in an array at its start.  So a leftover is cut around those places, and
the array's part for it is one too.  A free record keeps its head, and its number of uses.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from cbtlab.files.extents import DATA, META, Extents
from cbtlab.files.ntfs import layout as on_disk
from cbtlab.files.ntfs.boot import read_boot
from cbtlab.files.ntfs.records import fix_up
from cbtlab.files.volume import Volume, structure
from cbtlab.files.volume_map import TYPES, VolumeMap
from cbtlab.images import Image
from cbtlab.leftovers import table
from cbtlab.leftovers.contents import labels, of_contents
from cbtlab.leftovers.table import CLASSES, Ints, Leftovers

Bytes = npt.NDArray[np.uint8]
_STRIDE, _LAST = on_disk.STRIDE, 2
_IN_USE = 1  # of a record's flags
_USED = 24  # where a record says how many bytes of it are used; and an index block's header
_MIRRORED = 4  # records that have a second copy, or as many as fill a cluster
_FIRST_FILE = 24  # free records before it are reserved
_END = b"\xff\xff\xff\xff\0\0\0\0"  # the mark behind the last attribute
_AT_ONCE = 8 << 20
_FREE = "<free MFT record "


class NtfsLeftovers:
    """The leftovers of one file system; every offset counts from the start of the image."""

    def __init__(self, volume: VolumeMap, place: Volume) -> None:
        self.volume, self.place = volume, place
        self._boot = read_boot(place)
        rows = volume.rows(on_disk.MFT)
        self._mft = rows[(rows.kind == DATA) & (rows.stream == 0)]

    def find(self) -> list[Leftovers]:
        """All of them."""
        found = of_contents(self.volume)
        return [*found, self._log(), *self._records(), *self._indexes()]

    def record(self, offset: int) -> tuple[str, str] | None:
        """The record of $MFT that a byte lies in."""
        rows = self._mft
        inside = np.flatnonzero((rows.physical <= offset) & (offset < rows.physical + rows.length))
        if not len(inside):
            return None
        logical = int(rows.logical[inside[0]]) + offset - int(rows.physical[inside[0]])
        number = logical // self._boot.record
        start = offset - logical % self._boot.record
        head: Any = structure(self.place.read(start - self.volume.offset, 48), on_disk.RECORD)
        if not int(head["flags"]) & _IN_USE:
            return table.RECORD, f"{_FREE}{number}>"
        base = int(head["base"]) & (1 << 48) - 1
        return table.RECORD, self.volume.label(base or number)

    def mend(self, image: Image, changed: Leftovers) -> list[tuple[int, bytes, str]]:
        """Free records of which something was overwritten get an end where their head ends."""
        mine = changed[changed.kind == CLASSES.index(table.RECORD)]
        mine = mine[np.array([str(owner).startswith(_FREE) for owner in mine.owner], np.bool_)]
        size = self._boot.record
        found: list[tuple[int, bytes, str]] = []
        starts, first = np.unique(self._start_of(mine.start), return_index=True)
        for start, owner in zip(starts.tolist(), mine.owner[first].tolist(), strict=True):
            raw = image.read(start, size)
            at = int(structure(raw, on_disk.RECORD)["attributes"])
            found.append((start + _USED, (at + len(_END)).to_bytes(4, "little"), owner))
            found.append((start + at, _END, owner))
        return found

    def _start_of(self, offsets: Ints) -> Ints:
        """Where the record of each byte of $MFT begins."""
        at = np.searchsorted(self._by_place.physical, offsets, side="right") - 1
        base = self._by_place.physical[at]
        return np.asarray(base + (offsets - base) // self._boot.record * self._boot.record)

    @property
    def _by_place(self) -> Extents:
        return self._mft[np.argsort(self._mft.physical, kind="stable")]

    def _log(self) -> Leftovers:
        """$LogFile; what is mapped is at rest, and a log of 0xff alone is an empty one."""
        rows = self.volume.rows(on_disk.LOG_FILE)
        rows = rows[(rows.kind == DATA) & (rows.stream == 0)]
        owner = self.volume.label(on_disk.LOG_FILE)
        end = rows.physical + rows.length
        return Leftovers.of(table.JOURNAL, rows.physical, end, owner, True, 0xFF)

    def _records(self) -> list[Leftovers]:
        """The rest of records in use, and all but the head of free ones."""
        size, parts = self._boot.record, []
        columns = (self._mft.logical.tolist(), self._mft.physical.tolist())
        for logical, start, length in zip(*columns, self._mft.length.tolist(), strict=True):
            if logical % size:
                continue  # a record in two pieces
            for low in range(0, length // size * size, _AT_ONCE):
                many = min(_AT_ONCE, length // size * size - low)
                number = (logical + low) // size + np.arange(many // size)
                parts += self._of_records(start + low, many, number)
        return parts

    def _of_records(self, start: int, length: int, number: Ints) -> list[Leftovers]:
        size = self._boot.record
        rows = self._read(start, length, size)
        good = fix_up(rows.copy(), b"FILE")
        head: Any = structure(rows, on_disk.RECORD)
        free = head["flags"] & _IN_USE == 0
        low = np.where(free, head["attributes"].astype(np.int64) + len(_END), head["used"])
        good &= number >= max(_MIRRORED, self._boot.cluster // size)
        good &= (number >= _FIRST_FILE) | ~free
        good &= (low >= 48) & (low <= size) & (low % 8 == 0)
        owner = np.array([f"{_FREE}{n}>" for n in number.tolist()], object)
        owner[~free] = labels(self.volume, number[~free])
        which = np.flatnonzero(good)
        base = start + which * size
        return _around(table.RECORD, base, low[which], rows[which], owner[which])

    def _indexes(self) -> list[Leftovers]:
        """What follows the last entry in the blocks of folders' indexes."""
        found, size = self.volume.arrays, self._boot.index_block
        kind = self.volume.inodes["type"].cat.codes.to_numpy() == TYPES.index("directory")
        folder = self.volume.inodes.index.to_numpy().astype(np.int64)[kind]
        found = found[(found.kind == META) | (found.kind == DATA)]
        found = found[np.isin(found.inode, folder) & (found.length >= size)]
        found = found[~found.encoded & (found.physical >= 0)]
        parts = []
        columns = (found.inode.tolist(), found.physical.tolist(), found.length.tolist())
        for inode, start, length in zip(*columns, strict=True):
            for at in range(0, length // size * size, _AT_ONCE):
                many = min(_AT_ONCE, length // size * size - at)
                rows = self._read(start + at, many, size)
                good = fix_up(rows.copy(), b"INDX")
                head: Any = structure(rows[:, _USED:], on_disk.INDEX_HEADER)
                low = _USED + head["used"].astype(np.int64)
                which = np.flatnonzero(good & (low >= _USED + 16) & (low <= size))
                owner = np.full(len(which), self.volume.label(inode), object)
                base = start + at + which * size
                parts += _around(table.DIRECTORY, base, low[which], rows[which], owner)
        return parts

    def _read(self, start: int, length: int, size: int) -> Bytes:
        data = self.place.read(start - self.volume.offset, length)
        return np.frombuffer(data, np.uint8).reshape(-1, size)


def _around(
    kind: str, base: Ints, low: Ints, rows: Bytes, owner: npt.NDArray[np.object_]
) -> list[Leftovers]:
    """From byte ``low`` of each row on: the bytes of every stride but the last two, and what
    the array at the row's start holds for those two.
    """
    array = np.ascontiguousarray(rows[:, 4:6]).view("<u2")[:, 0].astype(np.int64)
    parts = []
    for stride in range(rows.shape[1] // _STRIDE):
        begin, end = stride * _STRIDE, (stride + 1) * _STRIDE - _LAST
        start = np.clip(low, begin, end)
        parts.append(Leftovers.of(kind, base + start, base + end, owner))
        mine = low <= end
        word = base + array + _LAST * (stride + 1)
        parts.append(Leftovers.of(kind, word[mine], word[mine] + _LAST, owner[mine]))
    return parts
