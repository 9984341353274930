"""For the programs that run in a guest: volumes made and tracked for the length of a ``with``."""

from __future__ import annotations

import contextlib
import errno
import os
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from cbtlab.record import uapi
from cbtlab.record.device_mapper import DeviceMapper, Target
from cbtlab.record.kernel_module import Module, Refused, Role, Tracker
from cbtlab.record.rings import Rings

MIB = 1 << 20
EVENT = uapi.EVENT
P = Role.PHYSICAL
PLACE = Path("/mnt")
SYNC, IDLE, REMAINDER = 0x1, 0x80, 0x10000  # CBT_F_*
FIELDS = (
    *("seq", "time", "offset", "length", "inode", "inode_offset", "interval", "pid", "flags"),
    *("tracker", "op", "known", "comm"),
)

mapper = DeviceMapper()
module = Module()


@contextlib.contextmanager
def refused(*numbers: int, saying: str = "") -> Iterator[None]:
    """Expect that the module refuses with one of these errno, and a sentence that says so."""
    try:
        yield
    except Refused as error:
        assert error.errno in numbers, error
        assert saying in error.why, error
    else:
        raise AssertionError(f"not refused with {[errno.errorcode[n] for n in numbers]}")


@contextlib.contextmanager
def linear(name: str = "disk", size: int = 16 * MIB, start: int = 0) -> Iterator[str]:
    """Make a linear volume on the disk of the lab; yield its node."""
    words = f"/dev/lab/volume {start // 512}"
    yield mapper.create(name, [Target(0, size // 512, "linear", words)]).node
    mapper.remove(name)


@contextlib.contextmanager
def tracked(node: Any, granularity: int = 4096, interval: int = 0, **how: Any) -> Iterator[Tracker]:
    """Attach a tracker for the length of a ``with``; earlier events are thrown away."""
    events()
    tracker = module.attach(node, role=P, granularity=granularity, interval=interval, **how)
    try:
        yield tracker
    finally:
        tracker.detach()


@contextlib.contextmanager
def suspended(name: str = "disk") -> Iterator[None]:
    """Suspend a volume for the length of a ``with``."""
    mapper.suspend(name)
    try:
        yield
    finally:
        mapper.resume(name)


def exchange(name: str, table: list[Target]) -> None:
    """Give a volume another table."""
    mapper.load(name, table)
    with suspended(name):
        pass


@contextlib.contextmanager
def beside(work: Callable[[], None]) -> Iterator[int]:
    """Run ``work`` in a child meanwhile; it must end well.  Yields its process id."""
    child = os.fork()
    if not child:
        try:
            work()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    yield child
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0, work


def unpacked(data: bytes) -> list[dict[str, Any]]:
    """Return events by number."""
    found = [dict(zip(FIELDS, fields, strict=True)) for fields in EVENT.iter_unpack(data)]
    return sorted(found, key=lambda event: event["seq"])


def events() -> list[dict[str, Any]]:
    """Take all events out of the rings; by number."""
    data = b""
    with Rings(module) as rings:
        while True:
            with rings.take() as batch:
                data += b"".join(batch.spans)
            if not batch.events:
                return unpacked(data)
