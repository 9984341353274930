"""The folders of exFAT, level by level: the records of all folders of a level are read at once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from cbtlab.errors import InputError
from cbtlab.files.exfat import layout as on_disk
from cbtlab.files.exfat import records
from cbtlab.files.exfat.boot import Boot, rotating
from cbtlab.files.fat.chains import END, Table
from cbtlab.files.fat.names import encode
from cbtlab.files.fat.paths import Paths
from cbtlab.files.names import text
from cbtlab.files.volume import Volume

Array = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

ROOT = 1  # no record lies so near to the start that its number would be 1
LARGEST_SIZE = 1 << 62
_LARGEST_FOLDER = 256 << 20  # bytes, by the specification
_LARGEST_UPCASE = 65536 * 2
_AT_ONCE = 32 << 20


@dataclass(frozen=True)
class Runs:
    """What clusters something says it has: ``head``, ``size`` in bytes, and whether in one run."""

    inode: Array
    head: Array
    size: Array
    whole: Mask
    flags: npt.NDArray[np.uint8]

    @classmethod
    def of(cls, inode: Array, stream: npt.NDArray[Any]) -> Runs:
        """From records that name a cluster and a size."""
        size = np.minimum(stream["size"], LARGEST_SIZE).astype(np.int64)
        whole = stream["flags"] & on_disk.NO_CHAIN != 0
        return cls(inode, stream["cluster"].astype(np.int64), size, whole, stream["flags"])

    @classmethod
    def join(cls, parts: list[Runs]) -> Runs:
        """All of them, one after the other."""
        names = [field.name for field in fields(cls)]
        return cls(*(np.concatenate([getattr(p, name) for p in parts]) for name in names))

    def __getitem__(self, which: Any) -> Runs:
        return Runs(*(getattr(self, field.name)[which] for field in fields(self)))


@dataclass
class Found:
    """The files and folders of some folders: a set of records each, and what it occupies."""

    files: npt.NDArray[Any]
    streams: npt.NDArray[Any]
    runs: Runs
    others: Runs  # clusters of vendors' records; the inode is `ROOT` for those of no file


class Folders:
    """Reads every folder of a volume.  Raises InputError where one cannot be read whole.

    ``allocated`` is the volume's bitmap, one value a cluster, the first two unset; ``system``
    has the clusters of the bitmap and of the table of capital letters by name; ``found`` is what
    the folders hold; ``paths`` are filled with ``names`` only.  ``root_is_full``: the root folder,
    which alone has no size, has no end mark; it is full, or its chain was cut.
    """

    def __init__(self, boot: Boot, table: Table, *, names: bool) -> None:
        self._boot, self._table, self._names = boot, table, names
        self._heap = Volume(boot.volume.image, boot.volume.offset + boot.heap)
        number = np.arange(1, len(table) + 1, dtype=np.uint32)
        self._breaks = np.append(np.flatnonzero(table != number), len(table))
        self._seen = np.zeros(boot.clusters + 2, np.bool_)
        self.paths = Paths(boot.fault)
        self.system: list[tuple[str, Array]] = []
        self.label = b""
        self.notes: list[str] = []
        self._upcase = np.arange(65536, dtype=np.uint16)
        self._hashes = 0
        self.found = list(self._walk())
        if self._hashes:
            self.notes.append(f"{self._hashes} names have a wrong hash: Linux does not find them")

    def _walk(self) -> Iterator[Found]:
        boot = self._boot
        clusters = self._chain(boot.root_cluster, _LARGEST_FOLDER // boot.cluster_size, exact=False)
        self.root_clusters = clusters
        rows = self._rows(clusters)
        self.root_is_full = bool((rows[:, 0] != on_disk.END).all())
        self._volume_records(rows)
        folder = np.zeros(len(rows), np.int64)
        found = [self._parse(rows, clusters, folder, root=True)]
        while found:
            yield from found
            attributes = np.concatenate([part.files["attributes"] for part in found])
            folders = np.flatnonzero(attributes & on_disk.ATTR_DIRECTORY)
            if not len(folders):
                return
            above = Runs.join([part.runs for part in found])[folders]
            self.paths.descend(folders)
            found = self._level(above)

    def _level(self, above: Runs) -> list[Found]:
        found, begin = [], 0
        clusters = [self._clusters(above, at) for at in range(len(above.head))]
        while begin < len(clusters):
            end, many = begin, 0
            while end < len(clusters) and (not many or many < _AT_ONCE // self._boot.cluster_size):
                many += len(clusters[end])
                end += 1
            part = np.concatenate(clusters[begin:end])
            each = self._boot.cluster_size // on_disk.RECORD_BYTES
            count = [len(one) * each for one in clusters[begin:end]]
            folder = np.repeat(np.arange(begin, end), count)
            found.append(self._parse(self._rows(part), part, folder))
            begin = end
        return found

    def _clusters(self, above: Runs, at: int) -> Array:
        """The clusters of one folder of a level."""
        head, size, whole = int(above.head[at]), int(above.size[at]), bool(above.whole[at])
        many = -(-size // self._boot.cluster_size)
        if not many and not head:
            return np.empty(0, np.int64)
        if size > _LARGEST_FOLDER or size % self._boot.cluster_size or not many:
            raise self._unreadable(at, "its size is impossible")
        if not whole:
            return self._chain(head, many, at)
        if head < 2 or head + many > self._boot.clusters + 2:
            raise self._unreadable(at, "it lies outside of the volume")
        clusters = np.arange(head, head + many)
        self._claim(clusters, at)
        return clusters

    def _chain(self, head: int, most: int, at: int = 0, exact: bool = True) -> Array:
        """The clusters from ``head`` on: ``most`` of them, or up to the end where not ``exact``."""
        parts, many, cluster = [], 0, head
        while cluster != END:
            if not 2 <= cluster < len(self._table):
                raise self._unreadable(at, "its chain leads out of the volume or to a free cluster")
            last = int(self._breaks[np.searchsorted(self._breaks, cluster)])
            last = min(last, len(self._table) - 1)
            parts.append(np.arange(cluster, last + 1))
            many += last + 1 - cluster
            if many > most:
                raise self._unreadable(at, "its chain is longer than its size")
            self._claim(parts[-1], at)
            cluster = int(self._table[last])
        if exact and many != most:
            raise self._unreadable(at, "its chain is shorter than its size")
        return np.concatenate(parts) if parts else np.empty(0, np.int64)

    def _claim(self, clusters: Array, at: int) -> None:
        if self._seen[clusters].any():
            raise self._unreadable(at, "it shares clusters with another, or leads back into itself")
        self._seen[clusters] = True

    def _rows(self, clusters: Array) -> npt.NDArray[np.uint8]:
        return self._heap.blocks(clusters - 2, self._boot.cluster_size).reshape(-1, 32)

    def _volume_records(self, rows: npt.NDArray[np.uint8]) -> None:
        """The bitmap, the table of capital letters and the label, from the root folder."""
        fault = records.faulty(rows, np.zeros(len(rows), np.int64), True)
        if fault:
            raise self._unreadable(0, fault[1])
        own = np.ascontiguousarray(rows).view(on_disk.PRIMARY)[:, 0]
        bitmaps = own[own["kind"] == on_disk.KIND_BITMAP]
        letters = own[own["kind"] == on_disk.KIND_UPCASE]
        if sorted((bitmaps["flags"] & 1).tolist()) != list(range(self._boot.fats)):
            raise self._boot.fault("it does not have one allocation bitmap for each table")
        if len(letters) != 1:
            raise self._boot.fault("it does not have one table of capital letters")
        for record in bitmaps:
            data = self._system("<allocation bitmap>", record, -(-self._boot.clusters // 8))
            if int(record["flags"]) & 1 == self._boot.active:
                bits = np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little")
                both = np.zeros(2, np.bool_)
                inside = bits[: self._boot.clusters].view(np.bool_)
                self.allocated: Mask = np.concatenate((both, inside))
        size = min(int(letters[0]["size"]), _LARGEST_UPCASE + 1)
        data = self._system("<table of capital letters>", letters[0], 2)
        if size > _LARGEST_UPCASE or rotating(data[:size]) != int(letters[0]["checksum"]):
            raise self._boot.fault("the checksum of its table of capital letters is wrong")
        self._upcase = records.capitals(data[:size])
        labels = np.ascontiguousarray(rows[rows[:, 0] == on_disk.KIND_LABEL]).view(on_disk.LABEL)
        for label in labels[:1, 0]:
            self.label = encode(label["units"][None, : min(int(label["length"]), 11)])[0]

    def _system(self, name: str, record: Any, least: int) -> bytes:
        """What a record of the volume itself leads to; at least so many bytes."""
        size, many = int(record["size"]), -(-int(record["size"]) // self._boot.cluster_size)
        if not least <= size <= self._boot.clusters * self._boot.cluster_size:
            raise self._boot.fault(f"the size of its {name[1:-1]} is impossible")
        clusters = self._chain(int(record["cluster"]), many)
        self.system.append((name, clusters))
        return self._rows(clusters).tobytes()[:size]

    def _parse(
        self, rows: npt.NDArray[np.uint8], clusters: Array, folder: Array, root: bool = False
    ) -> Found:
        """Take the files out of whole folders, and their names."""
        fault = records.faulty(rows, folder, root)
        if fault:
            raise self._unreadable(*fault)
        each = self._boot.cluster_size // on_disk.RECORD_BYTES
        place = self._boot.heap + (clusters - 2) * self._boot.cluster_size
        number = (place[:, None] // on_disk.RECORD_BYTES + np.arange(each)).ravel()
        found = records.sets(rows)
        for at in np.flatnonzero(records.wrong_checksums(rows, found))[:1].tolist():
            raise self._unreadable(folder[found.first[at]], "the checksum of a record is wrong")
        units = records.name_units(rows, found)
        if units is None:
            at = int(folder[found.first[0]])
            raise self._unreadable(at, "the name of a file is not whole")
        hashes = records.name_hashes(units, self._upcase)
        self._hashes += int((hashes != found.stream["name_hash"]).sum())
        if self._names:
            self.paths.add(folder[found.first], encode(units))
        inode = number[found.first]
        runs = Runs.of(inode, found.stream)
        return Found(found.file, found.stream, runs, self._others(rows, inode, found))

    @staticmethod
    def _others(rows: npt.NDArray[np.uint8], inode: Array, found: records.Sets) -> Runs:
        """Clusters of benign records, which vendors may add."""
        kind = rows[:, 0]
        benign = (kind >= on_disk.IN_USE) & (kind & on_disk.BENIGN != 0)
        own = np.ascontiguousarray(rows).view(on_disk.STREAM)[:, 0]
        primary = np.ascontiguousarray(rows).view(on_disk.PRIMARY)[:, 0]
        single = benign & (kind & on_disk.SECONDARY == 0)
        # A primary record has 16 bits of flags, behind its checksum.
        flags = np.where(single, primary["checksum"] >> 16 & 3, own["flags"]).astype(np.uint8)
        at = np.flatnonzero(benign & (flags & on_disk.ALLOCATED != 0) & (own["size"] > 0))
        which = np.searchsorted(found.first, at, side="right") - 1
        stop = found.first + found.file["secondaries"]
        of_file = which >= 0
        of_file[of_file] = at[of_file] <= stop[which[of_file]]
        holder = np.full(len(at), ROOT, np.int64)
        holder[of_file] = inode[which[of_file]]
        fields_ = own[at].copy()
        fields_["flags"] = flags[at]
        return Runs.of(holder, fields_)

    def _unreadable(self, at: int, why: str) -> InputError:
        return self._boot.fault(f"the folder {text(self.paths.full(int(at)))} is damaged: {why}")
