"""What an image holds: a file system that can be mapped, or what to say instead."""

from __future__ import annotations

from cbtlab.files import lvm
from cbtlab.files.partitions import find_volumes, told
from cbtlab.files.signatures import mapped, other
from cbtlab.files.volume import Volume

_SECTOR = 512


def detect(volume: Volume) -> str:
    """Return the kind of file system, or raise InputError that names what else was found."""
    if volume.offset % _SECTOR:
        raise volume.fault("the offset is not a multiple of 512", "give the start of a partition")
    kinds = mapped(volume)
    if len(kinds) == 1:
        return kinds[0]
    if kinds:
        raise volume.fault(
            f"holds the signatures of {' and '.join(kinds)}, and one of them is stale",
            "erase that one on a copy with wipefs",
        )
    name = other(volume)
    if name:
        raise volume.fault(
            f"holds {name}, which is no file system that is mapped", "map what it contains instead"
        )
    found = find_volumes(volume.image, volume.offset)
    if lvm.is_there(volume):
        raise volume.fault("is an LVM physical volume", told(found))
    if found:
        raise volume.fault("is partitioned", told(found))
    raise volume.fault(
        "holds no file system that is known", "give the offset where its file system begins"
    )
