"""What begins at a place of an image: a file system, or something else that has a signature."""

from __future__ import annotations

import struct

from cbtlab.files.ext.layout import MAGIC, SUPERBLOCK_OFFSET
from cbtlab.files.fat.boot import recognise as is_fat
from cbtlab.files.fat.layout import STRINGS as FAT_STRINGS
from cbtlab.files.volume import Volume

#: Signatures of file systems that are mapped: offset, bytes, kind.  ext and FAT, whose signatures
#: are short or none, have functions of their own.
_MAPPED = (
    (0, b"XFSB", "xfs"),
    (3, b"NTFS    ", "ntfs"),
    (3, b"EXFAT   ", "exfat"),
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
    (0, b"LUKS\xba\xbe", "LUKS encryption"),
    (0, b"QFI\xfb", "a qcow2 image (opened as raw)"),
)


def mapped(volume: Volume) -> list[str]:
    """The kinds of file systems that may begin here: one, none, or more where one is stale."""
    kinds = [kind for at, magic, kind in _MAPPED if peek(volume, at, len(magic)) == magic]
    if kinds and kinds[0] != "btrfs":
        return kinds[:1]  # its first sector is not that of ext or FAT
    fat = is_fat(volume)
    found = ["ext"] if _is_ext(volume, certain=fat) else []
    found += ["fat"] if fat else []
    return found or kinds or (["fat"] if _is_named_fat(volume) else [])


def _is_ext(volume: Volume, certain: bool) -> bool:
    """Whether the two bytes of ext are there: with the table of a FAT there, by chance or stale.

    So to be ``certain`` the fields beside them must make sense, too.
    """
    raw = peek(volume, SUPERBLOCK_OFFSET, 96)
    if struct.unpack_from("<H", raw, 56)[0] != MAGIC:
        return False
    inodes, blocks = struct.unpack_from("<II", raw)
    first, shift, _, per_group = struct.unpack_from("<IIII", raw, 20)
    sound = inodes and blocks and per_group and first <= 1 and shift <= 6
    return bool(sound) or not certain


def _is_named_fat(volume: Volume) -> bool:
    """A damaged FAT, which its reader will refuse in its own words."""
    return any(peek(volume, at, len(magic)) == magic for at, magic in FAT_STRINGS)


def other(volume: Volume) -> str:
    """The name of something that is not mapped; empty where nothing is known."""
    for at, magic, name in _OTHERS:
        if peek(volume, at, len(magic)) == magic:
            return name
    return ""


def signature(volume: Volume) -> str:
    """One word, or a few, for what begins here; empty where nothing is known."""
    return " or ".join(mapped(volume)) or other(volume)


def peek(volume: Volume, offset: int, length: int) -> bytes:
    """The bytes there, or as many zeros where the volume is shorter."""
    if offset < 0 or offset + length > volume.size:
        return bytes(length)
    return volume.read(offset, length)
