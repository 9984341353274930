"""The layouts and call numbers of ``kernel_module/cbt.h``, for Python's ``struct``.

Native byte order; the formats have no implicit padding, as the header has
none.  A test compiles the header and compares every size, offset and number.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag
from struct import Struct

VERSION = 1
DEVICE = "/dev/cbt"


class Role(IntEnum):
    """What a tracked volume is."""

    PHYSICAL = 1
    SNAPSHOT = 2


class State(IntFlag):
    """Sticky states of a tracker: why the next backup may have to be a full one."""

    GREW = 0x01
    SHRANK = 0x02
    RUNNING = 0x04
    UNHOOKED = 0x08
    GONE = 0x10


class Which(IntEnum):
    """The bitmap of the current interval, or of the one before it."""

    ACTIVE = 0
    FROZEN = 1


class Kind(IntEnum):
    """Blocks written in any way, or whole blocks whose last operation was a discard."""

    CHANGED = 0
    DISCARDED = 1


SWITCH_RUNNING = 0x001
SWITCH_SUSPENDED = 0x100
STATUS_NEXT = 0x1
TRACKERS_MAX = 64
OP_END = 255

# seq time_ns offset length inode inode_offset interval pid flags tracker op known comm
EVENT = Struct("=6Q3IHBB16s")
# path major minor granularity interval log_fd role | tracker volume_size bitmap_bytes memory
ATTACH = Struct("=Q4IiB3xI4xQQQ")
# trackers count flags | time_ns seq frozen_ns
SWITCH = Struct("=QIIQQQ")
# buffer offset length tracker which kind | interval
BITS = Struct("=QQQIBB2xI4x")
# version event_bytes generation next_seq recorded dropped ring_events ring_used
# monotonic_ns realtime_ns trackers
INFO = Struct("=II16s7QI4x")
# tracker flags generation name major minor granularity interval first_interval states
# role frozen | switches volume_size current_size grown_to bitmap_bytes memory
# events bytes discards remainders
STATUS = Struct("=II16s40s6IBB6x10Q")
ID = Struct("=I")
ROOM = Struct("=Q")

# A saved stream is little-endian.
# magic version header_bytes record_bytes trackers anchor_monotonic_ns anchor_realtime_ns
STREAM_HEADER = Struct("<8sIIIIQQ24x")
# id role granularity interval volume_size name
STREAM_TRACKER = Struct("<IB3xIIQ40s")
STREAM_EVENT = Struct("<" + EVENT.format[1:])
STREAM_MAGIC = b"CBTWRITE"
STREAM_VERSION = 1

_READ, _WRITE = 2, 1


def _call(direction: int, number: int, layout: Struct) -> int:
    """Return an ioctl's number (``include/uapi/asm-generic/ioctl.h``)."""
    return direction << 30 | layout.size << 16 | ord("C") << 8 | number


IOC_ATTACH = _call(_READ | _WRITE, 1, ATTACH)
IOC_DETACH = _call(_WRITE, 2, ID)
IOC_SWITCH = _call(_READ | _WRITE, 3, SWITCH)
IOC_CLEAR = _call(_WRITE, 4, ID)
IOC_BITS = _call(_READ | _WRITE, 5, BITS)
IOC_INFO = _call(_READ, 6, INFO)
IOC_RING = _call(_WRITE, 7, ROOM)
IOC_STATUS = _call(_READ | _WRITE, 8, STATUS)
