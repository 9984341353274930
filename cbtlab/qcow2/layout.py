"""The structures of a qcow2 image on disk, and what is refused of them.

All numbers are big-endian.  The source is ``docs/interop/qcow2.txt`` of QEMU;
limits that are QEMU's own and not the format's say so.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass, field

from cbtlab.errors import InputError

MAGIC = b"QFI\xfb"
# magic, version, backing offset and length, cluster bits, size, encryption,
# L1 entries and offset, refcount table offset and clusters, snapshots and their offset
HEADER = struct.Struct(">4sIQIIQIIQQIIQ")
# incompatible, compatible and autoclear features, refcount order, header length
HEADER_3 = struct.Struct(">QQQII")
HEADER_3_LENGTH = 112  # with the compression type and its padding
EXTENSION = struct.Struct(">II")

DIRTY, CORRUPT, EXTERNAL_DATA, COMPRESSION_TYPE, EXTENDED_L2 = (1 << bit for bit in range(5))
INCOMPATIBLE_NAMES = {
    CORRUPT: ("is marked corrupt", "repair a copy with: qemu-img check -r all"),
    EXTERNAL_DATA: ("keeps its data in another file", "convert it with: qemu-img convert"),
}
KNOWN_INCOMPATIBLE = DIRTY | CORRUPT | EXTERNAL_DATA | COMPRESSION_TYPE | EXTENDED_L2
RAW_EXTERNAL = 2  # autoclear
COMPRESSION = {0: "zlib", 1: "zstd"}

END, BACKING_FORMAT = 0, 0xE2792ACA

COPIED = 1 << 63
COMPRESSED = 1 << 62
ZERO = 1
OFFSET_MASK = 0x00FFFFFFFFFFFE00
SUBCLUSTERS = 32

MIN_BITS, MAX_BITS = 9, 21  # QEMU's upper limit
MAX_L1_BYTES = 32 << 20  # QEMU's
MAX_REFCOUNT_TABLE_BYTES = 8 << 20  # QEMU's
MAX_NAME = 1023
MAX_SIZE = (1 << 63) - 1


@dataclass(frozen=True)
class Header:
    """What the header of one image file says; sizes and offsets in bytes."""

    version: int
    size: int
    cluster_bits: int
    l1_entries: int
    l1_offset: int
    backing: str | None = None
    backing_format: str | None = None
    compression: str = "zlib"
    extended_l2: bool = False
    dirty: bool = False
    extensions: dict[int, bytes] = field(default_factory=dict)

    @property
    def cluster(self) -> int:
        return 1 << self.cluster_bits

    @property
    def entry_bytes(self) -> int:
        return 16 if self.extended_l2 else 8

    @property
    def l2_entries(self) -> int:
        return self.cluster // self.entry_bytes

    @property
    def clusters(self) -> int:
        return ceil_div(self.size, self.cluster)


def ceil_div(number: int, by: int) -> int:
    return -(-number // by)


def l1_entries_for(size: int, cluster: int, entry_bytes: int = 8) -> int:
    """Return how many L2 tables a disk of ``size`` bytes can have."""
    return ceil_div(size, cluster * (cluster // entry_bytes))


def read_header(fd: int, name: str) -> Header:
    """Parse and check the header of the image open at ``fd``.

    Raises InputError when the file is not a qcow2 image that can be read here:
    encrypted, external data, marked corrupt, an unknown feature, or numbers
    that no writer makes.
    """
    file_size = os.lseek(fd, 0, os.SEEK_END)
    start = os.pread(fd, 1 << 16, 0)
    if len(start) < HEADER.size or start[:4] != MAGIC:
        raise InputError(name, "is no qcow2 image, or is cut in its header", "")
    (_, version, backing_offset, backing_length, bits, size, encryption, l1_entries, l1_offset) = (
        HEADER.unpack_from(start)[:9]
    )
    if version not in (2, 3):
        raise InputError(name, f"is qcow2 version {version}", "versions 2 and 3 can be read")
    if not MIN_BITS <= bits <= MAX_BITS:
        raise InputError(name, f"has clusters of 2^{bits} bytes", "2^9 to 2^21 can be read")
    if encryption:
        raise InputError(name, "is encrypted", "convert it with: qemu-img convert")
    incompatible, length = _features(start, version, name)
    compression = "zlib"
    if incompatible & COMPRESSION_TYPE:
        kind = start[104] if length > 104 and len(start) > 104 else 0
        if kind not in COMPRESSION:
            raise InputError(name, f"has the unknown compression type {kind}")
        compression = COMPRESSION[kind]
    cluster = 1 << bits
    extended = bool(incompatible & EXTENDED_L2)
    if extended and bits < 14:
        raise InputError(name, f"has subclusters in clusters of 2^{bits} bytes")
    if not 0 < size <= MAX_SIZE:
        raise InputError(name, f"has a virtual size of {size} bytes")
    needed = l1_entries_for(size, cluster, 16 if extended else 8)
    if l1_entries < needed or needed * 8 > MAX_L1_BYTES:
        raise InputError(name, f"has {l1_entries} L1 entries where its size needs {needed}")
    if l1_offset % cluster or l1_offset + 8 * needed > file_size:
        raise InputError(name, "has its L1 table outside of the file; it was cut or altered")
    backing, limit = _backing(start, backing_offset, backing_length, cluster, name)
    extensions = _extensions(start, length, min(limit, cluster), name)
    backing_format = extensions.get(BACKING_FORMAT)
    return Header(
        version=version,
        size=size,
        cluster_bits=bits,
        l1_entries=needed,
        l1_offset=l1_offset,
        backing=backing,
        backing_format=backing_format.decode("ascii", "replace") if backing_format else None,
        compression=compression,
        extended_l2=extended,
        dirty=bool(incompatible & DIRTY),
        extensions=extensions,
    )


def _features(start: bytes, version: int, name: str) -> tuple[int, int]:
    """Return the incompatible features and the header's length."""
    if version == 2:
        return 0, HEADER.size
    if len(start) < HEADER.size + HEADER_3.size:
        raise InputError(name, "is cut in its header")
    incompatible, _, autoclear, order, length = HEADER_3.unpack_from(start, HEADER.size)
    for bit, (fault, remedy) in INCOMPATIBLE_NAMES.items():
        if incompatible & bit:
            raise InputError(name, fault, remedy)
    if incompatible & ~KNOWN_INCOMPATIBLE:
        raise InputError(name, f"needs features that are unknown here ({incompatible:#x})")
    if autoclear & RAW_EXTERNAL:
        raise InputError(name, *INCOMPATIBLE_NAMES[EXTERNAL_DATA])
    if order > 6 or length < HEADER.size + HEADER_3.size or length > len(start):
        raise InputError(name, f"has a header of {length} bytes with refcount order {order}")
    return incompatible, length


def _backing(
    start: bytes, offset: int, length: int, cluster: int, name: str
) -> tuple[str | None, int]:
    """Return the backing file's name, and where the header extensions must end."""
    if not offset:
        return None, cluster
    if offset + length > min(cluster, len(start)) or not 0 < length <= MAX_NAME:
        raise InputError(name, "has its backing file's name outside of the header")
    raw = start[offset : offset + length]
    if b"\0" in raw:
        raise InputError(name, "has a zero byte in its backing file's name")
    return os.fsdecode(raw), offset


def _extensions(start: bytes, position: int, limit: int, name: str) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    while position + EXTENSION.size <= min(limit, len(start)):
        kind, length = EXTENSION.unpack_from(start, position)
        position += EXTENSION.size
        if kind == END:
            break
        if position + length > min(limit, len(start)):
            raise InputError(name, "has a header extension that leaves the header")
        found[kind] = start[position : position + length]
        position += ceil_div(length, 8) * 8
    return found


def pack_header(
    header: Header, refcount_offset: int, refcount_clusters: int, version: int = 3
) -> bytes:
    """Return the first bytes of an image of version 3 (zlib, 16-bit refcounts).

    Raises InputError when backing name and extensions do not fit one cluster.
    """
    backing = os.fsencode(header.backing) if header.backing else b""
    blocks = dict(header.extensions)
    if header.backing_format:
        blocks[BACKING_FORMAT] = header.backing_format.encode()
    tail = b"".join(
        EXTENSION.pack(kind, len(data)) + data + bytes(-len(data) % 8)
        for kind, data in blocks.items()
    ) + EXTENSION.pack(END, 0)
    name_offset = HEADER_3_LENGTH + len(tail)
    if len(backing) > MAX_NAME or name_offset + len(backing) > header.cluster:
        raise InputError(header.backing, "is too long a name for a qcow2 header")
    return (
        HEADER.pack(
            MAGIC, version, name_offset if backing else 0, len(backing), header.cluster_bits,
            header.size, 0, header.l1_entries, header.l1_offset,
            refcount_offset, refcount_clusters, 0, 0,
        )
        + HEADER_3.pack(0, 0, 0, 4, HEADER_3_LENGTH)
        + bytes(8)
        + tail
        + backing
    )  # fmt: skip
