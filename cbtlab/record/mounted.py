"""Mounts a snapshot, deletes the excluded files on it, and unmounts it again; stdlib only.

Only names below the mount are touched: folders are walked by descriptor, no
symlink is followed and no border of a file system is crossed.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

# Looking for excluded files must not change the kept ones' access times.
_FLAGS = 2 | 4 | 8 | 1024 | 2048  # nosuid, nodev, noexec, noatime, nodiratime
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class Deleted:
    """One name that was removed; ``size`` in bytes."""

    path: str
    inode: int
    size: int


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
    """Mount for the length of a ``with``."""
    mount(device, place, kind, options)
    try:
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


def delete(root: Path, excluded: Callable[[str], bool]) -> list[Deleted]:
    """Delete what ``excluded`` names below ``root``: everything but folders.

    ``excluded`` gets each path relative to ``root``, without a slash in front.
    OSError, also for a folder that cannot be read: what is excluded must not
    stay because nobody saw it.
    """
    gone = []
    device = root.stat().st_dev
    for folder, folders, names, fd in os.fwalk(root, onerror=_raise, follow_symlinks=False):
        if os.fstat(fd).st_dev != device:
            folders.clear()
            continue
        above = os.path.relpath(folder, root)
        links = [n for n in folders if stat.S_ISLNK(os.lstat(n, dir_fd=fd).st_mode)]
        folders[:] = [n for n in folders if n not in links]  # not entered, and soon gone
        for name in names + links:
            path = name if above == "." else f"{above}/{name}"
            if excluded(path):
                found = os.lstat(name, dir_fd=fd)
                os.unlink(name, dir_fd=fd)
                gone.append(Deleted("/" + path, found.st_ino, found.st_size))
    return gone


def _raise(error: OSError) -> None:
    raise error


def _check(done: int, what: str) -> None:
    if done != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what)
