"""One qcow2 file as a layer: where each piece of the disk lies, and its bytes.

A layer knows nothing of the files below it: what it does not hold is a
``HOLE``, and ``cbtlab.images`` asks the next layer.  L2 tables are read whole
and looked up with numpy; memory is bounded whatever the file says.
"""

from __future__ import annotations

import os
import zlib
from collections import OrderedDict
from typing import Any

import numpy as np
import zstandard
from numpy.typing import NDArray

from cbtlab.errors import InputError
from cbtlab.qcow2.layout import (
    COMPRESSED,
    OFFSET_MASK,
    SUBCLUSTERS,
    ZERO,
    ceil_div,
    read_header,
)

HOLE, ZEROS, DATA, PACKED = range(4)
"""Not in this layer; reads as zero; plain bytes at a host offset; a compressed cluster."""

L2_CACHE_BYTES = 32 << 20
CLUSTER_CACHE_BYTES = 8 << 20
MAX_ZSTD_WINDOW = 8 << 20

Kinds = NDArray[np.uint8]
Hosts = NDArray[np.int64]


class Qcow2Layer:
    """The clusters of one image file, whose descriptor this object owns."""

    def __init__(self, fd: int, name: str) -> None:
        self.fd = fd
        self.name = name
        self.header = read_header(fd, name)
        self.size = self.header.size
        self.cluster = self.header.cluster
        self.file_size = os.lseek(fd, 0, os.SEEK_END)
        self.grain = self.cluster // (SUBCLUSTERS if self.header.extended_l2 else 1)
        table = self._read(8 * self.header.l1_entries, self.header.l1_offset)
        if len(table) != 8 * self.header.l1_entries:
            raise InputError(name, "is cut in its L1 table")
        self._l1 = (np.frombuffer(table, ">u8") & OFFSET_MASK).astype(np.int64)
        self._l2: OrderedDict[int, NDArray[np.uint64]] = OrderedDict()
        self._l2_keep = max(4, L2_CACHE_BYTES // self.cluster)
        self._unpacked: OrderedDict[int, bytes] = OrderedDict()
        self._unpacked_keep = max(2, CLUSTER_CACHE_BYTES // self.cluster)

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
        self.fd = -1

    def _read(self, length: int, offset: int) -> bytes:
        try:
            return os.pread(self.fd, length, offset)
        except OSError as error:
            raise InputError(self.name, f"cannot be read: {error.strerror}") from error

    def locate(self, offset: int, count: int, grain: int) -> tuple[Kinds, Hosts]:
        """Say of ``count`` grains from byte ``offset`` what and where they are.

        ``grain`` divides ``offset`` and this layer's own.  Returns the kinds
        and, for ``DATA``, the offset of the grain in the file, for ``PACKED``
        the table's entry.  Raises InputError for a table that cannot be right.
        """
        first = offset // self.cluster
        last = ceil_div(offset + count * grain, self.cluster)
        entries = self._entries(first, last - first)
        if entries is None:
            return np.zeros(count, np.uint8), np.zeros(count, np.int64)
        kinds, hosts = self._classify(entries, first)
        if self.grain > grain:
            each = self.grain // grain
            kinds = np.repeat(kinds, each)
            step = np.tile(np.arange(each, dtype=np.int64) * grain, len(hosts))
            hosts = np.repeat(hosts, each) + np.where(kinds == DATA, step, 0)
        skip = (offset - first * self.cluster) // grain
        return kinds[skip : skip + count], hosts[skip : skip + count]

    def _entries(self, first: int, count: int) -> NDArray[np.uint64] | None:
        """Return the L2 entries of ``count`` clusters, shape (count, words), or None: no table."""
        per = self.header.l2_entries
        words = self.header.entry_bytes // 8
        tables = self._l1[first // per : ceil_div(first + count, per)]
        if not tables.any():
            return None
        pieces = [
            self._table(int(offset)) if offset else np.zeros((per, words), np.uint64)
            for offset in tables
        ]
        entries = pieces[0] if len(pieces) == 1 else np.concatenate(pieces)
        skip = first % per
        return entries[skip : skip + count]

    def _table(self, offset: int) -> NDArray[np.uint64]:
        table = self._l2.get(offset)
        if table is not None:
            self._l2.move_to_end(offset)
            return table
        data = self._read(self.cluster, offset) if offset % self.cluster == 0 else b""
        if len(data) != self.cluster:
            raise InputError(
                self.name, "has an L2 table outside of the file; it was cut or altered"
            )
        table = np.frombuffer(data, ">u8").astype(np.uint64)
        table = table.reshape(-1, self.header.entry_bytes // 8)
        self._l2[offset] = table
        if len(self._l2) > self._l2_keep:
            self._l2.popitem(last=False)
        return table

    def _classify(self, entries: NDArray[np.uint64], first: int) -> tuple[Kinds, Hosts]:
        """Return kinds and hosts of the layer's own grains, from cluster ``first`` on."""
        entry = entries[:, 0]
        hosts = (entry & np.uint64(OFFSET_MASK)).astype(np.int64)
        packed = (entry & np.uint64(COMPRESSED)) != 0
        kinds = np.where(hosts != 0, DATA, HOLE).astype(np.uint8)
        if not self.header.extended_l2:
            zero = (entry & np.uint64(ZERO)) != 0
            if self.header.version == 2 and (zero & ~packed).any():
                raise InputError(self.name, "has a zero cluster, which version 2 does not know")
            kinds[zero] = ZEROS
        kinds[packed] = PACKED
        if (hosts[(hosts != 0) & ~packed] % self.cluster).any():
            raise InputError(self.name, "has a cluster at an offset that cannot be; it was altered")
        hosts[packed] = (entry[packed] & np.uint64(COMPRESSED - 1)).astype(np.int64)
        if self.header.extended_l2:
            kinds, hosts = self._subclusters(kinds, hosts, entries[:, 1])
        data = np.flatnonzero(kinds == DATA)
        left = self.size - first * self.cluster - data * self.grain
        if (hosts[data] + np.minimum(self.grain, left) > self.file_size).any():
            raise InputError(self.name, "has a cluster outside of the file; it was cut or altered")
        return kinds, hosts

    def _subclusters(
        self, kinds: Kinds, hosts: Hosts, bitmap: NDArray[np.uint64]
    ) -> tuple[Kinds, Hosts]:
        """Spread clusters with extended L2 entries over their 32 subclusters."""
        bits = np.unpackbits(bitmap.astype("<u8").view(np.uint8), bitorder="little")
        held, zero = np.moveaxis(bits.reshape(-1, 2, SUBCLUSTERS).astype(bool), 1, 0)
        packed = np.repeat(kinds == PACKED, SUBCLUSTERS).reshape(-1, SUBCLUSTERS)
        held, zero = held & ~packed, zero & ~packed
        if (held & zero).any() or (held & (kinds == HOLE)[:, None]).any():
            raise InputError(self.name, "has a subcluster bitmap that contradicts itself")
        fine = np.full(held.shape, HOLE, np.uint8)
        fine[held], fine[zero], fine[packed] = DATA, ZEROS, PACKED
        step = np.arange(SUBCLUSTERS, dtype=np.int64) * self.grain
        where = hosts[:, None] + np.where(fine == DATA, step, 0)
        return fine.ravel(), where.ravel()

    def read_plain(self, out: NDArray[np.uint8], host: int) -> None:
        """Fill ``out`` from file offset ``host``.

        Only the part of the last cluster that lies past the disk's end may be
        missing from the file; ``locate`` has refused all else.
        """
        done = 0
        while done < len(out):
            try:
                got = os.preadv(self.fd, [out.data[done:]], host + done)
            except OSError as error:
                raise InputError(self.name, f"cannot be read: {error.strerror}") from error
            if got == 0 and host + done < self.file_size:
                raise InputError(self.name, "was cut while it was read")
            if got == 0:
                out[done:] = 0
                return
            done += got

    def unpack(self, entry: int) -> bytes:
        """Return the ``cluster`` bytes of the compressed cluster that ``entry`` points to."""
        data = self._unpacked.get(entry)
        if data is not None:
            self._unpacked.move_to_end(entry)
            return data
        bits = 62 - (self.header.cluster_bits - 8)
        host = entry & ((1 << bits) - 1)
        length = ((entry >> bits) + 1) * 512 - host % 512
        raw = self._read(length, host) if host < self.file_size else b""
        try:
            data = self._inflate(raw)
        except (zlib.error, zstandard.ZstdError) as error:
            fault = f"has a compressed cluster that is altered ({error})"
            raise InputError(self.name, fault) from error
        if len(data) != self.cluster:
            raise InputError(self.name, "has a compressed cluster that is cut or altered")
        self._unpacked[entry] = data
        if len(self._unpacked) > self._unpacked_keep:
            self._unpacked.popitem(last=False)
        return data

    def _inflate(self, raw: bytes) -> bytes:
        """Decompress to at most one cluster, whatever the stream claims."""
        if self.header.compression == "zlib":
            return zlib.decompressobj(-15).decompress(raw, self.cluster)
        reader: Any = zstandard.ZstdDecompressor(max_window_size=MAX_ZSTD_WINDOW).stream_reader(raw)
        pieces, missing = [], self.cluster
        while missing and (piece := reader.read(missing)):
            pieces.append(piece)
            missing -= len(piece)
        return b"".join(pieces)
