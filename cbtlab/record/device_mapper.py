"""Device-mapper without its tools: tables, suspend and resume, by ioctl; stdlib only.

Between suspend and resume nothing may be loaded from a disk that is suspended,
so no program is started there.  A device is used as ``/dev/dm-N``, which the
kernel makes itself: no udev is waited for.  ``Snapshots`` is the snapshot
provider for a volume that is a ``snapshot-origin``.

Layouts: ``include/uapi/linux/dm-ioctl.h``; target lines:
``Documentation/admin-guide/device-mapper/snapshot.rst``.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cbtlab.errors import InputError

CONTROL = "/dev/mapper/control"
SECTOR = 512

# version[3] data_size data_start target_count open_count flags event_nr padding dev name uuid data
_HEAD = struct.Struct("=3IIIIiIIIQ128s129s7x")
_SPEC = struct.Struct("=QQiI16s")
_NAME = struct.Struct("=QI")  # dev next, then the name
_BUFFER = 16384
_BUFFER_MAX = 1 << 24
# For an argument up to this size fcntl.ioctl lets other threads run meanwhile: a suspend waits
# for writers, which may be such threads.
_SMALL = 1024
_VERSION = (4, 0, 0)

_LIST, _CREATE, _REMOVE, _SUSPEND, _STATUS, _LOAD, _TABLE = 2, 3, 4, 6, 7, 9, 12

_F_SUSPEND = 1 << 1
_F_STATUS_TABLE = 1 << 4
_F_BUFFER_FULL = 1 << 8


@dataclass(frozen=True)
class Target:
    """One line of a table; ``start`` and ``length`` are in sectors of 512 bytes."""

    start: int
    length: int
    kind: str
    words: str


@dataclass(frozen=True)
class Info:
    """A device: its number, whether it is suspended, how often it is open, and its events.

    ``event`` counts what its targets reported: a snapshot torn, a merge ended.
    """

    name: str
    minor: int
    suspended: bool
    opened: int
    event: int = 0

    @property
    def node(self) -> str:
        """The device's node."""
        return f"/dev/dm-{self.minor}"


class DeviceMapper:
    """The control device, held open."""

    def __init__(self) -> None:
        try:
            self._fd = os.open(CONTROL, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise InputError(
                CONTROL, f"cannot be opened: {error.strerror}", "run as root, with dm-mod loaded"
            ) from error

    def close(self) -> None:
        """Close the control device; the volumes stay."""
        os.close(self._fd)

    def create(self, name: str, table: Sequence[Target]) -> Info:
        """Make a device with this table, active, and return it."""
        self._call(_CREATE, name)
        try:
            self.load(name, table)
            info = self.resume(name)
        except BaseException:
            self._call(_REMOVE, name)
            raise
        return info

    def load(self, name: str, table: Sequence[Target]) -> None:
        """Load a table; it becomes the active one at the next resume."""
        specs = b""
        for target in table:
            words = target.words.encode() + b"\0"
            words += b"\0" * (-len(words) % 8)
            size = _SPEC.size + len(words)
            specs += _SPEC.pack(target.start, target.length, 0, size, target.kind.encode()) + words
        self._call(_LOAD, name, data=specs, count=len(table))

    def suspend(self, name: str) -> Info:
        """Freeze the file system on a device, wait for what is in flight, hold what comes."""
        return self._info(name, self._call(_SUSPEND, name, flags=_F_SUSPEND))

    def resume(self, name: str) -> Info:
        """Let a device go on, with the table that was loaded last."""
        return self._info(name, self._call(_SUSPEND, name))

    def remove(self, name: str, patience: float = 10.0) -> None:
        """Remove a device; wait ``patience`` seconds for others to close it."""
        end = time.monotonic() + patience
        while True:
            try:
                self._call(_REMOVE, name)
                return
            except OSError as error:
                if error.errno != errno.EBUSY or time.monotonic() > end:
                    raise
            time.sleep(0.05)

    def info(self, name: str) -> Info:
        """Return the state of a device; OSError ENXIO when there is none."""
        return self._info(name, self._call(_STATUS, name))

    def names(self) -> list[str]:
        """Return the names of all devices."""
        reply = self._call(_LIST, "")
        at, found = _HEAD.unpack_from(reply)[4], []
        while True:
            dev, following = _NAME.unpack_from(reply, at)
            if dev:  # 0: there is none at all
                name = reply[at + _NAME.size : reply.index(b"\0", at + _NAME.size)]
                found.append(os.fsdecode(name))
            if not following:
                return found
            at += following

    def table(self, name: str) -> list[Target]:
        """Return the active table."""
        return self._targets(name, _F_STATUS_TABLE)

    def status(self, name: str) -> list[Target]:
        """Return each target with its status in ``words``."""
        return self._targets(name, 0)

    def _targets(self, name: str, flags: int) -> list[Target]:
        reply = self._call(_TABLE, name, flags=flags)
        fields = _HEAD.unpack_from(reply)
        start, count = fields[4], fields[5]
        targets, place = [], start
        for _ in range(count):
            first, length, _, following, kind = _SPEC.unpack_from(reply, place)
            words = reply[place + _SPEC.size : start + following].split(b"\0")[0]
            name_of_kind = kind.split(b"\0")[0].decode()
            targets.append(Target(first, length, name_of_kind, words.decode()))
            place = start + following
        return targets

    def _call(
        self, number: int, name: str, *, flags: int = 0, data: bytes = b"", count: int = 0
    ) -> bytes:
        least = _BUFFER if number in (_TABLE, _LIST) else _SMALL
        size = max(least, _HEAD.size + len(data))
        while True:
            buffer = bytearray(size)
            _HEAD.pack_into(
                buffer, 0, *_VERSION, len(buffer), _HEAD.size, count, 0, flags, 0, 0, 0,
                os.fsencode(name), b"",
            )  # fmt: skip
            buffer[_HEAD.size : _HEAD.size + len(data)] = data
            # _IOWR(0xfd, number, struct dm_ioctl)
            request = 3 << 30 | _HEAD.size << 16 | 0xFD << 8 | number
            fcntl.ioctl(self._fd, request, buffer)
            if not _HEAD.unpack_from(buffer)[7] & _F_BUFFER_FULL:
                return bytes(buffer)
            size *= 4
            if size > _BUFFER_MAX:
                raise OSError(errno.ENOBUFS, "device-mapper's answer is too long", name)

    @staticmethod
    def _info(name: str, reply: bytes) -> Info:
        fields = _HEAD.unpack_from(reply)
        opened, flags, event, dev = fields[6], fields[7], fields[8], fields[10]
        minor = dev & 0xFF | dev >> 12 & 0xFFF00
        return Info(name, minor, bool(flags & _F_SUSPEND), opened, event)


@dataclass(frozen=True)
class Fill:
    """How full a snapshot's store is, in bytes; ``valid`` is false when it was torn."""

    valid: bool
    used: int
    total: int
    words: str


class Snapshots:
    """Writable snapshots of ``volume``, a device of the one target ``snapshot-origin``.

    Changed chunks (``chunk`` bytes) go to ``store``, a block device that is
    used for one snapshot at a time and must not lie on the volume.
    """

    def __init__(self, mapper: DeviceMapper, volume: str, store: str, chunk: int = 4096) -> None:
        self.mapper = mapper
        self.volume = volume
        self.store = store
        self.chunk = chunk
        targets = mapper.table(volume)
        if len(targets) != 1 or targets[0].kind != "snapshot-origin":
            kinds = " ".join(target.kind for target in targets)
            raise InputError(
                volume,
                f"its table is {kinds or 'empty'}",
                "give a volume that is a snapshot-origin",
            )
        self._table = targets
        self._sectors = targets[0].length
        self._origin = targets[0].words.split()[0]
        self._event = mapper.info(volume).event

    @property
    def size(self) -> int:
        """The volume's size in bytes."""
        return self._sectors * SECTOR

    def changes(self) -> list[str]:
        """Return why the volume may have changed unseen since this was asked last, or was made.

        To be asked while the volume is suspended, at the end of an interval:
        what it tells is of that interval.  A tracker of the volume does not see
        what a merge writes below it, nor what another table reads.
        """
        found = []
        table = self.mapper.table(self.volume)
        if table != self._table:
            words = ", ".join(f"{t.start} {t.length} {t.kind} {t.words}" for t in table)
            found.append(f"its device-mapper table is not the one it had: {words or 'empty'}")
        event = self.mapper.info(self.volume).event
        if event != self._event:
            found.append(f"device-mapper told of {event - self._event} events of it")
        self._event = event
        found += [f"{name} merges a snapshot into it" for name in self._merges()]
        return found

    def _merges(self) -> list[str]:
        """Return the other devices that merge a snapshot into the origin."""
        found = []
        for name in self.mapper.names():
            if name == self.volume:
                continue
            try:
                table = self.mapper.table(name)
            except OSError as error:
                if error.errno != errno.ENXIO:  # it was removed meanwhile
                    raise
                continue
            if any(
                t.kind == "snapshot-merge" and t.words.split()[0] == self._origin for t in table
            ):
                found.append(name)
        return found

    def prepare(self) -> None:
        """Empty the store: a used one would give its old chunks to the next snapshot."""
        fd = os.open(self.store, os.O_WRONLY | os.O_EXCL | os.O_SYNC | os.O_CLOEXEC)
        try:
            os.pwrite(fd, bytes(max(4096, self.chunk)), 0)
            os.fsync(fd)
        finally:
            os.close(fd)

    def create(self, name: str) -> Info:
        """Make the snapshot; the volume must be suspended, and the store prepared."""
        if not self.mapper.info(self.volume).suspended:
            raise RuntimeError(
                "the volume is not suspended: its snapshot would not be of one instant"
            )
        words = f"{self._origin} {self.store} P {self.chunk // SECTOR}"
        return self.mapper.create(name, [Target(0, self._sectors, "snapshot", words)])

    def fill(self, name: str) -> Fill:
        """Return how full the store is: ``Invalid`` and ``Overflow`` are not valid."""
        words = self.mapper.status(name)[0].words
        first = words.split()[0] if words else ""
        if "/" not in first:
            return Fill(False, 0, 0, words)
        used, total = (int(part) * SECTOR for part in first.split("/"))
        return Fill(True, used, total, words)

    def remove(self, name: str) -> None:
        """Remove the snapshot.  What is in its store is of no use afterwards."""
        self.mapper.remove(name)


def size_of(device: str | Path) -> int:
    """Return the size of a block device in bytes."""
    fd = os.open(device, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.lseek(fd, 0, os.SEEK_END)
    finally:
        os.close(fd)
