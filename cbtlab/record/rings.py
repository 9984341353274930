"""The module's rings in this program's memory: whole spans of events, taken in batches.

One ring a CPU; within a ring numbers rise.  A batch is all events below a
number, so batches follow each other in the order of the numbers, and no event
is looked at by itself: where a batch ends in a ring is found by bisection.  The
layout, and the order of loads on which this rests, stand in
``kernel_module/cbt_events.h``.
"""

from __future__ import annotations

import errno
import mmap
import os
import platform
import select
import weakref
from bisect import bisect_left
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING

from cbtlab.errors import InputError
from cbtlab.record import uapi
from cbtlab.record.refused import Refused

if TYPE_CHECKING:
    from cbtlab.record.kernel_module import Module

_QUAD = 8
_EVENT_QUADS = uapi.EVENT.size // _QUAD
_TAIL_QUADS = uapi.TAIL.size // _QUAD
_RING_QUADS = uapi.RING.size // _QUAD
_FIRST_RING = uapi.RINGS.size // _QUAD
_HEAD, _PENDING = 0, 1  # in a struct cbt_ring


@dataclass(frozen=True)
class Batch:
    """Events whose numbers lie in ``first <= seq < below``; all that there are.

    ``spans`` are views of whole events (``uapi.EVENT``) in the rings
    themselves, at most two a ring; within one the numbers rise.  A number in
    the range that no event carries was dropped.  Without ``events`` the range
    begins where the reader was, and ``first`` is ``below``.
    """

    spans: list[memoryview]
    events: int
    first: int
    below: int


class Rings:
    """The rings, mapped for the length of a ``with``.

    There is one reader at a time: Refused with EBUSY while there is another.
    What he has not taken is still there for the next one.
    """

    def __init__(self, module: Module) -> None:
        # Every load and store here is of eight aligned bytes, through a memoryview of 'Q', which
        # copies an item at once.  x86 keeps loads in order, and stores after earlier loads, so
        # plain ones are the acquire and release that the module asks for.  Elsewhere they are not.
        if platform.machine() != "x86_64":
            raise InputError(
                module.path, f"its rings cannot be read on {platform.machine()}", "use cbtctl"
            )
        self._module = module
        self._fd = -1
        self._maps: list[mmap.mmap] = []
        self._views: list[memoryview] = []

    def __enter__(self) -> Rings:
        path, writable = self._module.path, mmap.PROT_READ | mmap.PROT_WRITE
        try:
            # A descriptor of its own: its owner is the reader until it is closed.
            self._fd = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
            tails = self._map(self._module.info().tails_bytes, uapi.MAP_TAILS, writable)
            # Only now that we are the reader nobody can make the rings anew.
            self._info = info = self._module.info()
            self._bytes = self._map(info.rings_bytes, uapi.MAP_RINGS, mmap.PROT_READ)
        except OSError as error:
            self.close()
            why = "somebody else reads the events" if error.errno == errno.EBUSY else ""
            raise Refused(path, error.errno or 0, why) from error
        except BaseException:
            self.close()  # who has the descriptor keeps other readers out
            raise
        self._tails, self._shared = tails.cast("Q"), self._bytes.cast("Q")
        self._views += [self._tails, self._shared]
        _open.add(self)
        self._at = [self._begin(ring) for ring in range(info.rings)]
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Leave the rings to others.  BufferError when a span, or an array over one, was kept."""
        for view in self._views:
            view.release()
        for mapping in self._maps:
            mapping.close()
        if self._fd >= 0:
            os.close(self._fd)
        self._fd, self._views, self._maps = -1, [], []

    def fileno(self) -> int:
        """Return a descriptor for poll(2): readable while there is an event."""
        return self._fd

    def wait(self, seconds: float) -> bool:
        """Wait until there is an event; return whether there is."""
        poller = select.poll()
        poller.register(self._fd, select.POLLIN)
        return bool(poller.poll(seconds * 1000))

    @contextmanager
    def take(self, known: int | None = None) -> Iterator[Batch]:
        """Give the next batch, of at most ``STREAM_BATCH`` numbers, for the length of a ``with``.

        To be copied there: the rings get the room back at its end, unless it
        ends with an exception.  Then, and when the reader dies, the same events
        come again.  ``known``: only what is below this number, of which the
        module has said (``info().next_seq``) that all of it is in the rings.
        """
        below, heads = self._reach(known)
        first = self._lowest(heads, below)
        below = min(below, first + uapi.STREAM_BATCH)
        ends = [self._end(ring, head, below) for ring, head in enumerate(heads)]
        spans = [span for ring, end in enumerate(ends) for span in self._spans(ring, end)]
        events = sum(end - at for at, end in zip(self._at, ends, strict=True))
        try:
            yield Batch(spans, events, min(first, below), below)
        finally:
            for span in spans:
                span.release()
        for ring, end in enumerate(ends):
            if end != self._at[ring]:
                self._tails[ring * _TAIL_QUADS] = end
        self._at = ends

    def first(self) -> int:
        """Return the lowest number that can be taken: of what waits, or else of the next event."""
        below, heads = self._reach(None)
        return min(self._lowest(heads, below), below)

    def _lowest(self, heads: list[int], default: int) -> int:
        """Return the lowest number that waits in a ring."""
        places = enumerate(zip(self._at, heads, strict=True))
        return min(
            (self._seq(ring, at) for ring, (at, head) in places if at < head), default=default
        )

    def _reach(self, known: int | None) -> tuple[int, list[int]]:
        """Return the number below which all is in the rings, and their heads.

        The order of the three loads is what makes this true.
        """
        rings = range(_FIRST_RING, _FIRST_RING + self._info.rings * _RING_QUADS, _RING_QUADS)
        below = self._shared[0]
        if known is None:
            pending = [self._shared[ring + _PENDING] for ring in rings]
            below = min([below, *filter(None, pending)])
        else:
            below = known
        return below, [self._shared[ring + _HEAD] for ring in rings]

    def _seq(self, ring: int, number: int) -> int:
        slot = ring * self._info.ring_room + number % self._info.ring_room
        return self._shared[self._info.slots_offset // _QUAD + slot * _EVENT_QUADS]

    def _end(self, ring: int, head: int, below: int) -> int:
        """Return the first place of a ring, from where it is read, that holds no lower number."""
        at = self._at[ring]
        return at + bisect_left(range(at, head), below, key=lambda place: self._seq(ring, place))

    def _spans(self, ring: int, end: int) -> Iterator[memoryview]:
        at, room = self._at[ring], self._info.ring_room
        base = self._info.slots_offset + ring * room * uapi.EVENT.size
        while at < end:
            slot = at % room
            count = min(end - at, room - slot)
            start = base + slot * uapi.EVENT.size
            yield self._bytes[start : start + count * uapi.EVENT.size]
            at += count

    def _begin(self, ring: int) -> int:
        """Return where to read on: where the reader before us was.

        If his tail makes no sense nobody knows; then with all that is there,
        be it that some of it was read.
        """
        head = self._shared[_FIRST_RING + ring * _RING_QUADS + _HEAD]
        tail = self._tails[ring * _TAIL_QUADS]
        if 0 <= head - tail <= self._info.ring_room:
            return tail
        tail = max(head - self._info.ring_room, 0)
        self._tails[ring * _TAIL_QUADS] = tail
        return tail

    def _map(self, size: int, offset: int, access: int) -> memoryview:
        mapping = mmap.mmap(self._fd, size, flags=mmap.MAP_SHARED, prot=access, offset=offset)
        self._maps.append(mapping)
        self._views.append(memoryview(mapping))
        return self._views[-1]


_open: weakref.WeakSet[Rings] = weakref.WeakSet()


def _leave_to_the_parent() -> None:
    """Close in a forked child, which would else be the reader for as long as it lives."""
    for rings in list(_open):
        with suppress(BufferError):  # the parent is just copying
            rings.close()


os.register_at_fork(after_in_child=_leave_to_the_parent)
