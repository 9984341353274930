"""Whether an NTFS volume is at rest: its dirty mark, its log, and a hibernated Windows.

The rules are those by which ntfs-3g and the kernel decide what they may write to.
"""

from __future__ import annotations

import numpy as np

from cbtlab.errors import NotAtRest
from cbtlab.files.ntfs import layout as on_disk
from cbtlab.files.ntfs.records import fix_up
from cbtlab.files.ntfs.system import Ntfs
from cbtlab.files.volume import structure

_REMEDY = "mount the snapshot once in Windows or with ntfs3, or run ntfsfix or chkdsk on it"
_HIBERNATED = "shut Windows down fully (shutdown /s, without fast startup) before the snapshot"
_LARGEST_PAGE = 1 << 16
#: How hiberfil.sys begins while Windows sleeps, or could not wake up; since 8 in capitals.
SLEEPING = (b"hibr", b"rstr")


def check_state(ntfs: Ntfs) -> str:
    """Return the version (``3.1``).  Raises NotAtRest for a volume to be mended first."""
    value = ntfs.find(on_disk.VOLUME_FILE, on_disk.VOLUME_INFORMATION)
    if value is None or value.size < on_disk.VOLUME.itemsize:
        raise ntfs.fault("$Volume has no information")
    about = structure(value.read(0, on_disk.VOLUME.itemsize), on_disk.VOLUME)
    major, minor, flags = int(about["major"]), int(about["minor"]), int(about["flags"])
    version = f"{major}.{minor}"
    if version not in ("1.2", "3.0", "3.1"):
        raise ntfs.volume.fault(f"is NTFS {version}, which is unknown", "give a version 1.2 to 3.1")
    for bit, words in (
        (on_disk.VOLUME_DIRTY, "the volume is marked dirty"),
        (on_disk.VOLUME_CHECKING, "chkdsk has not ended on the volume"),
        (on_disk.VOLUME_RESIZE, "the log of the volume is being resized"),
    ):
        if flags & bit:
            raise ntfs.volume.not_at_rest(words, _REMEDY)
    if flags:
        ntfs.notes.append(f"$Volume has the flags {flags:#x}")
    _check_log(ntfs)
    return version


def _check_log(ntfs: Ntfs) -> None:
    """Look at the two restart pages.  A log full of 0xff is one that was emptied."""
    value = ntfs.find(on_disk.LOG_FILE, on_disk.DATA)
    if value is None or value.size < 2 * 4096:
        raise ntfs.fault("$LogFile is missing or too short")
    restarts = [_restart(value.read(0, min(_LARGEST_PAGE, value.size)))]
    page = restarts[0][0] if restarts[0] else 4096
    if page + 512 <= value.size:
        restarts.append(_restart(value.read(page, min(_LARGEST_PAGE, value.size - page))))
    sound = [found for found in restarts if found]
    if not sound:
        start = value.read(0, min(1 << 18, value.size))
        if start.strip(b"\xff"):
            raise ntfs.volume.not_at_rest("$LogFile has no sound restart page", _REMEDY)
        return
    _, major, _, in_use, flags = max(sound, key=lambda found: found[2])
    if major >= 2:
        # Windows goes back to 1.1 when it really lets go of a volume.
        raise ntfs.volume.not_at_rest(
            "Windows keeps parts of the volume in memory (fast startup, or still in use)",
            _HIBERNATED,
        )
    if in_use != on_disk.NO_CLIENT and not flags & on_disk.RESTART_CLEAN:
        raise ntfs.volume.not_at_rest("$LogFile needs a replay", _REMEDY)


def _restart(data: bytes) -> tuple[int, int, int, int, int] | None:
    """Of a sound restart page: page size, major version, sequence, client in use, flags."""
    if data[:4] != b"RSTR" or len(data) < 512:
        return None
    head = structure(data, on_disk.RESTART)
    page = int(head["system_page"])
    if page & (page - 1) or not 512 <= page <= min(_LARGEST_PAGE, len(data)):
        return None
    row = np.frombuffer(data[:page], np.uint8).reshape(1, page).copy()
    at = int(head["area"])
    if not fix_up(row, b"RSTR")[0] or at + on_disk.RESTART_AREA.itemsize > 510:
        return None
    area = structure(row[0, at:], on_disk.RESTART_AREA)
    values = int(head["major"]), int(area["lsn"]), int(area["in_use"]), int(area["flags"])
    return page, *values


def asleep(ntfs: Ntfs, start: bytes) -> NotAtRest | None:
    """The error to raise when ``hiberfil.sys`` begins with these bytes, or None."""
    if start[:4].lower() not in SLEEPING:
        return None
    return ntfs.volume.not_at_rest("Windows is hibernated on the volume", _HIBERNATED)
