"""A streaming writer of qcow2 images: version 3, plain or zlib-compressed clusters.

The file is laid out as header, L1 table, L2 tables, data, refcount blocks,
refcount table.  Which L2 tables there are is known from the bitmaps, so the
data is written once, in order, and every refcount is right at the end
(``qemu-img check`` finds nothing).  Of the disk, what is neither stored nor
declared zero shows the backing file, or zero where there is none.
"""

from __future__ import annotations

import os
import zlib
from array import array
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cbtlab.bitmap import Bitmap
from cbtlab.errors import InputError
from cbtlab.progress import progress
from cbtlab.qcow2.layout import (
    COMPRESSED,
    COPIED,
    MAX_BITS,
    MAX_L1_BYTES,
    MAX_REFCOUNT_TABLE_BYTES,
    MIN_BITS,
    ZERO,
    Header,
    ceil_div,
    l1_entries_for,
    pack_header,
)

BATCH = 4 << 20
PARTS = 512  # of a gathered write; Linux takes 1024
WINDOW = 1 << 18  # clusters looked at together

Read = Callable[[int, int], Any]
"""``read(offset, length)`` gives bytes-like of that length, or None for zeros.

What it gave must not change afterwards: it may be written later.
"""

Bytes = NDArray[np.uint8]


def write(
    path: str | os.PathLike[str],
    size: int,
    cluster: int,
    stored: Bitmap,
    zero: Bitmap | None,
    read: Read,
    backing: str | None = None,
    compress: bool = False,
    *,
    backing_format: str = "qcow2",
    detect_zeros: bool | None = None,
    extensions: Mapping[int, bytes] | None = None,
    level: int = 6,
) -> None:
    """Write a disk of ``size`` bytes whose clusters in ``stored`` come from ``read``.

    ``stored`` and ``zero`` are bitmaps of the disk at ``cluster`` or coarser;
    a cluster in both is stored.  ``backing`` is the backing file's name as it
    shall stand in the header, relative to the image's folder.  With
    ``detect_zeros`` (the default where ``compress`` is set) a stored cluster
    that reads as zero takes no space.  The file appears whole, or not at all.
    Raises InputError when the disk needs larger clusters, or cannot be written.
    """
    target = Path(path)
    _check(target, size, cluster)
    job = _Job(
        target, size, cluster, _fit(stored, size, cluster),
        None if zero is None else _fit(zero, size, cluster),
        read, backing is not None, compress, compress if detect_zeros is None else detect_zeros,
        level,
    )  # fmt: skip
    header = Header(
        version=3,
        size=size,
        cluster_bits=cluster.bit_length() - 1,
        l1_entries=l1_entries_for(size, cluster),
        l1_offset=cluster,
        backing=backing,
        backing_format=backing_format if backing else None,
        extensions=dict(extensions or {}),
    )
    part = target.with_name(target.name + ".part")
    try:
        with part.open("wb", buffering=0) as file:
            job.run(file.fileno(), header)
            os.fsync(file.fileno())
        part.replace(target)
    except OSError as error:
        raise InputError(target, f"cannot be written: {error.strerror or error}") from error
    finally:
        part.unlink(missing_ok=True)


def _check(target: Path, size: int, cluster: int) -> None:
    bits = cluster.bit_length() - 1
    if cluster != 1 << bits or not MIN_BITS <= bits <= MAX_BITS:
        raise InputError(target, f"cannot have clusters of {cluster} bytes")
    if l1_entries_for(size, cluster) * 8 > MAX_L1_BYTES:
        raise InputError(target, f"of {size} bytes needs clusters larger than {cluster}")


def _fit(units: Bitmap, size: int, cluster: int) -> Bitmap:
    if units.volume_size != size or units.granularity % cluster:
        raise ValueError(f"{units!r} does not fit a disk of {size} bytes in {cluster}")
    return units if units.granularity == cluster else units.outward(cluster)


class _Job:
    """One image being written; ``end`` is the first free host cluster's offset."""

    def __init__(
        self, target: Path, size: int, cluster: int, stored: Bitmap, zero: Bitmap | None,
        read: Read, backed: bool, compress: bool, detect: bool, level: int,
    ) -> None:  # fmt: skip
        bits = cluster.bit_length() - 1
        self.target, self.size, self.cluster = target, size, cluster
        self.stored, self.zero, self.read, self.backed = stored, zero, read, backed
        self.compress, self.detect, self.level = compress, detect, level
        self.per = cluster // 8
        self.shift = 62 - (bits - 8)  # of a compressed cluster's length in its entry
        self.fd = -1
        self.end = self.tail = 0
        self.pending = bytearray()  # compressed bytes that belong at pending_at
        self.pending_at = 0
        self.parts: list[memoryview] = []  # plain clusters that belong at parts_at
        self.queued = self.parts_at = 0
        self.spans: array[int] = array("q")  # first and last host cluster, by compressed cluster

    def run(self, fd: int, header: Header) -> None:
        self.fd = fd
        tables = self._tables()
        l2_start = self.cluster * (1 + ceil_div(8 * header.l1_entries, self.cluster))
        count = int(np.count_nonzero(tables))
        self.end = self.tail = self.parts_at = l2_start + count * self.cluster
        l1 = np.zeros(header.l1_entries, np.uint64)
        places = l2_start + np.arange(count, dtype=np.int64) * self.cluster
        l1[tables] = places.astype(np.uint64) | np.uint64(COPIED)
        _write_at(fd, l1.astype(">u8").tobytes(), header.l1_offset)
        offsets = iter(places.tolist())
        with progress(f"writing {self.target.name}", self.stored.count() * self.cluster) as bar:
            for first, entries in self._windows(bar):
                for table in range(0, len(entries), self.per):
                    if tables[(first + table) // self.per]:
                        piece = entries[table : table + self.per]
                        _write_at(fd, piece.astype(">u8").tobytes(), next(offsets))
        self._flush()
        refcounts, clusters = self._write_refcounts()
        _write_at(fd, pack_header(header, refcounts, clusters), 0)

    def _tables(self) -> NDArray[np.bool_]:
        """Return which L2 tables are needed, one value per L1 entry."""
        used = self.stored if self.zero is None else self.stored | self.zero
        tables: NDArray[np.bool_] = np.zeros(ceil_div(used.blocks, self.per), np.bool_)
        for first in range(0, used.blocks, self._window):
            flags = _flags(used, first, self._window)
            flags = np.append(flags, np.zeros(-len(flags) % self.per, np.bool_))
            marked: NDArray[np.bool_] = np.any(flags.reshape(-1, self.per), axis=1)
            tables[first // self.per : first // self.per + len(marked)] = marked
        return tables

    @property
    def _window(self) -> int:
        return ceil_div(WINDOW, self.per) * self.per

    def _windows(self, bar: Any) -> Iterator[tuple[int, NDArray[np.uint64]]]:
        """Write the data; yield (first cluster, L2 entries, whole tables) over the disk."""
        for first in range(0, self.stored.blocks, self._window):
            flags = _flags(self.stored, first, self._window)
            entries = np.zeros(ceil_div(len(flags), self.per) * self.per, np.uint64)
            if self.zero is not None:
                entries[: len(flags)][_flags(self.zero, first, self._window)] = ZERO
            indices = np.flatnonzero(flags)
            if not (self.compress or self.detect):  # where everything lands is known
                hosts = self.end + np.arange(len(indices), dtype=np.int64) * self.cluster
                entries[indices] = hosts.astype(np.uint64) | np.uint64(COPIED)
            for begin, end in _batches(indices, max(1, BATCH // self.cluster)):
                if self.compress or self.detect:
                    entries[begin:end] = self._pick(first + begin, end - begin)
                else:
                    self._queue(first + begin, end - begin)
                bar.update((end - begin) * self.cluster)
            self._flush_plain()
            yield first, entries

    def _queue(self, first: int, count: int) -> None:
        """Append ``count`` clusters of the disk to the file, several runs in one call."""
        length = min(count * self.cluster, self.size - first * self.cluster)
        data = self.read(first * self.cluster, length)
        if data is None:
            self._flush_plain()
        else:
            self.parts.append(self._clusters(data, length, count).reshape(-1).data)
            self.queued += count * self.cluster
        self.end += count * self.cluster
        if data is None:
            self.parts_at = self.end
        elif self.queued >= BATCH or len(self.parts) >= PARTS:
            self._flush_plain()

    def _flush_plain(self) -> None:
        if self.queued:
            done = os.pwritev(self.fd, self.parts, self.parts_at)
            if done < self.queued:
                _write_at(self.fd, b"".join(self.parts)[done:], self.parts_at + done)
        self.parts, self.queued, self.parts_at = [], 0, self.end

    def _pick(self, first: int, count: int) -> NDArray[np.uint64]:
        """Write those of ``count`` clusters of the disk that are not zero; return L2 entries.

        Only without ``detect`` zero clusters are compressed like any others.
        """
        offset = first * self.cluster
        length = min(count * self.cluster, self.size - offset)
        data = self.read(offset, length)
        entries = np.full(count, ZERO if self.backed else 0, np.uint64)
        if data is None and self.detect:
            return entries
        clusters = self._clusters(data, length, count)
        keep = clusters.any(axis=1) if self.detect else np.ones(count, np.bool_)
        for number in np.flatnonzero(keep).tolist():
            cluster = clusters[number]
            entries[number] = self._compress(cluster) if self.compress else self._plain(cluster)
        return entries

    def _plain(self, data: NDArray[np.uint8]) -> int:
        """Write one cluster; return its L2 entry."""
        start = self.end
        _write_at(self.fd, data.data, start)
        self.end += self.cluster
        return start | COPIED

    def _clusters(self, data: Any, length: int, count: int) -> NDArray[np.uint8]:
        """Return what was read as whole clusters, filled up with zero at the disk's end."""
        if data is None:
            return np.zeros((count, self.cluster), np.uint8)
        flat = np.frombuffer(data, np.uint8)
        if len(flat) != length:
            raise ValueError(f"{self.target}: read gave {len(flat)} bytes of {length}")
        if length < count * self.cluster:
            flat = np.concatenate((flat, np.zeros(count * self.cluster - length, np.uint8)))
        return flat.reshape(count, self.cluster)

    def _compress(self, data: NDArray[np.uint8]) -> int:
        """Write one cluster, compressed where that helps; return its L2 entry."""
        # QEMU decompresses with a window of 2^12.
        packer = zlib.compressobj(self.level, zlib.DEFLATED, -12, 9)
        packed = packer.compress(data.data) + packer.flush()
        if len(packed) >= self.cluster:
            return self._plain(data)
        # Compressed clusters follow each other byte by byte, over the border
        # of a host cluster only into one that is theirs too.
        rest = -self.tail % self.cluster
        start = self.tail if len(packed) <= rest or self.tail + rest == self.end else self.end
        if start != self.pending_at + len(self.pending) or len(self.pending) >= BATCH:
            self._flush()
            self.pending_at = start
        self.pending += packed
        self.tail = start + len(packed)
        self.end = max(self.end, ceil_div(self.tail, self.cluster) * self.cluster)
        more = (self.tail - 1) // 512 - start // 512
        self.spans.extend((start // self.cluster, (self.tail - 1) // self.cluster))
        return start | more << self.shift | COMPRESSED

    def _flush(self) -> None:
        _write_at(self.fd, self.pending, self.pending_at)
        self.pending = bytearray()

    def _write_refcounts(self) -> tuple[int, int]:
        """Write refcount blocks and their table; return the table's offset and clusters."""
        start, per = self.end // self.cluster, self.cluster // 2
        blocks = table = 0
        while True:  # blocks and table count themselves
            needed = ceil_div(start + blocks + table, per)
            wide = ceil_div(8 * needed, self.cluster)
            if (needed, wide) == (blocks, table):
                break
            blocks, table = needed, wide
        if table * self.cluster > MAX_REFCOUNT_TABLE_BYTES:
            raise InputError(self.target, f"needs clusters larger than {self.cluster}")
        total = start + blocks + table
        shared = self._shared(start)
        step = max(1, BATCH // self.cluster)
        for block in range(0, blocks, step):
            low, high = block * per, min(block + step, blocks) * per
            counts = np.zeros(high - low, ">u2")
            counts[: max(0, total - low)] = 1
            if shared is not None and low < start:
                counts[: start - low] = shared[low:high]
            _write_at(self.fd, counts.tobytes(), self.end + block * self.cluster)
        places = self.end + np.arange(blocks, dtype=np.int64) * self.cluster
        offset = self.end + blocks * self.cluster
        _write_at(self.fd, places.astype(">u8").tobytes(), offset)
        os.ftruncate(self.fd, total * self.cluster)
        return offset, table

    def _shared(self, total: int) -> NDArray[np.int32] | None:
        """Return the refcounts of the first ``total`` host clusters, or None: all are one."""
        if not self.spans:
            return None
        spans = np.frombuffer(self.spans, np.int64).reshape(-1, 2)
        steps = np.bincount(spans[:, 0], minlength=total + 1)
        steps -= np.bincount(spans[:, 1] + 1, minlength=total + 1)
        counts: NDArray[np.int32] = np.cumsum(steps[:total]).astype(np.int32)
        counts[counts == 0] = 1
        return counts


def _flags(units: Bitmap, first: int, count: int) -> NDArray[np.bool_]:
    """Return up to ``count`` values of a bitmap from block ``first`` on, a multiple of eight."""
    bits = units.bits[first : first + count]
    packed = np.frombuffer(bits.tobytes(), np.uint8)
    return np.unpackbits(packed, count=len(bits), bitorder="little").view(np.bool_)


def _batches(indices: NDArray[np.int64], most: int) -> Iterator[tuple[int, int]]:
    """Yield (first, end) of runs of consecutive indices, ``most`` at a time."""
    if not len(indices):
        return
    breaks = np.flatnonzero(np.diff(indices) != 1) + 1
    starts = indices[np.concatenate(([0], breaks))].tolist()
    ends = (indices[np.append(breaks - 1, len(indices) - 1)] + 1).tolist()
    for start, end in zip(starts, ends, strict=True):
        for begin in range(start, end, most):
            yield begin, min(begin + most, end)


def _write_at(fd: int, data: Any, offset: int) -> None:
    view = memoryview(data)
    if view.format != "B":
        view = view.cast("B")
    while len(view):
        done = os.pwrite(fd, view, offset)
        view, offset = view[done:], offset + done
