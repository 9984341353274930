"""What the kernel module tells of itself and of a tracker."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cbtlab.record.stream import Described
from cbtlab.record.uapi import NO_TABLES, Attach, Role, State

_FULL = "the next backup must be a full one"
_NEW = f"{_FULL}, on a tracker attached anew"
_NONE = "there can be no next backup"
_FAULTS = {
    State.GREW: ("it is larger than it was when it was attached, or was written there", _NEW),
    State.SHRANK: ("it became smaller than it was when it was attached, if only for a while", _NEW),
    State.RUNNING: ("an interval was switched while it was not suspended", _NEW),
    State.UNHOOKED: ("another module replaced the write handler", _NEW),
    State.GONE: ("its device was removed", _NONE),
    State.TABLE: ("its device-mapper table was exchanged, and its content unseen", _NEW),
    State.UNCLEAN: ("it was tracked before, and those bitmaps were lost", _FULL),
    State.LOADING: ("its earlier bitmaps were not loaded to the end", f"{_FULL} until they are"),
    State.MISSED: ("it was written after its tracker was sealed", _NEW),
}


@dataclass(frozen=True)
class Info:
    """The module and its rings; see ``struct cbt_info``."""

    version: int
    event_bytes: int
    generation: bytes
    next_seq: int
    recorded: int
    dropped: int
    first_dropped: int
    last_dropped: int
    ring_used: int
    monotonic_ns: int
    realtime_ns: int
    trackers: int
    flags: int
    rings: int
    ring_room: int
    tails_bytes: int
    rings_bytes: int
    slots_offset: int

    @property
    def sees_tables(self) -> bool:
        """Whether an exchange of a device-mapper table is noticed on this kernel."""
        return not self.flags & NO_TABLES


@dataclass(frozen=True)
class Status:
    """One tracker; see ``struct cbt_status``.  Sizes and offsets are bytes."""

    tracker: int
    generation: bytes
    name: str
    major: int
    minor: int
    granularity: int
    interval: int
    first_interval: int
    states: State
    role: Role
    frozen: bool
    attach_flags: Attach
    switches: int
    volume_size: int
    current_size: int
    grown_to: int
    bitmap_bytes: int
    memory: int
    events: int
    bytes: int
    discards: int
    remainders: int
    tables: int

    @classmethod
    def unpacked(cls, fields: Sequence[Any]) -> Status:
        """Return the status whose ``struct cbt_status`` has these fields, flags among them."""
        tracker, _, generation, name, *numbers = fields
        *head, states, role, frozen, flags = numbers[:9]
        text = name.split(b"\0")[0].decode(errors="backslashreplace")
        told = [State(states), Role(role), bool(frozen), Attach(flags)]
        values: list[Any] = [tracker, generation, text, *head, *told, *numbers[9:]]
        return cls(*values)

    @property
    def sealed(self) -> bool:
        """Whether it records no more."""
        return State.SEALED in self.states

    @property
    def counting(self) -> State:
        """Its states, less UNCLEAN when that is past.

        At the first switch the full backup that it asks for can be made; when
        the frozen bitmaps are cleared it has been.
        """
        past = self.switches > 1 or (self.switches == 1 and not self.frozen)
        return self.states & ~State.UNCLEAN if past else self.states

    @property
    def faults(self) -> list[str]:
        """Why an incremental cannot rest on this tracker's bitmap; empty when it can."""
        states = self.counting
        return [f"{words}: {so}" for state, (words, so) in _FAULTS.items() if state in states]

    def described(self) -> Described:
        """Return what a stream's header says of this tracker."""
        return Described(
            self.tracker,
            self.role,
            self.granularity,
            self.first_interval,
            self.volume_size,
            self.name,
        )


@dataclass(frozen=True)
class Switched:
    """The instant of a switch: CLOCK_MONOTONIC, and the next event's number."""

    time_ns: int
    seq: int
    frozen_ns: int
    suspended: bool
