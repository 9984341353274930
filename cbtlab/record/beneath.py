"""Walks a mounted file system and deletes on it, without a way out of it; stdlib only.

Every folder is opened by ``openat2`` (Linux 5.6) below the root's own descriptor: no symlink
is followed, ``..`` leads nowhere, and no mount is crossed, whoever changes the names
meanwhile.  What the walk cannot enter is an error: what is excluded must not stay because
nobody saw it.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

_SYS_OPENAT2 = 437  # the same number on every architecture
_NO_XDEV, _NO_MAGICLINKS, _NO_SYMLINKS, _BENEATH = 0x01, 0x02, 0x04, 0x08
_RESOLVE = _NO_XDEV | _NO_MAGICLINKS | _NO_SYMLINKS | _BENEATH
_LONGEST = 3000  # bytes of a path that are given to the kernel at once, which takes 4095
_TRIES = 8  # a rename somewhere makes the kernel give up with EAGAIN

_GETFLAGS, _SETFLAGS = 0x80086601, 0x40086602
_IMMUTABLE, _APPEND = 0x10, 0x20

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class Folder:
    """A folder that is open: its path in bytes, relative to the root, and its descriptor."""

    path: bytes
    fd: int

    def join(self, name: bytes) -> bytes:
        """The path of a name in it."""
        return self.path + b"/" + name if self.path else name


def open_beneath(root: int, path: bytes, flags: int) -> int:
    """Open ``path`` below the folder ``root``; OSError where it leads elsewhere.

    ELOOP for a symlink in it, EXDEV for a mount or a way out, ENOSYS on a kernel without
    ``openat2``.
    """
    names, fd = path.split(b"/"), os.dup(root)
    try:
        while names:
            part = [names.pop(0)]
            while names and sum(map(len, part)) + len(part) + len(names[0]) < _LONGEST:
                part.append(names.pop(0))
            more = os.O_PATH | os.O_DIRECTORY if names else flags
            below = _openat2(fd, b"/".join(part), more | os.O_NOFOLLOW | os.O_CLOEXEC)
            os.close(fd)
            fd = below
    except BaseException:
        os.close(fd)
        raise
    return fd


def _openat2(fd: int, path: bytes, flags: int) -> int:
    how = struct.pack("=QQQ", flags, 0, _RESOLVE)
    for left in reversed(range(_TRIES)):
        got = _libc.syscall(_SYS_OPENAT2, fd, path, how, len(how))
        if got >= 0:
            return int(got)
        number = ctypes.get_errno()
        if number != errno.EAGAIN or not left:
            break
    told = os.fsdecode(path)
    if number == errno.ENOSYS:
        raise OSError(number, "the kernel has no openat2 (Linux 5.6): nothing is deleted", told)
    if number == errno.EXDEV:
        raise OSError(number, "leads out of the snapshot, or something is mounted there", told)
    raise OSError(number, os.strerror(number), told)


def walk(root: str | os.PathLike[str]) -> Iterator[tuple[Folder, list[bytes]]]:
    """Yield every folder below ``root``, itself first, and the names in it that are no folders.

    OSError for a folder that cannot be entered, that lies on another file system, or that
    became something else meanwhile.
    """
    top = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        home = _Home.of(top)
        waiting = [b""]
        while waiting:
            path = waiting.pop()
            fd = open_beneath(top, path or b".", os.O_RDONLY | os.O_DIRECTORY)
            try:
                home.check(fd, path)
                leaves, folders = _entries(fd)
                folder = Folder(path, fd)
                waiting += [folder.join(name) for name in reversed(folders)]
                yield folder, leaves
            finally:
                os.close(fd)
    finally:
        os.close(top)


@dataclass(frozen=True)
class _Home:
    """The file system that is walked: its device, and which mount of it."""

    device: int
    mount: bytes

    @classmethod
    def of(cls, fd: int) -> _Home:
        return cls(os.fstat(fd).st_dev, mount_id(fd))

    def check(self, fd: int, path: bytes) -> None:
        """A second look at what ``openat2`` promised.

        Subvolumes of btrfs have anonymous numbers of their own: there the mount alone tells.
        """
        device = os.fstat(fd).st_dev
        subvolume = os.major(self.device) == os.major(device) == 0
        if not (device == self.device or subvolume) or mount_id(fd) != self.mount:
            raise OSError(errno.EXDEV, "lies on another file system", os.fsdecode(path))


def mount_id(fd: int) -> bytes:
    """The number of the mount that an open folder is reached by, as in /proc/self/mountinfo."""
    with open(f"/proc/self/fdinfo/{fd}", "rb") as file:  # noqa: PTH123
        for line in file:
            if line.startswith(b"mnt_id:"):
                return line.split()[1]
    raise OSError(errno.ENOTSUP, "the kernel does not tell which mount a folder is on")


def _entries(fd: int) -> tuple[list[bytes], list[bytes]]:
    """The names in a folder: what is no folder, and the folders; each sorted."""
    leaves: list[bytes] = []
    folders: list[bytes] = []
    with os.scandir(fd) as entries:
        for entry in entries:
            kind = folders if entry.is_dir(follow_symlinks=False) else leaves
            kind.append(os.fsencode(entry.name))
    return sorted(leaves), sorted(folders)


def unlink(folder: Folder, name: bytes) -> None:
    """Delete a name, also one that is immutable or append-only, or in such a folder.

    What stays (the folder, an inode with another name) gets its flags back.  OSError.
    """
    try:
        os.unlink(name, dir_fd=folder.fd)
        return
    except PermissionError as error:
        refused = error
    with _unlocked(folder.fd), _file_unlocked(folder, name):
        try:
            os.unlink(name, dir_fd=folder.fd)
        except PermissionError:
            raise refused from None


@contextmanager
def _file_unlocked(folder: Folder, name: bytes) -> Iterator[None]:
    """Take the flags off a regular file meanwhile; nothing else can have them."""
    if not stat.S_ISREG(os.lstat(name, dir_fd=folder.fd).st_mode):
        yield
        return
    fd = open_beneath(folder.fd, name, os.O_RDONLY | os.O_NONBLOCK)
    try:
        with _unlocked(fd):
            yield
    finally:
        os.close(fd)


@contextmanager
def _unlocked(fd: int) -> Iterator[None]:
    """Take FS_IMMUTABLE_FL and FS_APPEND_FL off an inode meanwhile."""
    flags = _flags(fd)
    if not flags & (_IMMUTABLE | _APPEND):
        yield
        return
    _set_flags(fd, flags & ~(_IMMUTABLE | _APPEND))
    try:
        yield
    finally:
        if os.fstat(fd).st_nlink:
            _set_flags(fd, flags)


def _flags(fd: int) -> int:
    buffer = bytearray(8)
    with suppress(OSError):  # a file system without flags has none
        fcntl.ioctl(fd, _GETFLAGS, buffer)
    return int.from_bytes(buffer[:4], "little")


def _set_flags(fd: int, flags: int) -> None:
    fcntl.ioctl(fd, _SETFLAGS, flags.to_bytes(4, "little") + bytes(4))
