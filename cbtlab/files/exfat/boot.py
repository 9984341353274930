"""The boot region of exFAT, checked, and the file allocation table.

A volume that was not unmounted cleanly is refused, as is one with a boot region whose checksum
is wrong.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from cbtlab.errors import InputError
from cbtlab.files.exfat import layout as on_disk
from cbtlab.files.fat.chains import Table
from cbtlab.files.volume import Volume, structure

REMEDY = "check a copy with fsck.exfat -n"
_VARIABLE = (106, 107, 112)  # the flags and the fill, which the checksum leaves out


class Boot:
    """The geometry of one file system, in bytes from its start.  Raises InputError.

    ``clusters`` have ``cluster_size`` bytes and begin at ``heap``, the first of them with the
    number 2.  ``notes`` collects what a reader should know.
    """

    def __init__(self, volume: Volume) -> None:
        self.volume = volume
        self.notes: list[str] = []
        boot = structure(volume.read(0, 512), on_disk.BOOT)
        shift, more = int(boot["sector_shift"]), int(boot["cluster_shift"])
        if bytes(boot["zero"]).strip(b"\0") or int(boot["signature"]) != 0xAA55:
            raise self.fault("the boot sector is damaged")
        if not 9 <= shift <= 12 or shift + more > 25:
            raise self.fault("the boot sector's size of sectors or clusters is impossible")
        self.sector, self.cluster_size = 1 << shift, 1 << shift + more
        self.fats, self.flags = int(boot["fats"]), int(boot["flags"])
        self.size = int(boot["sectors"]) * self.sector
        self.fat_offset = int(boot["fat_offset"]) * self.sector
        self.fat_size = int(boot["fat_sectors"]) * self.sector
        self.heap = int(boot["heap_offset"]) * self.sector
        self.clusters = int(boot["clusters"])
        self.root_cluster = int(boot["root_cluster"])
        number = int(boot["serial"])
        self.serial = f"{number >> 16:04X}-{number & 0xFFFF:04X}"
        self._geometry(int(boot["revision"]))
        self._checksum()
        self._state()

    def _geometry(self, revision: int) -> None:
        checks = {
            "revision": revision >> 8 == 1,
            "number of tables": self.fats in (1, 2),
            "place of the table": self.fat_offset >= 2 * on_disk.BOOT_SECTORS * self.sector,
            "size of the table": self.fat_size >= (self.clusters + 2) * 4,
            "place of the clusters": self.heap >= self.fat_offset + self.fats * self.fat_size,
            "number of clusters": self.clusters > 0
            and self.heap + self.clusters * self.cluster_size <= self.size,
            "place of the root folder": 2 <= self.root_cluster < self.clusters + 2,
        }
        for what, good in checks.items():
            if not good:
                raise self.fault(f"the boot sector's {what} is impossible")
        if self.size > self.volume.size:
            raise self.fault(
                f"the file system has {self.size} bytes and only {self.volume.size} are here",
                "bring the whole volume; this one was cut short",
            )

    def _checksum(self) -> None:
        size = (on_disk.BOOT_SECTORS - 1) * self.sector
        main, copy = (self.volume.read(at, size + self.sector) for at in (0, size + self.sector))
        total = rotating(main[:size], skip=_VARIABLE)
        if main[size:] != total.to_bytes(4, "little") * (self.sector // 4):
            raise self.fault("the checksum of its boot region is wrong")
        kept = [n for n in range(len(copy)) if n not in _VARIABLE]
        first, second = (np.frombuffer(data, np.uint8)[kept] for data in (main, copy))
        if not np.array_equal(first, second):
            self.notes.append("the backup boot region differs from the boot region")

    def _state(self) -> None:
        if self.flags & on_disk.FLAG_DIRTY:
            raise self.volume.not_at_rest(
                "is marked dirty: it was not unmounted cleanly, or is in use",
                "take the image after unmounting it, or repair a copy with fsck.exfat -y",
            )
        if self.flags & on_disk.FLAG_MEDIA_FAILURE:
            self.notes.append("the system that used it met errors of the disk")

    @property
    def active(self) -> int:
        """Which table and which bitmap counts: 0, or with two of them (TexFAT) 0 or 1."""
        return self.flags & on_disk.FLAG_ACTIVE_FAT if self.fats == 2 else 0

    def table(self) -> Table:
        """The active table, as ``chains`` takes it: its words for ends are those of exFAT."""
        place = self.fat_offset + self.active * self.fat_size
        raw = self.volume.read(place, (self.clusters + 2) * 4)
        table: Any = np.frombuffer(raw, "<u4").astype(np.uint32)
        table[:2] = 0
        return table

    def fault(self, fault: str, remedy: str = REMEDY) -> InputError:
        """The error to raise for something wrong with this volume."""
        return self.volume.fault(fault, remedy)


def rotating(data: bytes, skip: tuple[int, ...] = ()) -> int:
    """The 32-bit checksum of boot regions and of the table of capital letters."""
    total = 0
    for at, byte in enumerate(data):
        if at not in skip:
            total = ((total >> 1 | total << 31) + byte) & 0xFFFFFFFF
    return total
