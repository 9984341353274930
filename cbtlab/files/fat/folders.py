"""The folders of FAT, level by level: the records of all folders of a level are read at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cbtlab.errors import InputError
from cbtlab.files.fat import layout as on_disk
from cbtlab.files.fat.boot import Boot
from cbtlab.files.fat.chains import FAULTS, INSIDE, Chains, spread
from cbtlab.files.fat.names import CODEPAGE, encode, long_parts, long_units, short_units
from cbtlab.files.fat.paths import Paths
from cbtlab.files.names import text
from cbtlab.files.volume import Volume

Array = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

ROOT = 1  # no record lies so near to the start that its number would be 1
_LARGEST = 1 << 21  # bytes of a folder: 65536 records, the most that FAT allows
_AT_ONCE = 32 << 20
_DOT, _DOTS = b".".ljust(11), b"..".ljust(11)


@dataclass(frozen=True)
class Records:
    """The records of files and folders: one position each, with the ``inode`` and ``head``.

    An inode is the byte offset of the record from the volume's start, divided by 32.
    """

    inode: Array
    head: Array
    fields: npt.NDArray[Any]

    @classmethod
    def join(cls, parts: list[Records]) -> Records:
        """All of them, one after the other."""
        if not parts:
            nothing = np.empty(0, np.int64)
            return cls(nothing, nothing, np.empty(0, on_disk.RECORD))
        columns = ("inode", "head", "fields")
        return cls(*(np.concatenate([getattr(p, name) for p in parts]) for name in columns))

    @property
    def folder(self) -> Mask:
        """Which of them are folders."""
        return np.asarray(self.fields["attributes"] & on_disk.ATTR_DIRECTORY != 0, np.bool_)

    def __getitem__(self, which: Any) -> Records:
        return Records(self.inode[which], self.head[which], self.fields[which])


class Folders:
    """Reads every folder of a volume.  Raises InputError where one cannot be read whole.

    ``records`` are those in use; ``paths`` are filled with ``names`` only.  ``label`` is the
    volume's, in bytes of UTF-8.  ``full`` is the path of a folder whose last cluster has no end
    mark, or empty: the folder is full, or it was cut.
    """

    def __init__(self, boot: Boot, chains: Chains, *, names: bool, codepage: str) -> None:
        self._boot, self._chains, self._names, self._codepage = boot, chains, names, codepage
        self._heap = Volume(boot.volume.image, boot.volume.offset + boot.heap)
        self.notes: list[str] = []
        self.label = self.full = b""
        self.paths = Paths(boot.fault)
        self._remnants = self._short = 0
        self._seen = np.zeros(boot.clusters + 2, np.bool_)
        self.records = Records.join(list(self._walk()))
        self._tell()

    def _walk(self) -> Any:
        if self._boot.bits == 32:
            above = Records(
                np.array([ROOT]),
                np.array([self._boot.root_cluster]),
                np.zeros(1, on_disk.RECORD),
            )
            found = self._level(above, np.array([0]), root=True)
        else:
            raw = self._boot.volume.read(self._boot.root_offset, self._boot.root_size)
            place = np.arange(len(raw) // 32) + self._boot.root_offset // 32
            rows = np.frombuffer(raw, np.uint8).reshape(-1, 32)
            above = Records(np.array([ROOT]), np.zeros(1, np.int64), np.zeros(1, on_disk.RECORD))
            found = [self._parse(rows, place, np.zeros(len(rows), np.int64), above, root=True)]
        while found:
            yield from found
            level = Records.join(found)
            folders = np.flatnonzero(level.folder)
            if not len(folders):
                return
            above = level[folders]
            prefix = self.paths.descend(folders)
            found = self._level(above, prefix)

    def _level(self, above: Records, prefix: Array, root: bool = False) -> list[Records]:
        """The records of folders; ``prefix`` are the positions of their paths."""
        low, high, fault = self._chains.slices(above.head)
        which, _, start, length = self._chains.runs(low, high)
        for at in np.flatnonzero(fault)[:1].tolist():
            raise self._unreadable(prefix[at], FAULTS[fault[at]])
        count = np.bincount(which, weights=length, minlength=len(low)).astype(np.int64)
        for at in np.flatnonzero(count * self._boot.cluster_size > _LARGEST)[:1].tolist():
            raise self._unreadable(prefix[at], "it has more than 65536 records")
        run, cluster = spread(start, start + length)
        owner = which[run]
        twice = np.flatnonzero(self._seen[cluster])
        if len(twice) or len(np.unique(above.head)) < len(above.head):
            at = int(owner[twice[0]]) if len(twice) else 0
            raise self._unreadable(prefix[at], FAULTS[INSIDE])
        self._seen[cluster] = True
        found = []
        first = np.searchsorted(owner, np.arange(len(low) + 1))
        span = max(1, _AT_ONCE // self._boot.cluster_size)
        begin = 0
        while begin < len(low):
            end = int(np.searchsorted(first, first[begin] + span, side="right")) - 1
            end = min(max(end, begin + 1), len(low))
            part = slice(int(first[begin]), int(first[end]))
            rows = self._heap.blocks(cluster[part] - 2, self._boot.cluster_size)
            each = self._boot.cluster_size // on_disk.RECORD_BYTES
            place = self._boot.heap + (cluster[part] - 2) * self._boot.cluster_size
            places = (place[:, None] // 32 + np.arange(each)).ravel()
            folder = np.repeat(owner[part], each)
            found.append(self._parse(rows.reshape(-1, 32), places, folder, above, root, prefix))
            begin = end
        return found

    def _parse(
        self,
        rows: npt.NDArray[np.uint8],
        place: Array,
        folder: Array,
        above: Records,
        root: bool = False,
        prefix: Array | None = None,
    ) -> Records:
        """Take the records in use out of whole folders, and their names."""
        prefix = np.zeros(1, np.int64) if prefix is None else prefix
        self._ended(rows[:, 0], folder, prefix)
        attributes = rows[:, 11]
        live = (rows[:, 0] != on_disk.END) & (rows[:, 0] != on_disk.DELETED)
        is_long = live & (attributes & on_disk.ATTR_MASK == on_disk.ATTR_LONG)
        labels = live & ~is_long & (attributes & on_disk.ATTR_LABEL != 0)
        fields = np.ascontiguousarray(rows).view(on_disk.RECORD)[:, 0]
        dots = live & ~is_long & ~labels & (rows[:, 0] == ord("."))
        dots[dots] = [bytes(row) in (_DOT, _DOTS) for row in rows[dots, :11]]
        if root and labels.any():
            units = short_units(fields[np.flatnonzero(labels)[:1]], self._codepage)
            self.label = encode(units)[0].replace(b".", b"")
        if not root:
            self._check_dots(fields, folder, dots, above, prefix)
        short = np.flatnonzero(live & ~is_long & ~labels & ~dots)
        for row in short[(rows[short, :11] == 0).any(axis=1)][:1].tolist():
            raise self._unreadable(prefix[folder[row]], "a short name has a byte of zero")
        if self._names:
            parts = long_parts(fields, folder, short)
            self._remnants += int(is_long.sum() - parts.sum())
            self._take_names(fields, short, parts, prefix[folder[short]])
        return Records(place[short], self._head(fields[short]), fields[short])

    def _ended(self, first: npt.NDArray[np.uint8], folder: Array, prefix: Array) -> None:
        """Nothing may be in use behind a folder's end mark: Windows stops there, Linux goes on."""
        ends = np.flatnonzero(first == on_disk.END)
        folders, at = np.unique(folder[ends], return_index=True)
        mark = np.full(len(prefix), len(first))
        mark[folders] = ends[at]
        for at_ in np.setdiff1d(folder, folders)[:1].tolist():
            self.full = self.full or self.paths.full(int(prefix[at_]))
        behind = (np.arange(len(first)) > mark[folder]) & (first != on_disk.END)
        behind &= first != on_disk.DELETED
        for row in np.flatnonzero(behind)[:1].tolist():
            raise self._unreadable(prefix[folder[row]], "records are in use behind its end mark")

    def _check_dots(
        self, fields: npt.NDArray[Any], folder: Array, dots: Mask, above: Records, prefix: Array
    ) -> None:
        """A folder must begin with a record of itself: else other bytes are read for it."""
        first = np.flatnonzero(np.diff(folder, prepend=-1))
        own = dots[first] & (fields["name"][first, 1] == ord(" "))
        own &= self._head(fields[first]) == above.head[folder[first]]
        for row in first[~own][:1].tolist():
            raise self._unreadable(prefix[folder[row]], "it does not begin with itself")

    def _head(self, fields: npt.NDArray[Any]) -> Array:
        """The first cluster that records name."""
        head = fields["cluster_low"].astype(np.int64)
        if self._boot.bits == 32:
            head |= fields["cluster_high"].astype(np.int64) << 16
        return head

    def _take_names(
        self, fields: npt.NDArray[Any], short: Array, parts: Array, prefix: Array
    ) -> None:
        names: list[bytes] = [b""] * len(short)
        for count in np.unique(parts).tolist():
            rows = np.flatnonzero(parts == count)
            if count:
                units = long_units(fields, short[rows], count)
            else:
                units = short_units(fields[short[rows]], self._codepage)
                self._short += int((units > 127).any(axis=1).sum())
            for row, name in zip(rows.tolist(), encode(units), strict=True):
                names[row] = name
        self.paths.add(prefix, names)

    def _unreadable(self, path: int, why: str) -> InputError:
        return self._boot.fault(f"the folder {text(self.paths.full(int(path)))} is damaged: {why}")

    def _tell(self) -> None:
        for count, words in (
            (self._remnants, "records of long names belong to no file"),
            (self._short, f"short names are not in ASCII, and taken as code page {self._page}"),
        ):
            if count:
                self.notes.append(f"{count} {words}")

    @property
    def _page(self) -> str:
        return self._codepage.removeprefix("cp")


__all__ = ["CODEPAGE", "ROOT", "Folders", "Records"]
