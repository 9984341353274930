"""Which leftovers a volume has, by its file system, and which of them may be overwritten.

| file system | overwritten | reported, and left alone |
| --- | --- | --- |
| ext2, ext3, ext4 | the journal (where it is clean), slack, free inodes, gaps of folders and of
  attribute blocks | nodes of block maps and hash trees, reserved descriptors, unused bitmaps |
| FAT, exFAT | slack, deleted entries of folders, what follows a folder's end | the boot area |
| NTFS | `$LogFile` (to 0xff), slack, bytes past the valid length, free records, what follows the
  last attribute of a record and the last entry of an index block | records of the file system's
  own, records in two pieces |
| XFS | slack | the log (it must keep its place in time), folders, inodes |
| btrfs | nothing: every block has a checksum | everything |

What lies outside of the file system, and free space, is never overwritten: it is not ours.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol

import numpy as np

from cbtlab.files.volume import Volume
from cbtlab.files.volume_map import VolumeMap
from cbtlab.images import Image
from cbtlab.leftovers.contents import of_contents
from cbtlab.leftovers.ext import ExtLeftovers
from cbtlab.leftovers.fat import ExfatLeftovers, FatLeftovers
from cbtlab.leftovers.ntfs import NtfsLeftovers
from cbtlab.leftovers.table import Leftovers


class Finder(Protocol):
    """What a file system adds: its own leftovers, and how to mend it after they are gone."""

    def find(self) -> list[Leftovers]: ...

    def mend(self, image: Image, changed: Leftovers) -> list[tuple[int, bytes, str]]:
        """The bytes to write so that ``image``, changed in these ranges, is sound again.

        Offset, bytes, and whose they are.  ``image`` shows the change.
        """
        ...

    def record(self, offset: int) -> tuple[str, str] | None:
        """Class and owner of the record that a byte of a table of inodes belongs to; or None."""
        ...


def finder(volume: VolumeMap, image: Image) -> Finder:
    """What finds the leftovers of this kind of file system."""
    place = Volume(image, volume.offset)
    if volume.fs in ("ext2", "ext3", "ext4"):
        return ExtLeftovers(volume, place)
    if volume.fs == "ntfs":
        return NtfsLeftovers(volume, place)
    if volume.fs == "exfat":
        return ExfatLeftovers(volume, place)
    if volume.fs.startswith(("fat", "vfat")):
        return FatLeftovers(volume, place)
    return _Common(volume)


def leftovers(volume: VolumeMap, image: Image) -> Leftovers:
    """All leftovers of the volume that ``volume`` maps, rising, in bytes of ``image``."""
    return Leftovers.join(finder(volume, image).find())


class _Common:
    """What follows from the map alone."""

    def __init__(self, volume: VolumeMap) -> None:
        self.volume = volume

    def find(self) -> list[Leftovers]:
        found = of_contents(self.volume)
        if self.volume.fs == "btrfs":  # the checksum of a block covers its slack
            found = [replace(part, removable=np.zeros(len(part), np.bool_)) for part in found]
        return found

    def mend(self, image: Image, changed: Leftovers) -> list[tuple[int, bytes, str]]:
        return []

    def record(self, offset: int) -> tuple[str, str] | None:
        return None
