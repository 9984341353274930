"""Which file each record and attribute of $MFT belongs to, and attribute lists.

A file is its base record; records that extend it name the base, and the base's attribute
list names every attribute.  Both must agree, else the file is damaged.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cbtlab.errors import InputError
from cbtlab.files.extents import Array
from cbtlab.files.ntfs import layout as on_disk
from cbtlab.files.ntfs.records import PAD, Mask, chain, gather
from cbtlab.files.ntfs.runs import HOLE, Runs
from cbtlab.files.ntfs.scan import Scan
from cbtlab.files.ntfs.system import Ntfs

LIST_DAMAGED = "its attribute list is not what its records hold"
RUNS_DAMAGED = "its runs are damaged"
_LONGEST_LIST = 1 << 20
_LARGEST = 1 << 62  # bytes of an attribute, so that no place in it overflows
_ROWS = 4096  # records held at once
_LISTED = (on_disk.STANDARD_INFORMATION, on_disk.ATTRIBUTE_LIST, on_disk.FILE_NAME)


@dataclass(frozen=True)
class Whole:
    """Attributes outside of records, whole: one position each, by inode, type and name.

    ``sound`` is False where the pieces do not fit to each other.  All sizes are bytes.
    """

    inode: Array
    type: Array
    name: Array
    flags: Array
    unit: Array
    allocated: Array
    size: Array
    valid: Array
    sound: Mask

    def find(self, inode: int, kind: int, name: int) -> int:
        """The position of an attribute, or -1."""
        low, high = np.searchsorted(self.inode, [inode, inode + 1])
        mine = (self.type[low:high] == kind) & (self.name[low:high] == name)
        at = np.flatnonzero(mine)
        return int(low + at[0]) if len(at) else -1


class Owned:
    """The tables of a scan with their files.

    ``inode`` has the numbers of all base records, ``row`` their positions in ``scan.records``;
    ``value_inode`` and ``name_inode`` the file of each resident attribute and name, -1 for none;
    ``whole`` the attributes outside of records, and of each run ``attribute`` (a position in
    ``whole``), ``vcn``, ``lcn`` and ``length``, by attribute and place.  ``damaged`` says of a
    file what is wrong with it.
    """

    def __init__(self, ntfs: Ntfs, scan: Scan) -> None:
        self.ntfs, self.scan = ntfs, scan
        records = scan.records
        extends = records.base != 0
        base = (records.base & np.uint64(on_disk.NUMBER)).astype(np.int64)
        at = records.rows_of(base)
        known = (at >= 0) & ~extends[at]
        known &= records.sequence[at] == (records.base >> np.uint64(48)).astype(np.int64)
        self._owner = np.where(extends, np.where(known, base, -1), records.number)
        lost = int((extends & ~known).sum())
        if lost:
            ntfs.notes.append(f"{lost} records extend files that are not there")
        self.row = np.flatnonzero(~extends)
        self.inode = records.number[self.row]
        self.damaged: dict[int, str] = {}
        for record, why in scan.damaged.items():
            self.damaged[int(self.owner(np.array([record]))[0])] = why
        self.value_inode = self.owner(scan.resident.record)
        self.name_inode = self.owner(scan.name.record)
        self._gather_pieces()
        self._compare_lists(extends & known)
        self.damaged.pop(-1, None)

    def owner(self, record: Array) -> Array:
        """The file of each record, or -1."""
        at = self.scan.records.rows_of(record)
        return np.where(at >= 0, self._owner[at], -1)

    def _gather_pieces(self) -> None:
        pieces, runs = self.scan.pieces, self.scan.runs
        inode = self.owner(pieces.record)
        order = np.lexsort((pieces.lowest, pieces.name, pieces.type, inode))
        order = order[inode[order] >= 0]
        inode, pieces = inode[order], pieces.take(order)
        keys = (inode, pieces.type, pieces.name)
        new = np.ones(len(inode), np.bool_)
        new[1:] = np.any([key[1:] != key[:-1] for key in keys], axis=0)
        first = np.flatnonzero(new)
        group = np.cumsum(new) - 1
        expected = np.where(new, 0, np.concatenate(([0], pieces.highest[:-1] + 1))[: len(new)])
        wrong = group[pieces.lowest != expected]
        last = np.append(first[1:], len(inode))[: len(first)] - 1
        head = pieces.take(first)
        sound = (head.valid >= 0) & (head.valid <= head.size) & (head.size <= head.allocated)
        sound &= (pieces.highest[last] + 1) * self.ntfs.cluster == head.allocated
        sound[wrong] = False
        self.whole = Whole(
            inode[first],
            head.type,
            head.name,
            head.flags,
            head.unit,
            head.allocated,
            head.size,
            head.valid,
            sound,
        )
        self.damaged |= dict.fromkeys(self.whole.inode[~sound].tolist(), RUNS_DAMAGED)
        position = np.full(len(self.scan.pieces), -1, np.int64)
        position[order] = group
        attribute = position[runs.piece]
        placed = (runs.lcn >= 0) & (runs.lcn + runs.length <= self.ntfs.boot.clusters)
        placed |= runs.lcn == HOLE
        placed &= runs.vcn + runs.length <= _LARGEST // self.ntfs.cluster
        outside = (attribute >= 0) & ~placed
        lost = self.whole.inode[attribute[outside]].tolist()
        self.damaged |= dict.fromkeys(lost, "its runs lead out of the volume")
        keep = np.flatnonzero((attribute >= 0) & ~outside)
        keep = keep[np.lexsort((runs.vcn[keep], attribute[keep]))]
        self.attribute, self.vcn = attribute[keep], runs.vcn[keep]
        self.lcn, self.length = runs.lcn[keep], runs.length[keep]
        self._doubles()

    def _doubles(self) -> None:
        """Blame files that have one attribute twice."""
        values, whole = self.scan.resident, self.whole
        mine = np.flatnonzero((self.value_inode >= 0) & ~np.isin(values.type, _LISTED))
        inode = np.concatenate((self.value_inode[mine], whole.inode))
        kind = np.concatenate((values.type[mine], whole.type))
        name = np.concatenate((values.name[mine], whole.name))
        order = np.lexsort((name, kind, inode))
        same = np.ones(max(len(order) - 1, 0), np.bool_)
        for key in (inode[order], kind[order], name[order]):
            same &= key[1:] == key[:-1]
        twice = np.unique(inode[order][1:][same])
        self.damaged |= dict.fromkeys(twice.tolist(), "it has an attribute twice")

    # Runs and values of one file -------------------------------------------------------------

    def runs_of(self, attribute: int) -> Runs:
        """The runs of an attribute outside of records.  Raises InputError when it is damaged."""
        low, high = np.searchsorted(self.attribute, [attribute, attribute + 1])
        part = slice(int(low), int(high))
        if not self.whole.sound[attribute] or (
            int(self.length[part].sum()) * self.ntfs.cluster != self.whole.allocated[attribute]
        ):
            inode = int(self.whole.inode[attribute])
            raise self.ntfs.fault(f"inode {inode}: {self.damaged.get(inode, RUNS_DAMAGED)}")
        return Runs(
            self.ntfs.volume, self.ntfs.cluster, self.vcn[part], self.lcn[part], self.length[part]
        )

    def read_whole(self, attribute: int, most: int) -> bytes:
        """The value of an attribute outside of records.  Raises InputError beyond ``most``."""
        size, valid = int(self.whole.size[attribute]), int(self.whole.valid[attribute])
        if size > most:
            inode = int(self.whole.inode[attribute])
            raise self.ntfs.fault(f"inode {inode}: an attribute has {size} bytes")
        return self.runs_of(attribute).read(0, valid) + bytes(size - valid)

    def read_values(self, which: Array) -> list[bytes]:
        """The values of some resident attributes, by position in ``scan.resident``."""
        values, found = self.scan.resident, []
        for at in range(0, len(which), _ROWS):
            part = which[at : at + _ROWS]
            rows, _ = self.ntfs.rows(values.record[part])
            places = zip(values.at[part].tolist(), values.length[part].tolist(), strict=True)
            found += [rows[n, at : at + many].tobytes() for n, (at, many) in enumerate(places)]
        return found

    # Attribute lists -------------------------------------------------------------------------

    def _lists(self) -> tuple[Array, list[bytes]]:
        """The files with an attribute list, and the lists."""
        values, whole = self.scan.resident, self.whole
        held = np.flatnonzero((values.type == on_disk.ATTRIBUTE_LIST) & (self.value_inode >= 0))
        apart = np.flatnonzero(whole.type == on_disk.ATTRIBUTE_LIST)
        inodes, lists = self.value_inode[held].tolist(), self.read_values(held)
        for attribute in apart.tolist():
            inode = int(whole.inode[attribute])
            try:
                lists.append(self.read_whole(attribute, _LONGEST_LIST))
            except InputError:
                self.damaged.setdefault(inode, LIST_DAMAGED)
                continue
            inodes.append(inode)
        return np.array(inodes, np.int64), lists

    def _compare_lists(self, extends: Mask) -> None:
        """Blame every file whose list and whose records do not say the same."""
        inode, lists = self._lists()
        records, listed = self.scan.records, self.scan.listed
        end = np.cumsum([len(one) for one in lists], dtype=np.int64)
        start = end - np.array([len(one) for one in lists], np.int64)
        flat = np.frombuffer(b"".join(lists) + bytes(PAD), np.uint8)
        which, place, bad = chain(flat, start, end, 4, on_disk.LIST_ENTRY.itemsize)
        entry = gather(flat, place, on_disk.LIST_ENTRY)
        row = records.rows_of(listed.record)
        held = (
            self.owner(listed.record),
            listed.record | records.sequence[row] << 48,
            listed.type,
            listed.instance,
            listed.lowest,
        )
        named = (
            inode[which],
            entry["reference"].astype(np.int64),
            entry["type"].astype(np.int64),
            entry["instance"].astype(np.int64),
            entry["lowest"].astype(np.int64),
        )
        columns = [np.concatenate(pair) for pair in zip(held, named, strict=True)]
        order = np.lexsort(columns[::-1])
        table = np.stack([column[order] for column in columns], axis=1)
        new = np.ones(len(table), np.bool_)
        new[1:] = (table[1:] != table[:-1]).any(axis=1)
        first = np.flatnonzero(new)
        count = np.diff(np.append(first, len(table)))
        odd = table[first[count != 2], 0]
        alone = np.setdiff1d(self._owner[extends], inode)
        for numbers in (odd, inode[bad], alone):
            self.damaged |= dict.fromkeys(np.unique(numbers).tolist(), LIST_DAMAGED)
