"""The layouts and call numbers of ``kernel_module/cbt.h`` and ``cbt_events.h``, for ``struct``.

Native byte order; the formats have no implicit padding, as the headers have
none.  A test compiles the headers and compares every size, offset and number.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag
from struct import Struct

VERSION = 2
DEVICE = "/dev/cbt"


class Role(IntEnum):
    """What a tracked volume is."""

    PHYSICAL = 1
    SNAPSHOT = 2


class Attach(IntFlag):
    """How a tracker is attached."""

    CONTINUE = 0x1
    UNCLEAN = 0x2
    NO_EVENTS = 0x4
    SINGLE = 0x8
    TABLES = 0x10


class State(IntFlag):
    """Sticky states of a tracker: all but SEALED are why the next backup must be a full one."""

    GREW = 0x01
    SHRANK = 0x02
    RUNNING = 0x04
    UNHOOKED = 0x08
    GONE = 0x10
    TABLE = 0x20
    UNCLEAN = 0x40
    LOADING = 0x80
    MISSED = 0x100
    SEALED = 0x10000


class Which(IntEnum):
    """The bitmap of the current interval, or of the one before it."""

    ACTIVE = 0
    FROZEN = 1


class Kind(IntEnum):
    """Blocks written in any way, or whole blocks whose last operation was a discard."""

    CHANGED = 0
    DISCARDED = 1


class Op(IntEnum):
    """What an event is; TRACKER describes one in a saved stream, and END closes it."""

    WRITE = 1
    WRITE_ZEROES = 2
    DISCARD = 3
    SECURE_ERASE = 4
    TRACKER = 254
    END = 255


class Flag(IntFlag):
    """How a write was submitted."""

    SYNC = 0x1
    FUA = 0x2
    PREFLUSH = 0x4
    META = 0x8
    PRIO = 0x10
    RAHEAD = 0x20
    NOWAIT = 0x40
    IDLE = 0x80
    REMAINDER = 0x10000


class Known(IntFlag):
    """Which optional fields of an event hold a value; TASK is pid and comm."""

    INODE = 0x1
    INODE_OFFSET = 0x2
    TASK = 0x4


SWITCH_RUNNING = 0x001
SWITCH_SUSPENDED = 0x100
STATUS_NEXT = 0x1
NO_TABLES = 0x1
TRACKERS_MAX = 64
GRANULARITY_MIN, GRANULARITY_MAX = 512, 1 << 20
ID_BYTES, NAME_BYTES, COMM_BYTES, WHY_BYTES = 16, 40, 16, 256

# seq time_ns offset length inode inode_offset interval pid flags tracker op known comm
EVENT = Struct("=6Q3IHBB16s")
# path major minor granularity interval log_fd role flags | tracker, generation (both ways),
# volume_size bitmap_bytes memory
ATTACH = Struct("=Q4IiB3xII16sQQQ")
# trackers count flags wait_ms | time_ns seq frozen_ns
SWITCH = Struct("=QIII4xQQQ")
# buffer offset length tracker which kind | interval
BITS = Struct("=QQQIBB2xI4x")
# version event_bytes generation next_seq recorded dropped first_dropped last_dropped ring_used
# monotonic_ns realtime_ns trackers flags rings ring_room tails_bytes rings_bytes slots_offset
INFO = Struct("=II16s8Q4I3Q")
# tracker flags generation name major minor granularity interval first_interval states
# role frozen attach_flags | switches volume_size current_size grown_to bitmap_bytes memory
# events bytes discards remainders tables
STATUS = Struct("=II16s40s6IBB2xI11Q")
ID = Struct("=I")
ROOM = Struct("=Q")
WHY = Struct(f"={WHY_BYTES}s")

# The mapped memory.
MAP_TAILS, MAP_RINGS = 0, 0x10000000
TAIL = Struct("=Q56x")
# next_seq
RINGS = Struct("=Q56x")
# head pending dropped first_dropped last_dropped
RING = Struct("=5Q24x")

# A saved stream is little-endian.
# magic version header_bytes record_bytes trackers anchor_monotonic_ns anchor_realtime_ns first_seq
STREAM_HEADER = Struct("<8sIIIIQQQ16x")
# id role granularity interval volume_size name
STREAM_TRACKER = Struct("<IB3xIIQ40s")
STREAM_EVENT = Struct("<" + EVENT.format[1:])
STREAM_MAGIC = b"CBTWRITE"
STREAM_VERSION = 2
STREAM_BATCH = 65536

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
IOC_SEAL = _call(_WRITE, 9, ID)
IOC_LOAD = _call(_READ | _WRITE, 10, BITS)
IOC_WHY = _call(_READ, 11, WHY)
