"""Folders that several programs may write: a lock, an exchange, and what is a plain file."""

from __future__ import annotations

import ctypes
import fcntl
import os
import stat
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from cbtlab.errors import InputError

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2  # linux/fs.h


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other writers out of a folder; raises InputError where there is one."""
    try:
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise InputError(folder, f"cannot be opened: {error.strerror}") from error
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(
                folder, "is being written by another program", "wait until it is done"
            ) from error
        except OSError as error:
            raise InputError(folder, f"cannot be locked: {error.strerror}") from error
        yield
    finally:
        os.close(fd)


def refuse_links(folder: Path, names: Iterable[str]) -> None:
    """Raise InputError where one of the folders inside ``folder`` is a link, or is no folder."""
    for name in names:
        path = folder / name
        if path.is_symlink() or (path.exists() and not path.is_dir()):
            raise InputError(path, "is no folder but a link or a file", "put the folder itself")


def require_regular(path: str | os.PathLike[str]) -> None:
    """Raise InputError for a pipe, a device or a socket: reading one may never end.

    What does not exist, and a folder, is left to whoever opens it.
    """
    try:
        mode = Path(path).stat().st_mode
    except (OSError, ValueError):
        return
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise InputError(path, "is no regular file", "save it to a file first")


def exchange(new: Path, old: Path) -> None:
    """Put ``new`` where ``old`` is, and ``old`` where ``new`` was, in one step where that exists.

    Where the system cannot, two renames do it: a kill between them leaves
    both under other names, and loses neither.
    """
    if _exchanged(new, old):
        return
    aside = Path(tempfile.mkdtemp(prefix=f".{old.name}-old-", dir=old.parent))
    moved = aside / old.name
    old.rename(moved)
    try:
        new.rename(old)
    except OSError:
        moved.rename(old)
        raise
    else:
        moved.rename(new)
    finally:
        aside.rmdir()


def _exchanged(new: Path, old: Path) -> bool:
    try:
        call = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError):
        return False
    names = os.fsencode(new), os.fsencode(old)
    done: int = call(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE)
    return done == 0
