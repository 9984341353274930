"""The trackers of a native stream: described in its header, between its events, or nowhere."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from cbtlab.errors import InputError
from cbtlab.units import MAX_GRANULARITY, MIN_GRANULARITY
from cbtlab.writes.layout import MAX_TRACKERS, TRACKER
from cbtlab.writes.order import OP_TRACKER
from cbtlab.writes.schema import VOLUMES

_AT_ONCE = 1 << 20  # records
_MOST = 10  # named in a sentence

Table = np.ndarray[Any, Any]


def survey(records: Table) -> tuple[Table, dict[int, int]]:
    """Return the trackers (TRACKER) that records (EVENT) describe, and each id's count of events.

    A record has room for the first 16 bytes of a name.
    """
    found = [records[:0]]
    count = np.zeros(MAX_TRACKERS + 1, np.int64)
    for at in range(0, len(records), _AT_ONCE):
        window = records[at : at + _AT_ONCE]
        told = window["op"] == OP_TRACKER
        found.append(window[told])
        count += np.bincount(window["tracker"][~told], minlength=MAX_TRACKERS + 1)
    all_told = np.concatenate(found)
    trackers = np.zeros(len(all_told), TRACKER)
    trackers["id"] = all_told["tracker"]
    trackers["role"] = np.minimum(all_told["flags"], 255)
    trackers["granularity"] = np.minimum(all_told["inode"], (1 << 32) - 1)
    trackers["interval"] = all_told["interval"]
    trackers["volume_size"] = all_told["length"]
    trackers["name"] = all_told["comm"]
    return trackers, {int(number): int(count[number]) for number in np.flatnonzero(count)}


def check(trackers: Table, source: object) -> None:
    """Refuse a table (TRACKER) with values that cannot be, or an id twice: InputError."""
    granularity = trackers["granularity"].astype(np.int64)
    bad = (
        (trackers["role"] < 1)
        | (trackers["role"] > len(VOLUMES))
        | (trackers["id"] > MAX_TRACKERS)
        | (granularity < MIN_GRANULARITY)
        | (granularity > MAX_GRANULARITY)
        | (granularity & (granularity - 1) != 0)
        | (trackers["volume_size"] >> np.uint64(62) != 0)
    )
    if bad.any() or len(np.unique(trackers["id"])) != len(trackers):
        raise InputError(source, "has a table of trackers that is damaged")


def listed(trackers: Table, counts: dict[int, int]) -> list[dict[str, Any]]:
    """Return id, role, name, volume size and events of each tracker, by id.

    Those that nobody describes too: role and size None, name empty.
    """
    told = {
        int(one["id"]): {
            "role": VOLUMES[int(one["role"]) - 1],
            "name": bytes(one["name"]).split(b"\0")[0].decode("utf-8", "backslashreplace"),
            "volume_size": int(one["volume_size"]),
        }
        for one in trackers
    }
    nothing = {"role": None, "name": "", "volume_size": None}
    return [
        {"id": number, **told.get(number, nothing), "events": counts.get(number, 0)}
        for number in sorted(told.keys() | counts.keys())
    ]


def notes(trackers: Table, counts: dict[int, int]) -> Iterator[str]:
    """Yield what a reader of the events should know: unknown trackers, several of one role."""
    writing = [one for one in listed(trackers, counts) if one["events"]]
    unknown = [one for one in writing if one["role"] is None]
    if unknown:
        events = sum(one["events"] for one in unknown)
        yield (
            f"{events} events are of trackers that it does not describe ({_named(unknown)}), "
            "detached before they were saved: their volume is null"
        )
    for role in VOLUMES:
        mine = [one for one in writing if one["role"] == role]
        if len(mine) > 1:
            yield f"{len(mine)} trackers have the role {role} ({_named(mine)}): take one at a time"


def _named(some: list[dict[str, Any]]) -> str:
    told = ", ".join(f"{one['id']} {one['name']}".rstrip() for one in some[:_MOST])
    return told + (", ..." if len(some) > _MOST else "")
