"""What may not be silent, and what goes on over a restart.

Called by ``behaviour.py`` in a guest.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import volumes
from fixtures import (
    MIB,
    P,
    beside,
    events,
    exchange,
    linear,
    mapper,
    module,
    refused,
    suspended,
    tracked,
)

from cbtlab.record import uapi
from cbtlab.record.device_mapper import Snapshots, Target
from cbtlab.record.kernel_module import ACTIVE, FROZEN, Kind, State, Tracker

BLOCK = 4096
ODD = 9 * MIB + 3 * BLOCK  # its bitmap has pad bits


def write(node: str, *blocks: int) -> None:
    for block in blocks:
        volumes.write(node, block * BLOCK, b"x" * BLOCK)


def a_sealed_tracker_is_at_rest() -> None:
    with linear() as node:
        tracker = module.attach(node, role=P, granularity=BLOCK)
        write(node, 1)
        tracker.seal()
        assert tracker.status().states == State.SEALED
        assert tracker.status().sealed
        assert not tracker.status().faults
        with suspended(), refused(errno.ESTALE, saying="sealed"):
            module.switch([tracker])
        assert volumes.marked(tracker.changed()) == {1}
        tracker.detach()  # nothing was written: clean

        events()
        tracker = module.attach(node, role=P, granularity=BLOCK)
        tracker.seal()
        write(node, 2)
        assert not any(tracker.changed())
        assert events() == []
        assert tracker.status().states == State.SEALED | State.MISSED
        assert "after its tracker was sealed" in tracker.status().faults[0]
        with refused(errno.ESTALE, saying="not clean"):
            tracker.detach()
        assert tracker.status().states == State.SEALED | State.MISSED
        tracker.detach()
        with refused(errno.ENOENT):
            tracker.seal()


@contextmanager
def loading(node: str, generation: bytes) -> Iterator[Tracker]:
    tracker = module.attach(node, role=P, granularity=BLOCK, interval=7, generation=generation)
    assert tracker.status().states == State.LOADING
    yield tracker
    tracker.detach()


def load_around(tracker: Tracker, kind: Kind, before: int) -> None:
    """Load zeros from ``before`` bytes below the bitmap's begin on, and as many of its own."""
    zeros = ctypes.create_string_buffer(2 * before)
    fields = (ctypes.addressof(zeros), 2**64 - before, 2 * before, tracker.id, ACTIVE, kind, 0)
    module.call("load", uapi.IOC_LOAD, uapi.BITS, *fields)


def a_tracker_goes_on_after_a_restart() -> None:
    with linear(size=ODD) as node:
        with tracked(node, interval=7) as tracker:
            write(node, 0, 5, 2306)
            generation = tracker.status().generation
            tracker.seal()
            changed, discarded = tracker.changed(), tracker.discarded()
        with loading(node, generation) as tracker:
            assert "not loaded to the end" in tracker.status().faults[0]
            assert (tracker.status().generation, tracker.status().interval) == (generation, 7)
            with refused(errno.EEXIST, saying="has this generation already"):
                module.attach(node, role=P, granularity=BLOCK, generation=generation)
            with suspended(), refused(errno.EBUSY):
                module.switch([tracker])  # its bits would be of two intervals
            write(node, 9)
            with refused(errno.EINVAL):  # before its begin, around the end of all numbers
                load_around(tracker, Kind.DISCARDED, len(changed))
            assert tracker.status().states == State.LOADING
            tracker.load_part(Kind.CHANGED, 0, changed[:64])
            with refused(errno.EINVAL):
                load_around(tracker, Kind.CHANGED, 64)
            for kind, offset, bits in (
                (Kind.CHANGED, 0, changed[:64]),  # once more
                (Kind.CHANGED, 72, changed[72:]),  # not the next one
                (Kind.DISCARDED, 0, discarded),  # not yet
                (Kind.CHANGED, 64, changed[64:] + b"\0"),  # past the end
                (Kind.CHANGED, 64, changed[64:-1] + b"\xff"),  # pad bits
            ):
                with refused(errno.EINVAL):
                    tracker.load_part(kind, offset, bits)
            tracker.load_part(Kind.CHANGED, 64, changed[64:])
            assert tracker.status().states == State.LOADING
            tracker.load_part(Kind.DISCARDED, 0, b"\x02" + discarded[1:])
            assert not tracker.status().states
            assert volumes.marked(tracker.changed()) == {0, 5, 9, 2306}
            assert volumes.marked(tracker.discarded()) == {1}
            with refused(errno.ENODATA):
                tracker.load(changed, discarded)
            with suspended():
                module.switch([tracker])
            assert volumes.marked(tracker.changed(FROZEN)) == {0, 5, 9, 2306}
            assert tracker.status().interval == 8
        with loading(node, generation) as tracker:
            tracker.load(changed, discarded)
            assert volumes.marked(tracker.changed()) == {0, 5, 2306}
            assert not tracker.status().states
        with loading(node, generation) as tracker:
            tracker.seal()
            with refused(errno.ESTALE):
                tracker.load(changed, discarded)
            assert not any(tracker.changed())
            assert State.LOADING in tracker.status().states


def a_large_bitmap_is_loaded_in_parts() -> None:
    """Of more than the 1 MiB that a call takes."""
    size = 2**42 + MIB
    node = mapper.create("huge", [Target(0, size // 512, "error", "")]).node
    with tracked(node, granularity=MIB // 8, single=True) as tracker:
        generation, length = tracker.status().generation, tracker.status().bitmap_bytes
        tracker.seal()
    assert length > 4 * MIB
    bits = bytearray(length)
    for at in (0, MIB - 1, MIB, length - 1):
        bits[at] = 0x81
    tracker = module.attach(node, role=P, granularity=MIB // 8, single=True, generation=generation)
    tracker.load(bytes(bits), bytes(length))
    assert tracker.changed() == bits
    assert not tracker.status().states
    tracker.detach()
    mapper.remove("huge")


def generations_go_with_their_flag() -> None:
    def attach(flags: int, generation: bytes) -> None:
        numbers = Path(node).stat().st_rdev
        fields = (0, os.major(numbers), os.minor(numbers), BLOCK, 0, -1, P, flags)
        module.call(node, uapi.IOC_ATTACH, uapi.ATTACH, *fields, 0, generation, 0, 0, 0)

    with linear() as node:
        for flags, generation in (
            (uapi.Attach.CONTINUE, b""),
            (0, b"x" * 16),
            (uapi.Attach.CONTINUE | uapi.Attach.UNCLEAN, b"x" * 16),
            (0x20, b""),
        ):
            with refused(errno.EINVAL, saying="attach: "):
                attach(flags, generation)
        assert module.why().startswith("attach: ")
        module.info()
        assert module.why() == ""


def generations_never_repeat() -> None:
    seen = {module.info().generation}
    with linear() as node, tracked(node, single=True):
        for _ in range(200):
            tracker = module.attach(node, role=P, granularity=BLOCK, single=True, events=False)
            seen.add(tracker.status().generation)
            tracker.detach()
        seen.add(next(module.trackers()).generation)
        assert len(seen) == 202
    for _ in range(20):
        module.ring(1 << 12)
        seen.add(module.info().generation)
    assert len(seen) == 222
    module.ring(1 << 16)


def what_was_lost_in_a_crash_is_told() -> None:
    with linear() as node, tracked(node, unclean=True) as tracker:
        assert tracker.status().states == State.UNCLEAN
        (fault,) = tracker.status().faults
        assert "lost" in fault and fault.endswith("the next backup must be a full one")
        with suspended():
            module.switch([tracker])
        assert tracker.status().states == State.UNCLEAN, "not sticky"


def one_interval_takes_half_the_memory() -> None:
    with linear() as node, tracked(node) as two, tracked(node, single=True) as one:
        assert one.status().memory * 2 == two.status().memory
        write(node, 3)
        assert volumes.marked(one.changed()) == {3}
        with suspended(), refused(errno.EINVAL, saying="single interval"):
            module.switch([one])
        with suspended(), refused(errno.EINVAL):
            module.switch([two, one])
        assert two.status().interval == 0
        with refused(errno.ENODATA):
            one.changed(FROZEN)
        one.clear()  # nothing to forget
        assert volumes.marked(one.changed()) == {3}


def a_tracker_without_events_has_bits() -> None:
    with linear() as node, tracked(node, events=False) as tracker:
        begin = module.info().next_seq
        write(node, 4)
        assert volumes.marked(tracker.changed()) == {4}
        assert events() == [] and module.info().next_seq == begin
        with tracked(node) as other:
            write(node, 5)
            assert [e["tracker"] for e in events()] == [other.id]


def an_exchanged_table_is_told() -> None:
    there = [Target(0, 32768, "linear", "/dev/lab/volume 65536")]
    with linear() as node, tracked(node) as tracker, tracked(node, tables=True) as vouched:
        with suspended():
            pass  # the same table goes on
        assert not tracker.status().states and not tracker.status().tables
        exchange("disk", there)
        status = tracker.status()
        assert (status.states, status.tables) == (State.TABLE, 1)
        assert "its content unseen: the next backup must be a full one" in status.faults[0]
        assert (vouched.status().states, vouched.status().tables) == (State(0), 1)
        write(node, 6)
        assert volumes.marked(tracker.changed()) == {6}
    with linear() as node, tracked(node) as tracker:
        assert not tracker.status().states, "another tracker's exchanges were told"


def a_volume_replaced_by_errors_is_told() -> None:
    """As dmsetup remove --force does it: no flush, no freeze of the file system."""
    with linear() as node, tracked(node) as tracker:
        write(node, 1)
        mapper.load("disk", [Target(0, 32768, "error", "")])
        mapper._call(6, "disk", flags=1 << 1 | 1 << 10 | 1 << 11)
        mapper.resume("disk")

        def fails() -> None:
            try:
                write(node, 2)
            except OSError as error:
                assert error.errno == errno.EIO
            else:
                raise AssertionError("an error target took a write")

        with beside(fails):
            pass
        assert tracker.status().states == State.TABLE
        assert volumes.marked(tracker.changed()) == {1, 2}, "what may have landed is marked"


@contextmanager
def snapshotted() -> Iterator[tuple[str, str, Snapshots]]:
    """A volume with a snapshot, one of whose blocks was written: base, volume, provider."""
    with linear("base") as base:
        node = mapper.create("disk", [Target(0, 32768, "snapshot-origin", base)]).node
        provider = Snapshots(mapper, "disk", "/dev/lab/store")
        provider.prepare()
        with suspended():
            snapshot = provider.create("snapshot").node
        write(snapshot, 10)
        yield base, node, provider
        mapper.remove("disk")


def merged(name: str) -> None:
    """Wait until a merge is done: only its metadata is in the store then."""
    for _ in range(200):
        used, metadata = mapper.status(name)[0].words.split()
        if used.split("/")[0] == metadata:
            return
        time.sleep(0.1)
    raise AssertionError(f"not merged: {mapper.status(name)}")


def a_merge_into_the_volume_is_told() -> None:
    with snapshotted() as (base, node, provider), tracked(node) as tracker:
        assert provider.changes() == []
        provider.remove("snapshot")
        before = content(node, 10)
        words = f"{base} /dev/lab/store P 8"
        exchange("disk", [Target(0, 32768, "snapshot-merge", words)])
        merged("disk")
        assert content(node, 10) != before, "nothing was merged: nothing was tried"
        assert not volumes.marked(tracker.changed()), "the merge went through the tracker"
        assert tracker.status().states == State.TABLE
        assert "is not the one it had" in provider.changes()[0]
        exchange("disk", [Target(0, 32768, "snapshot-origin", base)])
        assert [words for words in provider.changes() if "is not the one" in words] == []
        assert tracker.status().states == State.TABLE, "not sticky"


def a_merge_below_the_volume_is_told_by_its_provider() -> None:
    """By a device of its own: the volume's table stays, and the module sees nothing."""
    with snapshotted() as (base, _, provider):
        provider.remove("snapshot")
        words = f"{base} /dev/lab/store P 8"
        mapper.create("merger", [Target(0, 32768, "snapshot-merge", words)])
        assert provider.changes() == ["merger merges a snapshot into it"]
        merged("merger")
        mapper.remove("merger")
        assert provider.changes() == []


def content(node: str, block: int) -> bytes:
    """Read one block past the page cache."""
    fd = os.open(node, os.O_RDONLY | os.O_DIRECT)
    with mmap.mmap(-1, BLOCK) as buffer:
        os.preadv(fd, [buffer], block * BLOCK)
        os.close(fd)
        return buffer[:]


BEHAVIOURS = (
    a_sealed_tracker_is_at_rest,
    a_tracker_goes_on_after_a_restart,
    a_large_bitmap_is_loaded_in_parts,
    generations_go_with_their_flag,
    generations_never_repeat,
    what_was_lost_in_a_crash_is_told,
    one_interval_takes_half_the_memory,
    a_tracker_without_events_has_bits,
    an_exchanged_table_is_told,
    a_volume_replaced_by_errors_is_told,
    a_merge_into_the_volume_is_told,
    a_merge_below_the_volume_is_told_by_its_provider,
)
