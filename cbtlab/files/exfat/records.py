"""The record sets of exFAT folders: checked, and taken apart, all of a level at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cbtlab.files.exfat import layout as on_disk
from cbtlab.files.fat.times import nanoseconds

Array = npt.NDArray[np.int64]
Rows = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]
_KNOWN = (on_disk.KIND_FILE, on_disk.KIND_STREAM, on_disk.KIND_NAME)
_OF_THE_VOLUME = (on_disk.KIND_BITMAP, on_disk.KIND_UPCASE, on_disk.KIND_LABEL)
_QUARTER = 15 * 60 * 10**9  # the unit of a zone, in nanoseconds


@dataclass(frozen=True)
class Sets:
    """The sets of files and folders; ``first`` is the row of each one's first record.

    ``file`` and ``stream`` are the first two records of each.
    """

    first: Array
    file: npt.NDArray[Any]
    stream: npt.NDArray[Any]


def faulty(rows: Rows, folder: Array, root: bool) -> tuple[int, str] | None:
    """The first folder with something wrong in the order of its records, and what; or None.

    ``rows`` are the records of whole folders, one after the other.  Records of the volume
    itself may stand in the root folder alone.
    """
    kind = rows[:, 0]
    live = kind >= on_disk.IN_USE
    ends = np.flatnonzero(kind == on_disk.END)
    folders, at = np.unique(folder[ends], return_index=True)
    mark = np.full(int(folder[-1]) + 1 if len(folder) else 0, len(rows))
    mark[folders] = ends[at]
    row = np.arange(len(rows))
    behind = live & (row > mark[folder])
    first = np.flatnonzero(kind == on_disk.KIND_FILE)
    many = rows[first, 1].astype(np.int64)
    stop = first + many
    inside = stop < len(rows)
    inside[inside] = folder[stop[inside]] == folder[first[inside]]
    cut = np.zeros(len(rows), np.bool_)
    cut[first[~inside | (many < 2)]] = True
    # In a set of a file stand secondary records and nothing else, and these stand nowhere else.
    part = np.zeros(len(rows) + 1, np.int64)
    np.add.at(part, first[inside] + 1, 1)
    np.add.at(part, stop[inside] + 1, -1)
    within = np.cumsum(part)[:-1]
    secondary = live & (kind & on_disk.SECONDARY != 0)
    stray = live & ~_of_benign(kind, secondary) & (secondary != (within == 1))
    stray |= (within > 0) & ~secondary
    second = np.zeros(len(rows), np.bool_)
    second[first[inside]] = kind[first[inside] + 1] != on_disk.KIND_STREAM
    critical = live & (kind & on_disk.BENIGN == 0)
    unknown = critical & ~np.isin(kind, _KNOWN + _OF_THE_VOLUME * root)
    for wrong, words in (
        (behind, "records are in use behind its end mark"),
        (unknown, "it has a record of a kind that is not known"),
        (cut, "the records of a file are cut short"),
        (stray, "its records are out of order"),
        (second, "a file has no record of its content"),
    ):
        found = np.flatnonzero(wrong)
        if len(found):
            return int(folder[found[0]]), words
    return None


def _of_benign(kind: npt.NDArray[np.uint8], secondary: Mask) -> Mask:
    """Secondary records that follow a benign primary one, which is passed over with them."""
    primary = (kind >= on_disk.IN_USE) & ~secondary
    row = np.arange(len(kind))
    last = np.maximum.accumulate(np.where(primary, row, -1))
    benign = (last >= 0) & (kind[last] & on_disk.BENIGN != 0)
    return np.asarray(benign & secondary, np.bool_)


def sets(rows: Rows) -> Sets:
    """The sets of files in rows that are not `faulty`."""
    first = np.flatnonzero(rows[:, 0] == on_disk.KIND_FILE)
    own = np.ascontiguousarray(rows[first]).view(on_disk.FILE)[:, 0]
    stream = np.ascontiguousarray(rows[first + 1]).view(on_disk.STREAM)[:, 0]
    return Sets(first, own, stream)


def wrong_checksums(rows: Rows, found: Sets) -> Mask:
    """Which sets do not have the checksum that stands in their first record."""
    wrong = np.zeros(len(found.first), np.bool_)
    for many in np.unique(found.file["secondaries"]).tolist():
        at = np.flatnonzero(found.file["secondaries"] == many)
        whole = rows[found.first[at, None] + np.arange(many + 1)].reshape(len(at), -1)
        total = np.zeros(len(at), np.uint16)
        for number, column in enumerate(np.ascontiguousarray(whole.T)):
            if number not in (2, 3):
                total = (total >> 1 | total << 15) + column
        wrong[at] = total != found.file["checksum"][at]
    return wrong


def name_units(rows: Rows, found: Sets) -> npt.NDArray[np.uint16] | None:
    """The names as rows of UTF-16 units, zeros behind them; None where a set has not all of one.

    The records of the name follow that of the content, before any other.
    """
    length = found.stream["name_length"].astype(np.int64)
    parts = -(-length // on_disk.NAME_UNITS)
    if (length == 0).any() or (parts > found.file["secondaries"].astype(np.int64) - 1).any():
        return None
    most = int(parts.max()) if len(parts) else 0
    units = np.zeros((len(length), most * on_disk.NAME_UNITS), np.uint16)
    for number in range(most):
        at = np.flatnonzero(parts > number)
        part = np.ascontiguousarray(rows[found.first[at] + 2 + number]).view(on_disk.NAME)[:, 0]
        if (part["kind"] != on_disk.KIND_NAME).any():
            return None
        column = number * on_disk.NAME_UNITS
        units[at, column : column + on_disk.NAME_UNITS] = part["units"]
    inside = np.arange(units.shape[1]) < length[:, None]
    units[~inside] = 0
    return None if (units[inside] == 0).any() else units


def name_hashes(units: npt.NDArray[np.uint16], upcase: npt.NDArray[np.uint16]) -> Any:
    """The hash of each name in capital letters, as its record of the content has it."""
    total = np.zeros(len(units), np.uint16)
    for column in np.ascontiguousarray(units.T):
        live = column != 0
        capital = upcase[column]
        after = total
        for byte in (capital & 0xFF, capital >> 8):
            after = (after >> 1 | after << 15) + byte
        total = np.where(live, after, total)
    return total


def capitals(raw: bytes) -> npt.NDArray[np.uint16]:
    """The table of capital letters: one a unit; in ``raw``, 0xFFFF and a count skip the equal."""
    table = np.arange(65536, dtype=np.uint16)
    units = np.frombuffer(raw, "<u2")
    skips = np.append(np.flatnonzero(units == 0xFFFF), len(units))
    at = place = 0
    while at < len(units) and place < 65536:
        until = int(skips[np.searchsorted(skips, at)])
        many = min(until - at, 65536 - place)
        table[place : place + many] = units[at : at + many]
        place += many
        if until + 1 < len(units):
            place += int(units[until + 1])
        at = until + 2
    return table


def times(stamp: npt.NDArray[Any], centiseconds: Any, zone: npt.NDArray[Any]) -> Array:
    """Nanoseconds since 1970 UTC; local time of a zone that is not told is taken as UTC."""
    local = nanoseconds(stamp >> 16, stamp & 0xFFFF, centiseconds)
    quarters = (zone & 0x7F).astype(np.int64)
    quarters = np.where(quarters >= 64, quarters - 128, quarters)
    return np.asarray(local - np.where(zone & 0x80, quarters * _QUARTER, 0), np.int64)
