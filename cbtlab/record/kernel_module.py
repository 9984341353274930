"""Drives ``cbt.ko`` through /dev/cbt: attach, switch, read bitmaps and events, detach.

What each call does, and how it fails, stands in ``kernel_module/cbt.h``.  A
tracker belongs to the kernel module: it goes on when this program ends.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import select
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from struct import Struct
from types import TracebackType

from cbtlab.errors import CbtlabError, InputError
from cbtlab.record import uapi
from cbtlab.record.status import Info, Status, Switched
from cbtlab.record.stream import StreamWriter
from cbtlab.record.uapi import Kind, Role, State, Which

__all__ = [
    "ACTIVE",
    "FROZEN",
    "EventWriter",
    "Info",
    "Kind",
    "Module",
    "Refused",
    "Role",
    "State",
    "Status",
    "StreamWriter",
    "Switched",
    "Tracker",
    "Which",
]

ACTIVE, FROZEN = Which.ACTIVE, Which.FROZEN

_BITS_AT_ONCE = 1 << 20
_EVENTS_AT_ONCE = 4096
_GATHER_MS = 20
_MEANING = {
    errno.EBUSY: "busy: not suspended, or hooked by another module",
    errno.EOPNOTSUPP: "this kind of device cannot be tracked or suspended",
    errno.ENOENT: "no such tracker or device",
    errno.ENODATA: "nothing there yet",
    errno.ELOOP: "the events would be saved on the tracked volume",
}


class Refused(CbtlabError):
    """The module refused a call; ``errno`` as in cbt.h, the reason in the kernel log."""

    def __init__(self, piece: object, number: int) -> None:
        self.errno = number
        meaning = _MEANING.get(number, os.strerror(number))
        name = errno.errorcode.get(number, str(number))
        super().__init__(piece, f"refused: {meaning} ({name})", "dmesg has the reason")


class Module:
    """The open kernel module.  Raises InputError when it is not loaded."""

    def __init__(self, path: str = uapi.DEVICE) -> None:
        try:
            self.fd = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise InputError(
                path, f"cannot be opened: {error.strerror}", "insert cbt.ko, and be root"
            ) from error
        self._log: EventWriter | None = None
        version = self.info().version
        if version != uapi.VERSION:
            os.close(self.fd)
            raise InputError(path, f"has version {version}", f"this program knows {uapi.VERSION}")

    def close(self) -> None:
        """Close the device; trackers go on."""
        os.close(self.fd)

    def __enter__(self) -> Module:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def call(self, piece: object, number: int, layout: Struct, *values: object) -> tuple[int, ...]:
        """Make one ioctl and return the structure's fields as it left them."""
        argument = bytearray(layout.pack(*values))
        try:
            fcntl.ioctl(self.fd, number, argument)
        except OSError as error:
            raise Refused(piece, error.errno or 0) from error
        return layout.unpack(argument)

    def attach(
        self,
        device: str | os.PathLike[str] | tuple[int, int],
        *,
        role: Role,
        granularity: int,
        interval: int = 0,
    ) -> Tracker:
        """Track a volume, by its node or by (major, minor), from ``interval`` on."""
        path, numbers = None, (0, 0)
        if isinstance(device, tuple):
            numbers = device
        else:
            path = ctypes.create_string_buffer(os.fsencode(device))
        log = self._log.fileno() if self._log else -1
        address = ctypes.addressof(path) if path else 0
        fields = self.call(
            device if path else ":".join(map(str, numbers)),
            uapi.IOC_ATTACH,
            uapi.ATTACH,
            *(address, *numbers, granularity, interval, log, role, 0, 0, 0, 0),
        )
        tracker = Tracker(self, fields[7])
        if self._log:
            self._log.add(tracker)
        return tracker

    def tracker(self, number: int) -> Tracker:
        """Return a tracker by its id; nothing is asked of the module yet."""
        return Tracker(self, number)

    def trackers(self) -> Iterator[Status]:
        """Yield the state of all trackers, by rising id."""
        at = 0
        while True:
            try:
                status = self.status(at, uapi.STATUS_NEXT)
            except Refused as refused:
                if refused.errno != errno.ENOENT:
                    raise
                return
            yield status
            at = status.tracker + 1

    def status(self, number: int, flags: int = 0) -> Status:
        """Return the state of a tracker, or of the next one (``STATUS_NEXT``)."""
        zeros = (0,) * 8
        empty = (number, flags, b"", b"", *zeros, *zeros, 0, 0)
        piece = f"tracker {number}"
        return Status.unpacked(self.call(piece, uapi.IOC_STATUS, uapi.STATUS, *empty))

    def switch(self, trackers: Sequence[Tracker], *, running: bool = False) -> Switched:
        """End the interval of all ``trackers`` at one instant, topmost volume first.

        To be called while they are suspended.  ``running`` is for tests: it
        permits the wrong order.
        """
        ids = (ctypes.c_uint32 * len(trackers))(*(t.id for t in trackers))
        flags = uapi.SWITCH_RUNNING if running else 0
        _, _, flags, time_ns, seq, frozen_ns = self.call(
            "switch",
            uapi.IOC_SWITCH,
            uapi.SWITCH,
            *(ctypes.addressof(ids), len(trackers), flags, 0, 0, 0),
        )
        return Switched(time_ns, seq, frozen_ns, bool(flags & uapi.SWITCH_SUSPENDED))

    def ring(self, events: int) -> None:
        """Give the ring room for ``events``; a new sequence begins.  No tracker may be there."""
        self.call("ring", uapi.IOC_RING, uapi.ROOM, events)

    def info(self) -> Info:
        """Return the ring's counters and the clock anchor, all of one moment."""
        empty = (0, 0, b"", *(0,) * 8)
        fields = self.call("module", uapi.IOC_INFO, uapi.INFO, *empty)
        return Info(*fields)  # type: ignore[arg-type]

    def read(self, events: int = _EVENTS_AT_ONCE) -> bytes:
        """Take up to ``events`` events out of the ring; empty when there are none."""
        try:
            return os.read(self.fd, events * uapi.EVENT.size)
        except BlockingIOError:
            return b""


class Tracker:
    """A tracked volume."""

    def __init__(self, module: Module, number: int) -> None:
        self.module = module
        self.id = number

    def status(self) -> Status:
        """Return its state."""
        return self.module.status(self.id)

    def changed(self, which: int = ACTIVE) -> bytes:
        """Return the bitmap of changed blocks: bit n in byte n // 8, lowest first."""
        return self.bitmap(which, Kind.CHANGED)

    def discarded(self, which: int = ACTIVE) -> bytes:
        """Return the bitmap of blocks that were discarded last."""
        return self.bitmap(which, Kind.DISCARDED)

    def bitmap(self, which: int = ACTIVE, kind: int = Kind.CHANGED) -> bytes:
        """Return a whole bitmap.  CbtlabError when a switch came while it was read."""
        parts: list[bytes] = []
        intervals = set()
        buffer = ctypes.create_string_buffer(_BITS_AT_ONCE)
        offset = 0
        while True:
            fields = self.module.call(
                f"tracker {self.id}",
                uapi.IOC_BITS,
                uapi.BITS,
                *(ctypes.addressof(buffer), offset, _BITS_AT_ONCE, self.id, which, kind, 0),
            )
            length = fields[2]
            intervals.add(fields[-1])
            if len(intervals) > 1:
                raise CbtlabError(f"tracker {self.id}", "was switched while it was read")
            if not length:
                return b"".join(parts)
            parts.append(buffer.raw[:length])
            offset += length

    def clear(self) -> None:
        """Forget the frozen bitmaps, after they were saved: the next switch is shorter."""
        self.module.call(f"tracker {self.id}", uapi.IOC_CLEAR, uapi.ID, self.id)

    def detach(self) -> None:
        """Stop to track; the events stay in the ring."""
        self.module.call(f"tracker {self.id}", uapi.IOC_DETACH, uapi.ID, self.id)


class EventWriter:
    """Saves the module's events as a native stream at ``path`` while other work goes on.

    A context manager.  A thread takes the events out of the ring until the
    block is left; then the stream gets its end.  Trackers that were attached
    before, or are attached meanwhile through the same ``Module``, are named in
    the stream.  A path on a tracked volume is refused.
    """

    def __init__(self, module: Module, path: str | os.PathLike[str]) -> None:
        self.module = module
        self.path = Path(path)
        self._error: BaseException | None = None
        self._wake, self._stop = os.pipe()
        self._thread = threading.Thread(target=self._run, name="cbt-events", daemon=True)

    def fileno(self) -> int:
        """Return the descriptor of the file that is being written."""
        return self._stream.fileno()

    def add(self, tracker: Tracker) -> None:
        """Name a tracker in the stream."""
        self._stream.add(tracker.status().described())

    def __enter__(self) -> EventWriter:
        trackers = list(self.module.trackers())
        for status in trackers:
            _refuse_own_volume(self.path, status)
        info = self.module.info()
        self._stream = StreamWriter(self.path, info.monotonic_ns, info.realtime_ns)
        for status in trackers:
            self._stream.add(status.described())
        self.module._log = self
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # Not by closing alone: a child that was forked meanwhile may hold this end too.
        os.write(self._stop, b"1")
        os.close(self._stop)
        self._thread.join()
        os.close(self._wake)
        self.module._log = None
        with self._stream:
            if self._error is None:
                info = self._rest()
                self._stream.end(info.next_seq, info.dropped)
        if self._error is not None and error is None:
            raise self._error

    def _run(self) -> None:
        try:
            stop, either = select.poll(), select.poll()
            for poller in (stop, either):
                poller.register(self._wake, select.POLLIN)
            either.register(self.module.fd, select.POLLIN)
            # An event at a time would wake this thread for each: let some gather.
            while not stop.poll(_GATHER_MS):
                either.poll()
                self._take()
        except BaseException as error:
            self._error = error

    def _take(self) -> None:
        while events := self.module.read():
            self._stream.write(events)
            if len(events) < _EVENTS_AT_ONCE * uapi.EVENT.size:
                return

    def _rest(self) -> Info:
        """Take what the ring holds at one moment and not a single event more."""
        info = self.module.info()
        left = info.ring_used
        while left:
            events = self.module.read(min(left, _EVENTS_AT_ONCE))
            if not events:
                raise CbtlabError(uapi.DEVICE, "somebody else reads the events too")
            self._stream.write(events)
            left -= len(events) // uapi.EVENT.size
        return info


def _refuse_own_volume(path: Path, status: Status) -> None:
    """Refuse a file on a volume that is the tracked one or lies above it."""
    device = path.absolute().parent.stat().st_dev
    todo, seen = [f"{os.major(device)}:{os.minor(device)}"], set()
    while todo:
        number = todo.pop()
        seen.add(number)
        folder = Path("/sys/dev/block", number)
        below = [*folder.glob("slaves/*/dev")]
        if (folder / "partition").exists():
            below.append(folder.resolve().parent / "dev")
        todo += [n for n in (p.read_text().strip() for p in below) if n not in seen]
    if f"{status.major}:{status.minor}" in seen:
        raise InputError(
            path, f"lies on {status.name}, whose writes it would record", "save it elsewhere"
        )
