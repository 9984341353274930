"""Deletes what the rules name on a mounted snapshot; stdlib only.

The walk and the unlinking are `beneath`'s.  The rules get what they ask of a file (size, time,
owner) when they ask.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Protocol

from cbtlab.record.beneath import Folder, mount_id, unlink, walk
from cbtlab.record.sid import owner_sid

# What ntfs3 and ntfs-3g call a file's security descriptor.
_DESCRIPTORS = ("system.ntfs_security", "system.ntfs_acl")
_WITHOUT_UIDS = ("ntfs3", "ntfs", "fuseblk", "vfat", "msdos", "exfat")
_STREAMS_AS_ATTRIBUTES = ("fuseblk",)  # ntfs-3g shows FILE:STREAM as user.STREAM


@dataclass(frozen=True)
class Deleted:
    """One name that was removed; ``size`` in bytes.  A named stream has the path FILE:STREAM."""

    path: str
    inode: int
    size: int


class Judge(Protocol):
    """Rules that ask of a file; `cbtlab.rules.Rules` is one."""

    def names(self, path: str, facts: Any = None, /) -> bool: ...

    def names_stream(self, path: str, stream: str, facts: Any, own: Any, /) -> bool: ...


class _Paths:
    """Rules that ask of nothing but the path."""

    def __init__(self, excluded: Callable[[str], bool]) -> None:
        self._excluded = excluded

    def names(self, path: str, facts: Any = None, /) -> bool:
        return self._excluded(path)

    def names_stream(self, path: str, stream: str, facts: Any, own: Any, /) -> bool:
        return self._excluded(path) or self._excluded(f"{path.rstrip('/')}:{stream}")


@dataclass(frozen=True)
class _Kind:
    """What the mounted file system is: its name, and what that means here."""

    name: str

    @property
    def has_uids(self) -> bool:
        return self.name not in _WITHOUT_UIDS

    @property
    def has_streams(self) -> bool:
        return self.name in _STREAMS_AS_ATTRIBUTES


@dataclass
class Seen:
    """The facts of one name, asked when needed; see `cbtlab.rules.Facts`."""

    folder: Folder
    name: bytes
    kind: _Kind
    own_size: int | None = None

    @cached_property
    def about(self) -> os.stat_result:
        """What ``lstat`` says."""
        return os.lstat(self.name, dir_fd=self.folder.fd)

    @property
    def size(self) -> int:
        """Bytes of the content, or of the stream that is meant."""
        return self.about.st_size if self.own_size is None else self.own_size

    @property
    def mtime_ns(self) -> int:
        """Nanoseconds since 1970 UTC."""
        return self.about.st_mtime_ns

    @property
    def uid(self) -> int | None:
        """The owner's number, or None where the file system has none."""
        return self.about.st_uid if self.kind.has_uids else None

    @cached_property
    def sid(self) -> str | None:
        """The owner's SID, or None where it cannot be had."""
        for attribute in _DESCRIPTORS:
            with suppress(OSError):
                return owner_sid(os.getxattr(self.place, attribute, follow_symlinks=False))
        return None

    @property
    def place(self) -> bytes:
        """A path to the name through the open folder."""
        return b"/proc/self/fd/%d/%s" % (self.folder.fd, self.name)


@dataclass
class _Deletion:
    judge: Judge
    kind: _Kind
    gone: list[Deleted] = field(default_factory=list)
    remaining: list[tuple[str, OSError]] = field(default_factory=list)

    def folder(self, folder: Folder, leaves: list[bytes]) -> None:
        """Delete what is named of one folder's names, and of its own streams."""
        if self.kind.has_streams and folder.path:
            self._streams(Seen(folder, b".", self.kind), _text(folder.path) + "/")
        for name in leaves:
            path = _text(folder.join(name))
            seen = Seen(folder, name, self.kind)
            if self.judge.names(path, seen):
                about = seen.about
                self._try(path, about.st_ino, about.st_size, partial(unlink, folder, name))
            elif self.kind.has_streams:
                self._streams(seen, path)

    def _streams(self, seen: Seen, path: str) -> None:
        for attribute in _stream_attributes(seen):
            stream = os.fsdecode(attribute).removeprefix("user.")
            size = len(os.getxattr(seen.place, attribute, follow_symlinks=False))
            own = Seen(seen.folder, seen.name, self.kind, size)
            if self.judge.names_stream(path, stream, seen, own):
                self._try(
                    f"{path.rstrip('/')}:{stream}",
                    seen.about.st_ino,
                    size,
                    partial(os.removexattr, seen.place, attribute, follow_symlinks=False),
                )

    def _try(self, path: str, inode: int, size: int, act: Callable[[], None]) -> None:
        try:
            act()
        except OSError as error:
            self.remaining.append((path, error))
        else:
            self.gone.append(Deleted("/" + path, inode, size))


def delete(root: str | Path, excluded: Callable[[str], bool] | Judge) -> list[Deleted]:
    """Delete what ``excluded`` names below ``root``: everything but folders, and named streams.

    ``excluded`` is `cbtlab.rules.Rules`, or gets each path relative to ``root``, without a
    slash in front; bytes that are not UTF-8 are surrogates in it.  No name outside of ``root``
    and of its file system is touched, whatever happens to the tree meanwhile.

    OSError where something is mounted below ``root``, for a folder that cannot be read or
    became something else, and, when all else is deleted, for excluded names that remain.
    """
    judge: Any = excluded if hasattr(excluded, "names") else _Paths(excluded)
    kind = _Kind(_of_mount(Path(root)))
    done = _Deletion(judge, kind)
    for folder, leaves in walk(root):
        done.folder(folder, leaves)
    if done.remaining:
        path, error = done.remaining[0]
        more = f", and {len(done.remaining) - 1} more" if len(done.remaining) > 1 else ""
        raise OSError(
            error.errno, f"an excluded file remains: {error.strerror}{more}", "/" + path
        ) from error
    return done.gone


def _stream_attributes(seen: Seen) -> list[bytes]:
    """The names of the attributes that are streams: only files and folders have them."""
    mode = seen.about.st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        return []
    found = [os.fsencode(name) for name in os.listxattr(seen.place, follow_symlinks=False)]
    return [name for name in found if name.startswith(b"user.")]


def _of_mount(root: Path) -> str:
    """The kind of file system that ``root`` lies on; OSError where one is mounted below it."""
    fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        own = mount_id(fd)
    finally:
        os.close(fd)
    below = os.fsencode(root.resolve()).rstrip(b"/") + b"/"
    kind = ""
    for number, place, name in _mounts():
        if number == own:
            kind = name
        if place.startswith(below):
            raise OSError(
                errno.EXDEV, "something is mounted below the snapshot", os.fsdecode(place)
            )
    return kind


def _mounts() -> Iterator[tuple[bytes, bytes, str]]:
    """Number, place and kind of every mount, from /proc/self/mountinfo."""
    for line in Path("/proc/self/mountinfo").read_bytes().splitlines():
        own, _, kind = line.partition(b" - ")
        fields = own.split()
        place = fields[4].replace(b"\\040", b" ").replace(b"\\011", b"\t")
        place = place.replace(b"\\012", b"\n").replace(b"\\134", b"\\")
        yield fields[0], place, os.fsdecode(kind.split()[0])


def _text(path: bytes) -> str:
    return path.decode(errors="surrogateescape")
