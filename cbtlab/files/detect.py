"""What an image holds: a file system that can be mapped, or what to say instead."""

from __future__ import annotations

import struct
from collections.abc import Iterator

from cbtlab.errors import InputError
from cbtlab.files.ext.layout import MAGIC, SUPERBLOCK_OFFSET
from cbtlab.files.volume import Volume

_SECTOR = 512
_MOST_PARTITIONS = 1024
_EXTENDED = (0x05, 0x0F, 0x85)

#: Signatures of the file systems that are mapped: offset, bytes, kind.
_MAPPED = (
    (SUPERBLOCK_OFFSET + 56, MAGIC.to_bytes(2, "little"), "ext"),
    (0, b"XFSB", "xfs"),
    (3, b"NTFS    ", "ntfs"),
    (3, b"EXFAT   ", "exfat"),
    (82, b"FAT32   ", "fat"),
    (54, b"FAT16   ", "fat"),
    (54, b"FAT12   ", "fat"),
    (0x10040, b"_BHRfS_M", "btrfs"),
)

#: Signatures of what is recognised and not mapped: offset, bytes, name.
_OTHERS = (
    (0x10034, b"ReIsEr", "ReiserFS"),
    (1024, b"H+\x00\x04", "HFS+"),
    (1024, b"\x10\x20\xf5\xf2", "F2FS"),
    (1024, b"\xe2\xe1\xf5\xe0", "EROFS"),
    (0, b"hsqs", "SquashFS"),
    (32769, b"CD001", "ISO 9660"),
    (4086, b"SWAPSPACE2", "swap"),
    (512, b"LABELONE", "an LVM physical volume"),
    (0, b"LUKS\xba\xbe", "LUKS encryption"),
    (0, b"QFI\xfb", "a qcow2 image (opened as raw)"),
)


def detect(volume: Volume) -> str:
    """Return the kind of file system, or raise InputError that names what else was found."""
    if volume.offset % _SECTOR:
        raise volume.fault("the offset is not a multiple of 512", "give the start of a partition")
    for offset, magic, kind in _MAPPED:
        if _bytes(volume, offset, len(magic)) == magic:
            return kind
    for offset, magic, name in _OTHERS:
        if _bytes(volume, offset, len(magic)) == magic:
            raise volume.fault(f"holds {name}, which is no file system that is mapped")
    starts = list(partitions(volume))
    if starts:
        known = ", ".join(str(start + volume.offset) for start in starts[:16])
        raise InputError(volume.name, "is partitioned", f"give one of the offsets {known}")
    raise volume.fault(
        "holds no file system that is known", "give the offset where its file system begins"
    )


def partitions(volume: Volume) -> Iterator[int]:
    """Where the partitions of an MBR or GPT begin, in bytes of the volume."""
    table = _bytes(volume, 0, _SECTOR)
    if table[510:] != b"\x55\xaa":
        return
    if any(kind == 0xEE for kind, _ in _records(table)):
        yield from _gpt(volume)
        return
    for kind, start in _records(table):
        if kind in _EXTENDED:
            yield from _logical(volume, start)
        elif start < volume.size:
            yield start


def _records(table: bytes) -> Iterator[tuple[int, int]]:
    for at in range(446, 510, 16):
        status, kind = table[at], table[at + 4]
        start, length = struct.unpack_from("<II", table, at + 8)
        if kind and length and start and status in (0, 0x80):
            yield kind, start * _SECTOR


def _logical(volume: Volume, extended: int) -> Iterator[int]:
    """Logical partitions: a linked list of tables, followed as far as it goes forward."""
    at = extended
    for _ in range(_MOST_PARTITIONS):
        table = _bytes(volume, at, _SECTOR)
        if table[510:] != b"\x55\xaa":
            return
        after = None
        for kind, start in _records(table):
            if kind in _EXTENDED:
                after = extended + start
            elif at + start < volume.size:
                yield at + start
        if after is None or after <= at:
            return
        at = after


def _gpt(volume: Volume) -> Iterator[int]:
    for sector in (512, 4096):
        header = _bytes(volume, sector, 92)
        if header[:8] != b"EFI PART":
            continue
        table, count, size = struct.unpack_from("<QII", header, 72)
        if not 128 <= size <= 4096:
            return
        for number in range(min(count, _MOST_PARTITIONS)):
            entry = _bytes(volume, table * sector + number * size, 128)
            if entry[:16].strip(b"\0"):
                start = int.from_bytes(entry[32:40], "little") * sector
                if start < volume.size:
                    yield start
        return


def _bytes(volume: Volume, offset: int, length: int) -> bytes:
    """The bytes there, or as many zeros where the volume is shorter."""
    if offset + length > volume.size:
        return bytes(length)
    return volume.read(offset, length)
