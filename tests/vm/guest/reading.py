"""How events are read: rings that are full, one reader at a time, one that dies.

Called by ``behaviour.py`` in a guest.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import signal
import struct
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import volumes
from fixtures import beside, events, linear, mapper, module, refused, tracked, unpacked

from cbtlab.record import uapi
from cbtlab.record.device_mapper import Target
from cbtlab.record.kernel_module import EventWriter
from cbtlab.record.rings import Rings

BLOCK = 4096


@contextmanager
def on_cpu(*cpus: int) -> Iterator[None]:
    """Run on these CPUs: a ring belongs to one."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cpus)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def write(node: str, *blocks: int) -> None:
    for block in blocks:
        volumes.write(node, block * BLOCK, b"x" * BLOCK)


def seqs(found: list[dict[str, Any]]) -> list[int]:
    return [event["seq"] for event in found]


def full_ring_drops_exactly_and_bits_stay_whole() -> None:
    module.ring(64)
    room = module.info().ring_room
    assert room * module.info().rings == 64
    with linear() as node, tracked(node) as tracker, on_cpu(0):
        write(node, *range(0, 1000, 2))
        info = module.info()
        assert (info.next_seq, info.recorded, info.ring_used) == (501, room, room)
        assert (info.dropped, info.first_dropped, info.last_dropped) == (500 - room, room + 1, 500)
        assert volumes.marked(tracker.changed()) == set(range(0, 1000, 2))
        with on_cpu(1):
            write(node, 1)  # the other ring has room
        assert seqs(events()) == [*range(1, room + 1), 501]
        write(node, 0)
        assert seqs(events()) == [502]
        assert tracker.status().events == 502
        write(node, *range(room + 1))
        info = module.info()
        assert (info.dropped, info.last_dropped) == (500 - room + 1, 503 + room)
        assert info.recorded == info.next_seq - 1 - info.dropped
        events()
    module.ring(1 << 16)
    assert module.info().next_seq == 1
    assert module.info().generation != info.generation
    assert (module.info().dropped, module.info().first_dropped) == (0, 0)


def two_cpus_make_one_sequence() -> None:
    with linear() as node, tracked(node):
        begin = module.info().next_seq
        for cpu in (0, 1):
            with on_cpu(cpu):
                write(node, cpu)
        with on_cpu(1):
            write(node, 3)
        with on_cpu(0):
            write(node, 4)
        with Rings(module) as rings, rings.take() as batch:
            assert len(batch.spans) == 2
            parts = [bytes(span) for span in batch.spans]
            assert (batch.first, batch.below, batch.events) == (begin, begin + 4, 4)
        each = [[e["offset"] // BLOCK for e in unpacked(part)] for part in parts]
        assert each == [[0, 4], [1, 3]]
        found = unpacked(b"".join(parts))
        assert seqs(found) == [*range(begin, begin + 4)]
        assert [e["offset"] // BLOCK for e in found] == [0, 1, 3, 4]
        times = [e["time"] for e in found]
        assert times == sorted(times)


def there_is_one_reader() -> None:
    with linear() as node, tracked(node):
        write(node, 1)
        with Rings(module) as rings:
            with refused(errno.EBUSY):
                Rings(module).__enter__()
            with refused(errno.EBUSY):
                EventWriter(module, "/out/second").__enter__()
            told = subprocess.run(
                ["/lab/cbtctl", "events", "/out/second"], capture_output=True, text=True
            )
            assert told.returncode == 1, told
            assert [e["offset"] for e in events_of(rings)] == [BLOCK]
        assert events() == []
    with Rings(module), refused(errno.EBUSY, saying="reader"):
        module.ring(1000)


def events_of(rings: Rings) -> list[dict[str, Any]]:
    """Take the next batch."""
    with rings.take() as batch:
        return unpacked(b"".join(batch.spans))


def a_reader_that_is_killed_loses_nothing() -> None:
    """It had taken two events, and was just copying the third."""
    with linear() as node, tracked(node):
        first = module.info().next_seq
        write(node, 1, 2)
        ready, told = os.pipe()
        child = os.fork()
        if not child:
            with Rings(module) as rings:
                events_of(rings)
                write(node, 3)
                with rings.take():
                    os.write(told, b"x")
                    time.sleep(100)
        os.read(ready, 1)
        with refused(errno.EBUSY):
            Rings(module).__enter__()
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        write(node, 4)
        found = events()
        assert [e["offset"] // BLOCK for e in found] == [3, 4]
        assert seqs(found) == [first + 2, first + 3]
        assert module.info().dropped == 0


def a_forked_child_is_not_the_reader() -> None:
    ready, told = os.pipe()
    with Rings(module):
        child = os.fork()
        if not child:
            os.write(told, b"x")
            time.sleep(100)
            os._exit(0)
        os.read(ready, 1)
    try:
        events()
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def poll_waits_for_an_event() -> None:
    with linear() as node, tracked(node), Rings(module) as rings:
        assert not rings.wait(0)
        begin = time.monotonic()

        def late() -> None:
            time.sleep(0.5)
            write(node, 7)

        with beside(late):
            assert rings.wait(20)
            assert time.monotonic() - begin > 0.4
            assert [e["offset"] for e in events_of(rings)] == [7 * BLOCK]
        assert not rings.wait(0)


def a_tail_without_sense_costs_its_reader_only() -> None:
    with linear() as node, tracked(node) as tracker, on_cpu(0):
        write(node, 1, 2)
        info = module.info()
        for tail in (2**63, 10**9):
            fd = os.open(uapi.DEVICE, os.O_RDWR)
            with mmap.mmap(fd, info.tails_bytes, offset=uapi.MAP_TAILS) as tails:
                struct.pack_into("<Q", tails, 0, tail)
            os.close(fd)
            before = module.info()
            write(node, 3)
            after = module.info()
            assert after.dropped == before.dropped + 1, "it was put over what waits"
            assert after.last_dropped == after.next_seq - 1
            events()  # the next reader sets it right
            write(node, 4)
            assert [e["offset"] // BLOCK for e in events()] == [4]
        assert volumes.marked(tracker.changed()) == {1, 2, 3, 4}


def mappings_are_refused_by_errno() -> None:
    info = module.info()

    def refuses(number: int, size: int, offset: int, flags: int, access: int) -> None:
        try:
            mmap.mmap(module.fd, size, flags=flags, prot=access, offset=offset).close()
        except OSError as error:
            assert error.errno == number, (error, number, size, offset)
        else:
            raise AssertionError(f"mapped {size} bytes from {offset}")

    shared, private = mmap.MAP_SHARED, mmap.MAP_PRIVATE
    read, both = mmap.PROT_READ, mmap.PROT_READ | mmap.PROT_WRITE
    tails, rings = (info.tails_bytes, uapi.MAP_TAILS), (info.rings_bytes, uapi.MAP_RINGS)
    refuses(errno.EPERM, *rings, shared, both)
    for size, offset in (tails, rings):
        refuses(errno.EINVAL, size, offset, private, read)
        refuses(errno.EINVAL, size + 4096, offset, shared, read)
        refuses(errno.EINVAL, size, offset + 4096, shared, read)
    refuses(errno.EINVAL, rings[0] - 4096, rings[1], shared, read)
    with mmap.mmap(module.fd, rings[0], flags=shared, prot=read, offset=rings[1]) as mapping:
        # Not even afterwards: all is in one mapping, and its start is found in the maps.
        maps = Path("/proc/self/maps").read_text().splitlines()
        start = next(int(line.split("-")[0], 16) for line in maps if line.endswith("/dev/cbt"))
        libc = ctypes.CDLL(None, use_errno=True)
        assert libc.mprotect(ctypes.c_void_p(start), ctypes.c_size_t(4096), both) == -1
        assert ctypes.get_errno() == errno.EACCES
        assert mapping[:8] == struct.pack("<Q", module.info().next_seq)


def the_saved_stream_is_whole() -> None:
    """Four writers on two volumes and all CPUs; the host reads the file."""
    upper = [Target(0, 16384, "linear", "/dev/lab/volume 32768")]
    module.ring(1 << 16)
    with linear() as node, EventWriter(module, "/out/whole.native"):
        other = mapper.create("other", upper).node
        trackers = [
            module.attach(device, role=1, granularity=BLOCK)  # type: ignore[arg-type]
            for device in (node, other)
        ]

        def hammer(device: str, cpu: int) -> None:
            with on_cpu(cpu):
                for at in range(1500):
                    write(device, at % 2048)

        works = [(device, cpu) for device in (node, other) for cpu in (0, 1)]
        with (
            beside(lambda: hammer(*works[0])),
            beside(lambda: hammer(*works[1])),
            beside(lambda: hammer(*works[2])),
            beside(lambda: hammer(*works[3])),
        ):
            pass
        for tracker in trackers:
            assert tracker.status().events == 3000
            tracker.detach()
        mapper.remove("other")
    assert module.info().ring_used == 0


BEHAVIOURS = (
    full_ring_drops_exactly_and_bits_stay_whole,
    two_cpus_make_one_sequence,
    there_is_one_reader,
    a_reader_that_is_killed_loses_nothing,
    a_forked_child_is_not_the_reader,
    poll_waits_for_an_event,
    a_tail_without_sense_costs_its_reader_only,
    mappings_are_refused_by_errno,
    the_saved_stream_is_whole,
)
