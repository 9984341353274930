"""The boot sector of FAT12, FAT16 and FAT32, checked, and the tables behind it.

A file system that was not unmounted cleanly is refused, as is one whose tables differ: which of
them is right only a repair can tell.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from cbtlab.errors import InputError
from cbtlab.files.fat import layout as on_disk
from cbtlab.files.fat.chains import BAD, END, Table
from cbtlab.files.volume import Volume, structure

REMEDY = "check a copy with fsck.fat -n"
_MOST_FAT12, _MOST_FAT16 = 4084, 65524  # clusters
_PART = 8 << 20


def recognise(volume: Volume) -> bool:
    """Whether a FAT file system begins here: a sound parameter block, and a table behind it.

    The names at bytes 54 and 82 say nothing (fatgen103), and need not be there.
    """
    try:
        boot = Boot(volume)
        head = volume.read(boot.fat_offset, 3)
    except InputError:
        return False
    return head[1:] == b"\xff\xff" and _is_media(head[0])


def _is_media(value: int) -> bool:
    return value == 0xF0 or value >= 0xF8


class Boot:
    """The geometry of one file system, in bytes from its start.  Raises InputError.

    ``bits`` is 12, 16 or 32; ``clusters`` have ``cluster_size`` bytes and begin at ``heap``, the
    first of them with the number 2; ``size`` is what the file system counts as its own.
    """

    def __init__(self, volume: Volume) -> None:
        self.volume = volume
        self.raw = volume.read(0, 512)
        boot = self._boot = structure(self.raw, on_disk.BOOT)
        wide = structure(self.raw, on_disk.BOOT32)
        self.sector = int(boot["sector_size"])
        per_cluster, self.fats = int(boot["sectors_per_cluster"]), int(boot["fats"])
        self.reserved = int(boot["reserved"]) * self.sector
        sectors = int(boot["sectors_16"]) or int(boot["sectors_32"])
        fat_sectors = int(boot["fat_sectors_16"]) or int(wide["fat_sectors_32"])
        self.media = int(boot["media"])
        self.fat_offset, self.fat_size = self.reserved, fat_sectors * self.sector
        self.root_offset = self.reserved + self.fats * self.fat_size
        self.root_size = int(boot["root_entries"]) * on_disk.RECORD_BYTES
        checks = {
            "sector size": self.sector in (512, 1024, 2048, 4096),
            "cluster size": per_cluster.bit_count() == 1,
            "number of reserved sectors": self.reserved > 0,
            "number of tables": self.fats > 0,
            "media type": _is_media(self.media),
            "size of a table": fat_sectors > 0,
        }
        for what, good in checks.items():
            if not good:
                raise self.fault(f"the boot sector's {what} is impossible")
        self.cluster_size = per_cluster * self.sector
        self.size = sectors * self.sector
        self.heap = self.root_offset + -(-self.root_size // self.sector) * self.sector
        if self.size < self.heap + self.cluster_size:
            raise self.fault("the boot sector's number of sectors is impossible")
        self._clusters(bool(boot["fat_sectors_16"]))
        self.special = wide if self.bits == 32 else boot
        self.root_cluster = int(wide["root_cluster"]) if self.bits == 32 else 0
        self.fsinfo = int(wide["fsinfo"]) * self.sector if self.bits == 32 else 0
        self.backup = int(wide["backup"]) * self.sector if self.bits == 32 else 0

    def _clusters(self, narrow: bool) -> None:
        """How many clusters there are, and so how wide an entry is, as Linux decides it."""
        self.clusters = (self.size - self.heap) // self.cluster_size
        if not narrow:
            self.bits = 32
            if self.root_size:
                raise self.fault("the boot sector has a root folder of FAT16 and a table of FAT32")
        elif self.clusters > _MOST_FAT16:
            raise self.fault("the boot sector counts more clusters than FAT16 can have")
        else:
            self.bits = 12 if self.clusters <= _MOST_FAT12 else 16
            if not self.root_size:
                raise self.fault("the boot sector gives the root folder no place")
        room = self.fat_size * 8 // self.bits - 2
        self.unlisted = max(0, self.clusters - room)
        self.clusters -= self.unlisted
        if self.clusters < 1:
            raise self.fault("the boot sector's size of a table is impossible")

    def check(self) -> list[str]:
        """Refuse what is cut short, not known or not at rest; return what else is odd."""
        if self.size > self.volume.size:
            raise self.fault(
                f"the file system has {self.size} bytes and only {self.volume.size} are here",
                "bring the whole volume; this one was cut short",
            )
        wide = structure(self.raw, on_disk.BOOT32)
        if self.bits == 32 and int(wide["version"]):
            raise self.fault("is a version of FAT32 that is not known", "")
        self.active = 0
        if self.bits == 32 and int(wide["ext_flags"]) & on_disk.NOT_MIRRORED:
            self.active = int(wide["ext_flags"]) & on_disk.ACTIVE_FAT
            if self.active >= self.fats:
                raise self.fault("the boot sector names a table that is not there")
        if int(self.special["state"]) & on_disk.STATE_DIRTY:
            raise self._dirty()
        return self._notes()

    def _notes(self) -> list[str]:
        notes = []
        if self.bits == 32 and self.clusters <= _MOST_FAT16:
            notes.append("FAT32 with fewer clusters than FAT32 must have")
        if self.unlisted:
            notes.append(f"its tables are too short for the last {self.unlisted} clusters")
        if self.bits == 32 and self.backup and self.backup + 512 <= self.reserved:
            # All but the state, which Linux changes in the first alone.
            mine, copy = bytearray(self.raw), bytearray(self.volume.read(self.backup, 512))
            mine[65] = copy[65] = 0
            if mine != copy:
                notes.append("the backup boot sector differs from the boot sector")
        return notes

    def table(self, notes: list[str]) -> Table:
        """The active table, each entry what follows its cluster, or a word of ``chains``."""
        place = self.fat_offset + self.active * self.fat_size
        size = min(self.fat_size, -(-(self.clusters + 2) * self.bits // 8))
        raw = self.volume.read(place, size)
        mirrored = self.fats if not self.active else 0
        if self.bits == 32 and int(structure(self.raw, on_disk.BOOT32)["ext_flags"]) & 0x80:
            mirrored = 0
        for number in range(1, mirrored):
            self._same(raw, self.fat_offset + number * self.fat_size, number)
        table = _entries(raw, self.clusters + 2, self.bits)
        self._state_of(int(table[1]), notes)
        top = (1 << min(self.bits, 28)) - 1
        if int(table[0]) | 0xFF != top:
            raise self.fault("there is no table where the boot sector says")
        if int(table[0]) & 0xFF != self.media:
            notes.append("the first entry of its table is not the media type")
        table[table >= top - 7] = END
        table[table == top - 8] = BAD
        table[:2] = 0
        return table

    def _same(self, raw: bytes, place: int, number: int) -> None:
        for at in range(0, len(raw), _PART):
            part = raw[at : at + _PART]
            if part != self.volume.read(place + at, len(part)):
                raise self.fault(f"its tables 1 and {number + 1} differ", "repair it with fsck.fat")

    def _state_of(self, entry: int, notes: list[str]) -> None:
        """The two bits that Windows keeps in the second entry: set while all is well."""
        if self.bits == 12:
            return
        if not entry >> min(self.bits, 28) - 1 & 1:
            raise self._dirty()
        if not entry >> min(self.bits, 28) - 2 & 1:
            notes.append("the system that used it met errors of the disk")

    def _dirty(self) -> InputError:
        return self.volume.not_at_rest(
            "is marked dirty: it was not unmounted cleanly, or is in use",
            "take the image after unmounting it, or repair a copy with fsck.fat -a",
        )

    @property
    def serial(self) -> str:
        """The volume's serial number as blkid and mtools write it; empty where there is none."""
        if int(self.special["signature"]) not in (0x28, 0x29):
            return ""
        number = int(self.special["serial"])
        return f"{number >> 16:04X}-{number & 0xFFFF:04X}"

    def fault(self, fault: str, remedy: str = REMEDY) -> InputError:
        """The error to raise for something wrong with this volume."""
        return self.volume.fault(fault, remedy)


def _entries(raw: bytes, count: int, bits: int) -> Any:
    """The first ``count`` entries of a table, 12, 16 or 32 (of them 28) bits wide."""
    if bits == 32:
        return np.frombuffer(raw, "<u4", count) & np.uint32(0x0FFFFFFF)
    if bits == 16:
        return np.frombuffer(raw, "<u2", count).astype(np.uint32)
    number = np.arange(count)
    data = np.append(np.frombuffer(raw, np.uint8), 0).astype(np.uint32)
    at = number * 3 // 2
    pair = data[at] | data[at + 1] << 8
    return np.where(number & 1, pair >> 4, pair & 0xFFF)
