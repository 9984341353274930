"""Drives ``cbt.ko`` through /dev/cbt: attach, switch, read bitmaps, seal and load, detach.

What each call does, and how it fails, stands in ``kernel_module/cbt.h``.  A
tracker belongs to the kernel module: it goes on when this program ends.  Events
come through ``rings``; ``event_writer`` saves them.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
from collections.abc import Iterator, Sequence
from struct import Struct
from types import TracebackType

from cbtlab.errors import CbtlabError, InputError
from cbtlab.record import uapi
from cbtlab.record.event_writer import EventWriter
from cbtlab.record.refused import Refused
from cbtlab.record.status import Info, Status, Switched
from cbtlab.record.uapi import Attach, Kind, Role, State, Which

__all__ = [
    "ACTIVE",
    "FROZEN",
    "Attach",
    "EventWriter",
    "Info",
    "Kind",
    "Module",
    "Refused",
    "Role",
    "State",
    "Status",
    "Switched",
    "Tracker",
    "Which",
]

ACTIVE, FROZEN = Which.ACTIVE, Which.FROZEN

_BITS_AT_ONCE = 1 << 20


class Module:
    """The open kernel module.  Raises InputError when it is not loaded.

    ``log`` is the writer that saves the events of this program, if there is one.
    """

    def __init__(self, path: str = uapi.DEVICE) -> None:
        self.path = path
        self.log: EventWriter | None = None
        try:
            self.fd = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise InputError(
                path, f"cannot be opened: {error.strerror}", "insert cbt.ko, and be root"
            ) from error
        try:
            version = self.info().version
        except Refused as refused:
            # The call's number holds the size of its structure, which another version changes.
            if refused.errno != errno.ENOTTY:
                self.close()
                raise
            version = 0
        if version != uapi.VERSION:
            self.close()
            raise InputError(
                path,
                f"is of version {version}" if version else "is of another version",
                f"this program knows {uapi.VERSION}: insert the cbt.ko that belongs to it",
            )

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
        """Make one ioctl and return the structure's fields as it left them.

        A call that a signal has broken is made again, unless its handler raises.
        """
        argument = bytearray(layout.pack(*values))
        while True:
            try:
                fcntl.ioctl(self.fd, number, argument)
            except InterruptedError:
                continue
            except OSError as error:
                raise Refused(piece, error.errno or 0, self.why()) from error
            return layout.unpack(argument)

    def why(self) -> str:
        """Return the module's sentence on why the last call was refused; or nothing."""
        sentence = bytearray(uapi.WHY.size)
        try:
            fcntl.ioctl(self.fd, uapi.IOC_WHY, sentence)
        except OSError:
            return ""
        return sentence.split(b"\0")[0].decode(errors="backslashreplace")

    def attach(
        self,
        device: str | os.PathLike[str] | tuple[int, int],
        *,
        role: Role,
        granularity: int,
        interval: int = 0,
        events: bool = True,
        single: bool = False,
        tables: bool = False,
        unclean: bool = False,
        generation: bytes | None = None,
    ) -> Tracker:
        """Track a volume, by its node or by (major, minor), from ``interval`` on.

        ``events`` false: only bitmaps.  ``single``: one interval, never
        switched, half the memory.  ``tables``: an exchange of the volume's
        device-mapper table leaves its content alone.  ``unclean``: what was
        tracked before is lost, and readers are told.  ``generation``: go on as
        the sealed tracker that had it; ``Tracker.load`` must follow.
        """
        path, numbers = None, (0, 0)
        if isinstance(device, tuple):
            numbers = device
        else:
            path = ctypes.create_string_buffer(os.fsencode(device))
        chosen = {
            Attach.NO_EVENTS: not events,
            Attach.SINGLE: single,
            Attach.TABLES: tables,
            Attach.UNCLEAN: unclean,
            Attach.CONTINUE: generation is not None,
        }
        flags = sum(flag for flag, wanted in chosen.items() if wanted)
        log = self.log.fileno() if self.log else -1
        address = ctypes.addressof(path) if path else 0
        fields = self.call(
            device if path else ":".join(map(str, numbers)),
            uapi.IOC_ATTACH,
            uapi.ATTACH,
            *(address, *numbers, granularity, interval, log, role, flags),
            *(0, generation or b"", 0, 0, 0),
        )
        tracker = Tracker(self, fields[8])
        if self.log:
            self.log.add(tracker)
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
        empty = (number, flags, b"", b"", *(0,) * 20)
        piece = f"tracker {number}"
        return Status.unpacked(self.call(piece, uapi.IOC_STATUS, uapi.STATUS, *empty))

    def switch(
        self, trackers: Sequence[Tracker], *, running: bool = False, wait_ms: int = 0
    ) -> Switched:
        """End the interval of all ``trackers`` at one instant, topmost volume first.

        To be called while they are suspended, and after the bitmaps of the
        interval before were saved and cleared.  ``wait_ms``: or before another
        program suspends and resumes them, from another thread.  ``running`` is
        for tests: it permits the wrong order.
        """
        ids = (ctypes.c_uint32 * len(trackers))(*(t.id for t in trackers))
        flags = uapi.SWITCH_RUNNING if running else 0
        _, _, flags, _, time_ns, seq, frozen_ns = self.call(
            "switch",
            uapi.IOC_SWITCH,
            uapi.SWITCH,
            *(ctypes.addressof(ids), len(trackers), flags, wait_ms, 0, 0, 0),
        )
        return Switched(time_ns, seq, frozen_ns, bool(flags & uapi.SWITCH_SUSPENDED))

    def ring(self, events: int) -> None:
        """Give the rings room for ``events`` together; a new sequence begins.

        Refused while a tracker is attached or somebody reads the events.
        """
        self.call("ring", uapi.IOC_RING, uapi.ROOM, events)

    def info(self) -> Info:
        """Return the counters of the rings and the clock anchor, all of one moment."""
        empty = (0, 0, b"", *(0,) * 15)
        fields = self.call("module", uapi.IOC_INFO, uapi.INFO, *empty)
        return Info(*fields)  # type: ignore[arg-type]


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

    def load(self, changed: bytes, discarded: bytes) -> None:
        """Bring back the bitmaps of a sealed tracker whose generation this one goes on with.

        To be called before the volume is written again.
        """
        for kind, bits in ((Kind.CHANGED, changed), (Kind.DISCARDED, discarded)):
            self.load_part(kind, 0, bits)

    def load_part(self, kind: int, offset: int, bits: bytes) -> None:
        """Load the bytes of a bitmap from ``offset`` on; parts come from front to back."""
        end = offset + len(bits)
        buffer = ctypes.create_string_buffer(bits, len(bits))
        start = offset
        while start < end:
            at = ctypes.addressof(buffer) + start - offset
            length = min(_BITS_AT_ONCE, end - start)
            self.module.call(
                f"tracker {self.id}",
                uapi.IOC_LOAD,
                uapi.BITS,
                *(at, start, length, self.id, ACTIVE, kind, 0),
            )
            start += length

    def clear(self) -> None:
        """Forget the frozen bitmaps, after they were saved: the next switch needs them."""
        self.module.call(f"tracker {self.id}", uapi.IOC_CLEAR, uapi.ID, self.id)

    def seal(self) -> None:
        """End recording for good: the bitmaps are at rest, and a later write is told."""
        self.module.call(f"tracker {self.id}", uapi.IOC_SEAL, uapi.ID, self.id)

    def detach(self) -> None:
        """Stop to track; the events stay in the rings.

        Refused once, with ESTALE, when the volume was written after ``seal``.
        """
        self.module.call(f"tracker {self.id}", uapi.IOC_DETACH, uapi.ID, self.id)
