"""The rings' reader, on memory laid out and filled as the module does it, in any interleaving.

Producers go on between any two loads of the reader; what they put in is the truth.
"""

from __future__ import annotations

import errno
import os
import platform
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from random import Random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ring_memory import EVENT, Memory

from cbtlab.errors import InputError
from cbtlab.record import uapi
from cbtlab.record.refused import Refused
from cbtlab.record.rings import Batch, Rings

pytestmark = pytest.mark.skipif(platform.machine() != "x86_64", reason="reads only on x86_64")


class Watched:
    """Loads from ``memory``, with a step of the producers before each."""

    def __init__(self, memory: memoryview, step: Callable[[], None]) -> None:
        self.memory, self.step = memory, step

    def __getitem__(self, at: int) -> int:
        self.step()
        return self.memory[at]


@contextmanager
def small_batches(numbers: int) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(uapi, "STREAM_BATCH", numbers)
        yield


def seqs(batch: Batch) -> list[int]:
    """Return the numbers of a batch, sorted."""
    return sorted(number for span in batch.spans for (number,) in struct.iter_unpack("<Q72x", span))


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 4), st.sampled_from([4, 8, 16]), st.integers(1, 40), st.randoms())
def test_batches_are_all_that_was_put_in_by_number(
    count: int, room: int, numbers: int, random: Random
) -> None:
    memory = Memory(count, room)
    producers = [memory.events(ring) for ring in range(count)]

    def step() -> None:
        for _ in range(random.choice((0, 0, 1, 3, 12))):
            next(random.choice(producers))

    taken: list[tuple[int, int, list[int]]] = []

    def take(rings: Rings) -> None:
        with rings.take() as batch:
            found = b"".join(batch.spans)
            step()
            assert b"".join(batch.spans) == found, "a slot was used again before it was free"
            numbered = seqs(batch)
            assert len(batch.spans) <= 2 * count
            assert batch.events == len(numbered)
            assert batch.below - batch.first <= numbers
            for at in range(0, len(found), EVENT):
                record = found[at : at + EVENT]
                assert record == memory.put[struct.unpack_from("<Q", record)[0]]
        taken.append((batch.first, batch.below, numbered))

    with small_batches(numbers):
        for _ in range(random.randrange(1, 4)):  # one reader after the other
            with Rings(memory.module) as rings:
                rings._shared = Watched(rings._shared, step)  # type: ignore[assignment]
                for _ in range(random.randrange(1, 12)):
                    take(rings)
        for ring, producer in enumerate(producers):  # what was begun is ended
            while memory.get(64 + 64 * ring + 8):
                next(producer)
        step = lambda: None  # noqa: E731
        with Rings(memory.module) as rings:
            take(rings)
            while taken[-1][2]:
                take(rings)
    below = 1
    for first, end, numbered in taken:
        assert below <= first <= end
        stored = [n for n in range(below, end) if n in memory.put]
        assert numbered == stored, "the batch is not what was put in of its numbers"
        assert all(n in memory.dropped for n in range(below, end) if n not in memory.put)
        below = end
    assert below == memory.get(0)
    memory.close()


@pytest.fixture
def memory() -> Iterator[Memory]:
    made = Memory(2, 8)
    yield made
    made.close()


def test_what_is_pending_is_waited_for(memory: Memory) -> None:
    slow = memory.events(0)
    next(slow)
    next(slow)  # it has number 1, and is not in yet
    memory.fill(1, 3)
    with Rings(memory.module) as rings:
        with rings.take() as batch:
            assert (batch.events, batch.first, batch.below) == (0, 1, 1)
        next(slow)
        next(slow)
        next(slow)
        with rings.take() as batch:
            assert seqs(batch) == [1, 2, 3, 4]


def test_what_the_module_says_is_there_is_taken_and_not_an_event_more(memory: Memory) -> None:
    memory.fill(0, 2)
    memory.fill(1, 2)
    known = memory.get(0)
    slow = memory.events(1)
    next(slow)  # pending, though with no number that is known
    memory.fill(0, 3)
    with Rings(memory.module) as rings:
        with rings.take(known) as batch:
            assert (seqs(batch), batch.below) == ([1, 2, 3, 4], known)
        with rings.take(known) as batch:
            assert (batch.events, batch.below) == (0, known)
        assert memory.tail(0) == 2


def test_an_exception_leaves_the_events_to_the_next_reader(memory: Memory) -> None:
    memory.fill(0, 3)
    with Rings(memory.module) as rings:
        with pytest.raises(OSError, match="full"), rings.take() as batch:
            kept = batch.spans[0]
            raise OSError("full")
        with pytest.raises(ValueError, match="released"):
            bytes(kept)
    with Rings(memory.module) as rings, rings.take() as batch:
        assert seqs(batch) == [1, 2, 3]
    with Rings(memory.module) as rings, rings.take() as batch:
        assert seqs(batch) == []


def test_a_span_that_was_kept_is_told_at_the_end(memory: Memory) -> None:
    """Its slots are used again: an array over it would change."""
    memory.fill(0, 3)
    with pytest.raises(BufferError), Rings(memory.module) as rings, rings.take() as batch:
        held = np.frombuffer(batch.spans[0], np.uint8)
    del held
    rings.close()


def test_a_tail_without_sense_costs_nothing_that_is_there(memory: Memory) -> None:
    memory.fill(0, 5)
    memory.fill(1, 20)  # 8 of them find room
    for ring, tail in ((0, 99), (1, 1 << 63)):
        struct.pack_into("<Q", memory.tails, 64 * ring, tail)
    with Rings(memory.module) as rings, rings.take() as batch:
        assert seqs(batch) == [1, 2, 3, 4, 5, *range(6, 14)]
    assert (memory.tail(0), memory.tail(1)) == (5, 8)


def test_a_refused_mapping_says_who(memory: Memory, monkeypatch: pytest.MonkeyPatch) -> None:
    def busy(*_: Any, **__: Any) -> None:
        raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))

    monkeypatch.setattr("cbtlab.record.rings.mmap.mmap", busy)
    with pytest.raises(Refused, match="somebody else reads the events") as refused:
        Rings(memory.module).__enter__()
    assert refused.value.errno == errno.EBUSY


def test_another_machine_is_refused(memory: Memory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    with pytest.raises(InputError, match="cannot be read on aarch64"):
        Rings(memory.module)


def test_a_forked_child_does_not_stay_the_reader(memory: Memory) -> None:
    def maps() -> int:
        with open("/proc/self/maps") as told:  # noqa: PTH123
            return sum("memfd:rings" in line for line in told)

    before = maps()
    with Rings(memory.module) as rings:
        assert maps() == before + 2
        child = os.fork()
        if not child:
            os._exit(maps() != before or rings.fileno() != -1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        memory.fill(0, 1)
        with rings.take() as batch:
            assert seqs(batch) == [1]
    assert maps() == before


def test_the_first_number_is_of_what_waits_or_comes_next() -> None:
    memory = Memory(2, 8)
    with Rings(memory.module) as rings:
        assert rings.first() == 1
        memory.fill(0, 3)
        memory.fill(1, 2)
        assert rings.first() == 1
        with rings.take(3):
            pass
        assert rings.first() == 3
        with rings.take():
            pass
        assert rings.first() == 6
    memory.close()
