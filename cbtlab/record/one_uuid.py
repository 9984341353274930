"""Makes sure that what is mounted is the snapshot, although the volume has the same UUID.

XFS refuses a second file system of one UUID unless it is told ``nouuid``.  btrfs may take the
one that is mounted already for the new one: then a delete would run on the live volume.  Since
Linux 6.7 it gives the second one a temporary fsid.  stdlib only.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct
import uuid
from pathlib import Path

_BTRFS = Path("/sys/fs/btrfs")
_SUPERBLOCK, _FSID, _MAGIC = 65536, slice(32, 48), slice(64, 72)
_FS_INFO, _DEV_INFO = 0x8400941F, 0xD000941E
_MOST_DEVICES = 1 << 16


def options_for(kind: str, options: str) -> str:
    """The options that a snapshot is mounted with, beside its volume; the given ones stay.

    ``nouuid`` for XFS; the whole of btrfs and not its default subvolume; and the time zone
    that FAT's times are read in everywhere else: UTC.
    """
    own = {"xfs": "nouuid", "btrfs": "subvolid=5", "vfat": "tz=UTC", "msdos": "tz=UTC"}.get(kind)
    given = [option for option in options.split(",") if option]
    named = {option.partition("=")[0] for option in given}
    taken = own is None or own.partition("=")[0] in named or (kind == "btrfs" and "subvol" in named)
    return ",".join(given if taken else [*given, own or ""])


def refuse_twin(device: str, kind: str) -> None:
    """Refuse a btrfs whose fsid is mounted already, where the kernel could not tell the two."""
    if kind != "btrfs" or not _is_block(device):
        return
    fsid = _fsid_on(device)
    if fsid and (_BTRFS / fsid).exists() and not (_BTRFS / "features" / "temp_fsid").exists():
        raise OSError(
            errno.EEXIST,
            f"btrfs {fsid} is mounted already, and this kernel may take one for the other: "
            "unmount the volume, or use Linux 6.7",
            device,
        )


def check_mounted(device: str, place: str | os.PathLike[str], kind: str) -> None:
    """Raise OSError where ``place`` shows another device than ``device``."""
    if not _is_block(device):
        return
    wanted = os.stat(device).st_rdev  # noqa: PTH116
    found = _btrfs_devices(place) if kind == "btrfs" else [os.stat(place).st_dev]  # noqa: PTH116
    if found != [wanted]:
        told = ", ".join(f"{os.major(number)}:{os.minor(number)}" for number in found)
        raise OSError(
            errno.EXDEV,
            f"{place} shows device {told}, and not the one that was mounted: nothing is deleted",
            device,
        )


def _is_block(device: str) -> bool:
    try:
        return stat.S_ISBLK(os.stat(device).st_mode)  # noqa: PTH116
    except OSError:
        return False  # the mount says what is wrong with it


def _fsid_on(device: str) -> str | None:
    """The fsid in a device's superblock; None where there is no btrfs."""
    fd = os.open(device, os.O_RDONLY | os.O_CLOEXEC)
    try:
        block = os.pread(fd, 4096, _SUPERBLOCK)
    finally:
        os.close(fd)
    return str(uuid.UUID(bytes=block[_FSID])) if block[_MAGIC] == b"_BHRfS_M" else None


def _btrfs_devices(place: str | os.PathLike[str]) -> list[int]:
    """The device numbers of a mounted btrfs, as BTRFS_IOC_FS_INFO and _DEV_INFO tell."""
    fd = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        info = bytearray(1024)
        fcntl.ioctl(fd, _FS_INFO, info)
        highest, count = struct.unpack_from("=QQ", info)
        found = []
        for number in range(min(highest, _MOST_DEVICES) + 1):
            entry = bytearray(4096)
            struct.pack_into("=Q", entry, 0, number)
            try:
                fcntl.ioctl(fd, _DEV_INFO, entry)
            except OSError as error:
                if error.errno == errno.ENODEV:
                    continue
                raise
            path = bytes(entry[3072:]).split(b"\0", 1)[0]
            found.append(os.stat(path).st_rdev)  # noqa: PTH116
            if len(found) == count:
                break
        return found
    finally:
        os.close(fd)
