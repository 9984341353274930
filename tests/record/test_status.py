"""A tracker's states as words: each says what the next backup must be."""

from __future__ import annotations

import pytest

from cbtlab.record import uapi
from cbtlab.record.status import Status
from cbtlab.record.uapi import Attach, Role, State

SIZE = 1 << 20


def status(states: int, *, switches: int = 1, frozen: int = 1) -> Status:
    """Return a status as the module packs it."""
    packed = uapi.STATUS.pack(
        *(3, 0, b"g" * 16, b"dm-0\xff"), *(253, 0, 4096, 8, 7, states), *(2, frozen, Attach.SINGLE),
        *(switches, SIZE, SIZE, 0, 32, 64, 10, 4096, 1, 2, 5),
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


@pytest.mark.parametrize(
    ("switches", "frozen", "counts"),
    [(0, 0, True), (1, 1, True), (1, 0, False), (2, 1, False)],
)
def test_an_unclean_start_is_past_when_a_full_backup_was_made(
    switches: int, frozen: int, counts: bool
) -> None:
    found = status(State.UNCLEAN | State.TABLE, switches=switches, frozen=frozen)
    assert len(found.faults) == 1 + counts
    assert State.UNCLEAN in found.states, "it stays to be seen"
