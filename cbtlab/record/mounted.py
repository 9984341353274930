"""Mounts a snapshot, lets the excluded files be deleted on it, and unmounts it again.

stdlib only.  What is mounted is the device that was named, and not another with its UUID
(`one_uuid`); the delete cannot leave it (`deleting`).
"""

from __future__ import annotations

import ctypes
import errno
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cbtlab.record.deleting import Deleted, delete
from cbtlab.record.one_uuid import check_mounted, options_for, refuse_twin

__all__ = ["Deleted", "delete", "mount", "mounted", "settle", "unmount"]

# Looking for excluded files must not change the kept ones' access times.
_FLAGS = 2 | 4 | 8 | 1024 | 2048  # nosuid, nodev, noexec, noatime, nodiratime
_libc = ctypes.CDLL(None, use_errno=True)


def mount(device: str, place: str | Path, kind: str, options: str = "") -> None:
    """Mount ``device`` with a file system of ``kind`` at ``place``; OSError."""
    done = _libc.mount(
        device.encode(), os.fsencode(place), kind.encode(), _FLAGS,
        options.encode(),
    )  # fmt: skip
    _check(done, f"{device} at {place}")


def unmount(place: str | Path, patience: float = 10.0) -> None:
    """Unmount ``place``, waiting ``patience`` seconds for those who still use it; OSError."""
    end = time.monotonic() + patience
    while _libc.umount2(os.fsencode(place), 0) != 0:
        if ctypes.get_errno() != errno.EBUSY or time.monotonic() > end:
            _check(-1, str(place))
        time.sleep(0.05)


@contextmanager
def mounted(device: str, place: str | Path, kind: str, options: str = "") -> Iterator[Path]:
    """Mount a snapshot, beside its volume, for the length of a ``with``.

    OSError, with nothing changed, where the kernel shows another device at ``place``: one of
    the same UUID.
    """
    refuse_twin(device, kind)
    mount(device, place, kind, options_for(kind, options))
    try:
        check_mounted(device, place, kind)
        yield Path(place)
    finally:
        unmount(place)


def settle(root: str | Path) -> None:
    """Write back what is dirty on the file system at ``root``, so that its writes are told apart.

    It does not end its writing: only ``unmount`` does.  OSError.
    """
    fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _check(_libc.syncfs(fd), str(root))
    finally:
        os.close(fd)


def _check(done: int, what: str) -> None:
    if done != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what)
