"""A tracker's states as words: each says what the next backup must be."""

from __future__ import annotations

import pytest

from cbtlab.record import uapi
from cbtlab.record.status import Status
from cbtlab.record.uapi import Attach, Role, State

SIZE = 1 << 20


def status(states: int) -> Status:
    """Return a status as the module packs it."""
    packed = uapi.STATUS.pack(
        *(3, 0, b"g" * 16, b"dm-0\xff"), *(253, 0, 4096, 8, 7, states), *(2, 1, Attach.SINGLE),
        *(1, SIZE, SIZE, 0, 32, 64, 10, 4096, 1, 2, 5),
    )  # fmt: skip
    return Status.unpacked(uapi.STATUS.unpack(packed))


def test_every_field_arrives() -> None:
    found = status(State.SEALED)
    assert (found.tracker, found.generation, found.name) == (3, b"g" * 16, "dm-0\\xff")
    assert (found.interval, found.first_interval, found.granularity) == (8, 7, 4096)
    assert (found.role, found.frozen, found.attach_flags) == (Role.SNAPSHOT, True, Attach.SINGLE)
    assert (found.switches, found.volume_size, found.bitmap_bytes) == (1, SIZE, 32)
    assert (found.memory, found.events, found.bytes) == (64, 10, 4096)
    assert (found.discards, found.remainders, found.tables) == (1, 2, 5)
    assert found.sealed
    assert found.faults == []


@pytest.mark.parametrize("state", [state for state in State if state != State.SEALED])
def test_every_state_says_what_the_next_backup_must_be(state: State) -> None:
    (fault,) = status(state | State.SEALED).faults
    assert "next backup" in fault.split(": ")[1]
