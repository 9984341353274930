"""For the programs that run in a guest: volumes made and tracked for the length of a ``with``."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path

from cbtlab.record import uapi
from cbtlab.record.device_mapper import DeviceMapper, Target
from cbtlab.record.kernel_module import Module, Refused, Role, Tracker

MIB = 1 << 20
EVENT = uapi.EVENT
P = Role.PHYSICAL
PLACE = Path("/mnt")
SYNC, IDLE, REMAINDER = 0x1, 0x80, 0x10000  # CBT_F_*

mapper = DeviceMapper()
module = Module()


@contextlib.contextmanager
def refused(*numbers: int) -> Iterator[None]:
    """Expect that the module refuses with one of these errno."""
    try:
        yield
    except Refused as error:
        assert error.errno in numbers, error
    else:
        raise AssertionError(f"not refused with {[errno.errorcode[n] for n in numbers]}")


@contextlib.contextmanager
def linear(name: str = "disk", size: int = 16 * MIB, start: int = 0) -> Iterator[str]:
    """Make a linear volume on the disk of the lab; yield its node."""
    words = f"/dev/lab/volume {start // 512}"
    yield mapper.create(name, [Target(0, size // 512, "linear", words)]).node
    mapper.remove(name)


@contextlib.contextmanager
def tracked(node: object, granularity: int = 4096, interval: int = 0) -> Iterator[Tracker]:
    """Attach a tracker for the length of a ``with``; earlier events are thrown away."""
    while module.read():
        pass
    tracker = module.attach(node, role=P, granularity=granularity, interval=interval)  # type: ignore[arg-type]
    try:
        yield tracker
    finally:
        tracker.detach()


def events() -> list[dict[str, object]]:
    """Take all events out of the ring."""
    names = "seq time offset length inode inode_offset interval pid flags tracker op known comm"
    data = b""
    while more := module.read():
        data += more
    return [dict(zip(names.split(), fields, strict=True)) for fields in EVENT.iter_unpack(data)]
