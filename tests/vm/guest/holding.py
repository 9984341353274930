"""The end of an interval: what it waits for, what waits for it, and what it refuses.

Called by ``behaviour.py`` in a guest.
"""

from __future__ import annotations

import errno
import os
import struct
import subprocess
import time

import volumes
from fixtures import (
    MIB,
    PLACE,
    beside,
    events,
    linear,
    mapper,
    module,
    refused,
    suspended,
    tracked,
)

from cbtlab.record.device_mapper import Target
from cbtlab.record.kernel_module import FROZEN, Refused, State
from cbtlab.record.mounted import mount, unmount

BLOCK = 4096


def write(node: str, block: int) -> None:
    volumes.write(node, block * BLOCK, b"x" * BLOCK)


def a_switch_needs_a_cleared_bitmap() -> None:
    with linear() as node, tracked(node) as tracker, suspended():
        module.switch([tracker])
        with refused(errno.EEXIST, saying="interval 0 was not cleared"):
            module.switch([tracker])
        assert tracker.status().interval == 1
        tracker.clear()
        with refused(errno.ENODATA):
            tracker.changed(FROZEN)
        module.switch([tracker])
        assert tracker.status().interval == 2


def all_switch_or_none() -> None:
    with linear() as node, tracked(node) as one, tracked(node) as other, suspended():
        module.switch([other])
        with refused(errno.EEXIST):
            module.switch([one, other])
        assert (one.status().interval, other.status().interval) == (0, 1)
        other.clear()
        module.switch([one, other])
        assert (one.status().interval, other.status().interval) == (1, 2)


def a_resume_waits_for_the_switch() -> None:
    """A child resumes, and writes, at a random moment of the switch.

    A switch takes as long as a queue takes to freeze, some milliseconds.
    """
    waited = refusals = 0
    with linear() as node, tracked(node) as tracker:
        for round_ in range(25):
            events()
            reader, writer = os.pipe()
            mapper.suspend("disk")
            go, gone = os.pipe()

            def resume(go: int = go, writer: int = writer, round_: int = round_) -> None:
                os.read(go, 1)
                time.sleep(0.0008 * round_)
                begin = time.monotonic_ns()
                mapper.resume("disk")
                os.write(writer, struct.pack("=QQ", begin, time.monotonic_ns()))
                write(node, 100 + round_)

            switched = None
            with beside(resume):
                os.write(gone, b"x")
                try:
                    switched = module.switch([tracker])
                except Refused as error:
                    assert error.errno == errno.EBUSY, error
                begin, end = struct.unpack("=QQ", os.read(reader, 16))
            for fd in (reader, writer, go, gone):
                os.close(fd)
            assert not mapper.info("disk").suspended
            (event,) = events()
            if switched is None:
                refusals += 1
                assert event["interval"] == tracker.status().interval
                continue
            assert switched.suspended
            assert end >= switched.time_ns, "resumed within the switch"
            waited += begin < switched.time_ns
            assert event["interval"] == tracker.status().interval
            assert event["seq"] >= switched.seq
            assert 100 + round_ in volumes.marked(tracker.changed())
            assert 100 + round_ not in volumes.marked(tracker.changed(FROZEN))
            tracker.clear()
        assert not tracker.status().states
    print(f"cbtlab: a resume waited {waited} times, came first {refusals} times", flush=True)
    assert waited, "no resume came within a switch: nothing was tried"


def a_switch_waits_for_a_suspend() -> None:
    with linear() as node, tracked(node) as tracker:

        def other() -> None:
            write(node, 1)
            time.sleep(0.5)
            mapper.suspend("disk")
            assert not module.info().dropped  # the module goes on answering
            time.sleep(0.5)
            mapper.resume("disk")
            write(node, 2)

        begin = time.monotonic()
        with beside(other):
            switched = module.switch([tracker], wait_ms=20_000)
            assert switched.suspended
            assert 0.4 < time.monotonic() - begin < 15
        assert volumes.marked(tracker.changed(FROZEN)) == {1}
        assert volumes.marked(tracker.changed()) == {2}
        assert not tracker.status().states


def a_switch_meets_a_short_suspend() -> None:
    """As lvcreate -s does it: suspended and resumed in one breath."""
    with linear() as node, tracked(node) as tracker:

        def other() -> None:
            for _ in range(40):
                with suspended():
                    pass
                write(node, 3)

        with beside(other):
            assert module.switch([tracker], wait_ms=30_000).suspended
        assert tracker.status().interval == 1
        assert State.RUNNING not in tracker.status().states


def a_switch_does_not_wait_for_ever() -> None:
    with linear() as node, tracked(node) as tracker:
        begin = time.monotonic()
        with refused(errno.ETIMEDOUT, saying="in time"):
            module.switch([tracker], wait_ms=300)
        assert 0.3 <= time.monotonic() - begin < 10
        assert tracker.status().interval == 0


def a_stuck_resume_is_not_waited_for_with_its_way_out_held() -> None:
    """The resume of the upper volume thaws its file system, which writes to the lower one.

    Whoever holds the lower one then must not wait for the upper one's resume to end.
    """
    with linear("below", 32 * MIB) as below:
        above = mapper.create("above", [Target(0, 32 * MIB // 512, "linear", f"{below} 0")]).node
        subprocess.run(["/sbin/mke2fs", "-q", "-F", "-t", "ext4", above], check=True)
        mount(above, PLACE, "ext4")
        with tracked(above) as upper, tracked(below) as lower:
            mapper.suspend("above")
            mapper.suspend("below")
            with beside(lambda: mapper.resume("above")):
                time.sleep(1)
                assert mapper.info("above").suspended, "its resume is not stuck: nothing is tried"
                begin = time.monotonic()
                with refused(errno.EBUSY, saying="stuck"):
                    module.switch([lower, upper])
                assert time.monotonic() - begin < 30
                assert [t.status().interval for t in (upper, lower)] == [0, 0]
                mapper.resume("below")
            mapper.suspend("above")
            mapper.suspend("below")
            assert module.switch([upper, lower]).suspended
            mapper.resume("below")
            mapper.resume("above")
        unmount(PLACE)
        mapper.remove("above")


BEHAVIOURS = (
    a_switch_needs_a_cleared_bitmap,
    all_switch_or_none,
    a_resume_waits_for_the_switch,
    a_switch_waits_for_a_suspend,
    a_switch_meets_a_short_suspend,
    a_switch_does_not_wait_for_ever,
    a_stuck_resume_is_not_waited_for_with_its_way_out_held,
)
