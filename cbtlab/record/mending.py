"""Brings the file system on a snapshot to rest before its files are mapped; stdlib only.

A snapshot of a mounted file system is of one instant, and not at rest.  XFS leaves its log
to be replayed even when it was frozen (``xfs_log_quiesce``: a dummy transaction, for the
unlinked inodes), FAT is marked dirty for as long as it is mounted for writing, and what was
cut off by a crash has a journal or a log.  Until that is done and cleared, its structures do
not say where files lie.  The kernel's own replay does it, by a mount and an unmount; where a
mount leaves the mark, the file system's own checker does.

What is written on the snapshot by this is part of its write sequence.
"""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cbtlab.errors import InputError
from cbtlab.record.mounted import mounted

__all__ = ["NotMended", "faults", "mend"]

_PLACES = os.pathsep.join([os.environ.get("PATH", os.defpath), "/sbin", "/usr/sbin"])
_SECONDS = 600  # for a checker

Read = Callable[[int, int], bytes]


class NotMended(InputError):
    """A file system that is not at rest, and could not be brought to it."""


@dataclass(frozen=True)
class _Mender:
    """How a kind is brought to rest: what tells that it is not, a mount, a program."""

    faults: Callable[[Read], list[str]]
    options: str | None = None  # of a mount and an unmount; None for no mount
    program: tuple[str, ...] = ()
    package: str = ""
    done: tuple[int, ...] = (0,)  # what the program's exit status is when it has mended


def faults(device: str, kind: str) -> list[str]:
    """Return why the file system on ``device`` is not at rest, in words; empty where it is.

    ``kind`` is what it is mounted as.  The marks alone are looked at.  OSError.
    """
    mender = _MENDERS.get(kind)
    return [] if mender is None else _look(device, mender)


def mend(device: str, place: str | Path, kind: str) -> list[str]:
    """Bring ``device`` to rest; return what was to be mended, empty where nothing was.

    ``place`` is where it may be mounted meanwhile.  Raises NotMended where the program that
    it takes is missing, and where the marks are still there afterwards.
    """
    mender = _MENDERS.get(kind)
    found = [] if mender is None else _look(device, mender)
    if mender is None or not found:
        return []
    if mender.options is not None:
        with mounted(device, place, kind, mender.options):
            pass
    said = ""
    if mender.program and (mender.options is None or _look(device, mender)):
        said = _run(mender, device)
    if left := _look(device, mender):
        raise NotMended(
            device,
            f"{'; '.join(left)}: it cannot be mended{said}",
            "repair the volume itself, then make the backup again",
        )
    return found


def _look(device: str, mender: _Mender) -> list[str]:
    fd = os.open(device, os.O_RDONLY | os.O_CLOEXEC)
    try:
        # What a mount or a program wrote went past the cache of the device, or through it.
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        return mender.faults(lambda offset, length: os.pread(fd, length, offset))
    finally:
        os.close(fd)


def _run(mender: _Mender, device: str) -> str:
    """Run the checker; return what it said, for a message, when it did not end well."""
    program = shutil.which(mender.program[0], path=_PLACES)
    if program is None:
        raise NotMended(
            device,
            f"is not at rest, and {mender.program[0]} is missing",
            f"install {mender.package}",
        )
    done = subprocess.run(
        [program, *mender.program[1:], device],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=_SECONDS,
        check=False,
    )
    fd = os.open(device, os.O_RDWR | os.O_CLOEXEC)
    try:
        os.fsync(fd)  # a checker may leave its writes in the cache
    finally:
        os.close(fd)
    if done.returncode in mender.done:
        return ""
    lines = done.stdout.decode(errors="replace").split("\n")
    last = [line.strip() for line in lines if line.strip()][-1:]
    return f" ({mender.program[0]}: {', '.join(last) or 'failed'})"


def _told(marks: Sequence[tuple[object, str]]) -> list[str]:
    return [words for mark, words in marks if mark]


def _ext(read: Read) -> list[str]:
    block = read(1024, 1024)
    if len(block) < 1024 or block[0x38:0x3A] != b"\x53\xef":
        return []
    (incompat,) = struct.unpack_from("<I", block, 0x60)
    return _told([(incompat & 0x4, "its journal is to be replayed")])


def _xfs(read: Read) -> list[str]:
    """The log's state would need its search; a mounted one is never clean: XFS is asked always.

    A log that was unmounted ends with an unmount record, the last in the log; see `_unmounted`.
    """
    block = read(0, 512)
    if block[:4] != b"XFSB":
        return []
    return _told([(not _unmounted(read, block), "its log is to be replayed")])


def _unmounted(read: Read, block: bytes) -> bool:
    """Whether the newest record of an internal log is an unmount record.

    A record's header is a sector: magic 0xFEEDBABE, cycle, version, length, lsn.  The newest
    is the one with the highest lsn; an unmount record holds one operation of 8 bytes with the
    flag 0x20 (``xfs_log_format.h``: ``XLOG_UNMOUNT_TRANS``).
    """
    (size,) = struct.unpack_from(">I", block, 4)
    start, count = _log_place(block)
    newest, at = -1, 0
    step = 1 << 20
    for begin in range(0, count * size, step):
        part = read(start * size + begin, min(step, count * size - begin))
        for offset in range(0, len(part) - 511, 512):
            if part[offset : offset + 4] == b"\xfe\xed\xba\xbe":
                (lsn,) = struct.unpack_from(">Q", part, offset + 16)
                if lsn > newest:
                    newest, at = lsn, start * size + begin + offset
    if newest < 0:
        return True  # a log that was never written
    head = read(at, 512)
    version, length = struct.unpack_from(">II", head, 8)
    operations = struct.unpack_from(">I", head, 40)[0]
    # Version 2 records of more than 32 KiB have further headers: no unmount record is so long.
    if version not in (1, 2) or operations != 1 or length > 1 << 15:
        return False
    return bool(read(at + 512, 12)[9] & 0x20)


def _log_place(block: bytes) -> tuple[int, int]:
    """First block of an internal log on the device, and its blocks."""
    (start,) = struct.unpack_from(">Q", block, 48)
    (agblocks,) = struct.unpack_from(">I", block, 84)
    (count,) = struct.unpack_from(">I", block, 96)
    shift = block[124]
    return (start >> shift) * agblocks + (start & ((1 << shift) - 1)), count


def _btrfs(read: Read) -> list[str]:
    block = read(0x10000, 4096)
    if block[64:72] != b"_BHRfS_M":
        return []
    (log,) = struct.unpack_from("<Q", block, 96)
    return _told([(log, "its log tree is to be replayed")])


def _fat(read: Read) -> list[str]:
    boot = read(0, 512)
    sector, cluster, reserved = struct.unpack_from("<HBH", boot, 11)
    if boot[510:512] != b"\x55\xaa" or sector not in (512, 1024, 2048, 4096) or not cluster:
        return []
    root, _, _, short = struct.unpack_from("<HHBH", boot, 17)
    (long,) = struct.unpack_from("<I", boot, 36)
    sectors = struct.unpack_from("<H", boot, 19)[0] or struct.unpack_from("<I", boot, 32)[0]
    length, tables = short or long, boot[16]
    state = boot[0x25] if short else boot[0x41]
    data = reserved + tables * length + -(-root * 32 // sector)
    clusters = (sectors - data) // cluster
    entry = read(reserved * sector, 8)
    marks: list[tuple[object, str]] = [(state & 1, "its boot sector marks it dirty")]
    # FAT12 has no such bits: its entries are too short for them.
    if not short:
        marks.append((not entry[7] & 0x08, "its table marks it dirty"))
    elif clusters >= 4085:
        marks.append((not entry[3] & 0x80, "its table marks it dirty"))
    return _told(marks)


def _exfat(read: Read) -> list[str]:
    boot = read(0, 512)
    if boot[3:11] != b"EXFAT   ":
        return []
    (flags,) = struct.unpack_from("<H", boot, 106)
    return _told([(flags & 2, "its boot sector marks it dirty")])


def _ntfs(read: Read) -> list[str]:
    boot = read(0, 512)
    if boot[3:11] != b"NTFS    ":
        return []
    (sector,) = struct.unpack_from("<H", boot, 11)
    factor, mft = boot[13], struct.unpack_from("<Q", boot, 48)[0]
    cluster = sector * (factor if factor <= 128 else 1 << (256 - factor))
    per = struct.unpack_from("<b", boot, 64)[0]
    size = per * cluster if per > 0 else 1 << -per
    if not 256 <= size <= 1 << 16:
        return []
    record = read(mft * cluster + 3 * size, size)  # $Volume
    (at,) = struct.unpack_from("<H", record, 20)
    while at + 24 <= size:
        kind, length = struct.unpack_from("<II", record, at)
        if kind == 0x70:  # $VOLUME_INFORMATION, always resident
            (value,) = struct.unpack_from("<H", record, at + 20)
            (flags,) = struct.unpack_from("<H", record, at + value + 10)
            return _told([(flags & 1, "its volume record marks it dirty")])
        if kind == 0xFFFFFFFF or not length:
            break
        at += length
    return []


_MENDERS = {
    **dict.fromkeys(("ext2", "ext3", "ext4"), _Mender(_ext, options="")),
    "xfs": _Mender(_xfs, options=""),
    "btrfs": _Mender(_btrfs, options=""),
    # -a: repairs what needs no answer; 1: it has repaired.
    **dict.fromkeys(
        ("vfat", "msdos"),
        _Mender(_fat, program=("fsck.vfat", "-a", "-w"), package="dosfstools", done=(0, 1)),
    ),
    "exfat": _Mender(_exfat, program=("fsck.exfat", "-p"), package="exfatprogs", done=(0, 1)),
    # The kernel replays $LogFile when it is told ``force``, and leaves the mark that it found.
    "ntfs3": _Mender(_ntfs, options="force", program=("ntfsfix", "-d"), package="ntfs-3g"),
    "ntfs-3g": _Mender(_ntfs, program=("ntfsfix", "-d"), package="ntfs-3g"),
}
