"""MFT records and index blocks, many at once: update sequences, and the attributes of each.

One row is one record.  The loops take the next attribute of every row in one step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cbtlab.files.extents import Array
from cbtlab.files.ntfs import layout as on_disk

Bytes = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]
PAD = 64  # bytes behind the last that `gather` may read over


def gather(flat: Bytes, at: Array, kind: np.dtype[Any]) -> Any:
    """The structures of a type at each place of ``flat``, copied; all lie inside of it."""
    window = np.lib.stride_tricks.sliding_window_view(flat, kind.itemsize)
    return np.ascontiguousarray(window[at]).view(kind)[:, 0]


def fix_up(rows: Bytes, magic: bytes) -> Mask:
    """Put back, in place, the bytes that the update sequence took; tell which rows are whole.

    A row is whole when it has the magic and every stride of 512 bytes ends with the number of
    the sequence.  Others are left as they are.
    """
    strides = rows.shape[1] // on_disk.STRIDE
    head = np.ascontiguousarray(rows[:, :8])
    offset = head[:, 4:6].copy().view("<u2")[:, 0].astype(np.int64)
    count = head[:, 6:8].copy().view("<u2")[:, 0]
    good = (head[:, :4].copy().view("S4")[:, 0] == magic) & (count == strides + 1)
    good &= (offset >= 8) & (offset % 2 == 0) & (offset + 2 * (strides + 1) <= on_disk.STRIDE - 2)
    offset = np.where(good, offset, 8)
    column = offset[:, None] + np.arange(2 * (strides + 1))
    array = np.take_along_axis(rows, column, axis=1).view("<u2")
    last = rows.reshape(len(rows), strides, on_disk.STRIDE)[:, :, -2:]
    good &= (np.ascontiguousarray(last).view("<u2")[:, :, 0] == array[:, :1]).all(axis=1)
    original = np.ascontiguousarray(array[:, 1:]).view(np.uint8).reshape(len(rows), strides, 2)
    last[good] = original[good]
    return good


@dataclass(frozen=True)
class Attributes:
    """Attributes of many records: ``row`` of the record, place ``at`` in ``flat``, fields.

    ``at`` counts from the start of all rows; ``inside`` is the place in the record.
    """

    flat: Bytes
    row: Array
    at: Array
    inside: Array
    fields: Any

    def __len__(self) -> int:
        return len(self.row)

    def __getitem__(self, which: Any) -> Attributes:
        return Attributes(
            self.flat, self.row[which], self.at[which], self.inside[which], self.fields[which]
        )

    def names(self) -> list[bytes]:
        """The name of each attribute, in UTF-8."""
        place = self.at + self.fields["name_offset"]
        return strings(self.flat, place, self.fields["name_length"].astype(np.int64))


def attributes(rows: Bytes, header: Any) -> tuple[Attributes, Mask]:
    """The attributes of fixed-up records, in order, and which records are damaged.

    What is returned lies inside of its record: its name, its value or its mapping pairs too.
    """
    size = rows.shape[1]
    flat = np.concatenate((rows.ravel(), np.zeros(PAD, np.uint8)))
    words = flat.view("<u4")
    end = header["used"].astype(np.int64)
    at = header["attributes"].astype(np.int64)
    bad = (end > size) | (end % 8 != 0) | (at % 8 != 0) | (at < 42) | (at + 8 > end)
    alive = np.flatnonzero(~bad)
    at, end = at[alive], end[alive]
    found: list[tuple[Array, Array]] = []
    while len(alive):
        place = (alive * size + at) // 4
        length = words[place + 1].astype(np.int64)
        more = words[place] != on_disk.END
        good = (length >= 24) & (length % 8 == 0) & (at + length + 8 <= end)
        bad[alive[more & ~good]] = True
        more &= good
        alive, at, end, length = alive[more], at[more], end[more], length[more]
        found.append((alive, at))
        at = at + length
    row = np.concatenate([part[0] for part in found]) if found else np.empty(0, np.int64)
    inside = np.concatenate([part[1] for part in found]) if found else np.empty(0, np.int64)
    order = np.argsort(row, kind="stable")
    row, inside = row[order], inside[order]
    fields = gather(flat, row * size + inside, on_disk.ATTRIBUTE)
    fits = _fits(fields)
    bad[row[~fits]] = True
    every = Attributes(flat, row, row * size + inside, inside, fields)
    return (every[fits] if not fits.all() else every), bad


def _fits(fields: Any) -> Mask:
    """Whether name and value, or mapping pairs, lie inside of the attribute."""
    length = fields["length"].astype(np.int64)
    named = fields["name_length"] > 0
    name = fields["name_offset"] + 2 * fields["name_length"].astype(np.int64)
    value = fields["value_offset"] + fields["value_length"].astype(np.int64)
    apart = fields["apart"] == 1
    good = ~named | ((name <= length) & (fields["name_offset"] >= 24))
    good &= apart | (fields["apart"] == 0)
    good &= apart | ((value <= length) & (fields["value_offset"] >= 24))
    pairs = (length >= 72) & (fields["pairs"] >= 64) & (fields["pairs"] < length)
    return np.asarray(good & (~apart | pairs), np.bool_)


def strings(flat: Bytes, place: Array, length: Array) -> list[bytes]:
    """The UTF-16 strings of ``length`` units at each place of ``flat``, in UTF-8.

    A surrogate without its other half becomes the three bytes that UTF-8 would have for it, so
    that no two names become one.  A slash, which no name may have, becomes a NUL.
    """
    if not len(place):
        return []
    end = np.cumsum(length + 1)
    units = np.full(int(end[-1]), ord("/"), "<u2")
    which, within, value = _units(flat, place, length)
    units[(end - length - 1)[which] + within] = np.where(value == ord("/"), 0, value)
    text = units.tobytes().decode("utf-16-le", "surrogatepass")
    return text.encode("utf-8", "surrogatepass").split(b"/")[:-1]


def hashes(flat: Bytes, place: Array, length: Array) -> npt.NDArray[np.uint64]:
    """A hash of each such string: the sum of its units, each times a number of its place."""
    _, within, value = _units(flat, place, length)
    product = (value.astype(np.uint64) + np.uint64(1)) * _FACTORS[within]
    total = np.concatenate((np.zeros(1, np.uint64), np.cumsum(product, dtype=np.uint64)))
    end = np.cumsum(length)
    return total[end] - total[end - length]


_FACTORS = np.random.default_rng(1).integers(0, 1 << 64, 256, np.uint64) | np.uint64(1)


def _units(flat: Bytes, place: Array, length: Array) -> tuple[Array, Array, Array]:
    """Of every unit of every string: which string, its place in it, and its value."""
    which = np.repeat(np.arange(len(place)), length)
    within = np.arange(len(which)) - np.repeat(np.cumsum(length) - length, length)
    source = place[which] + 2 * within
    return which, within, flat[source] | flat[source + 1].astype(np.int64) << 8


def chain(
    flat: Bytes, start: Array, end: Array, field: int, least: int, last: int | None = None
) -> tuple[Array, Array, Mask]:
    """Entries that lie behind each other from ``start`` to ``end``, of many chains at once.

    An entry has its length in 16 bits at ``field``, at least ``least``; with ``last``, the byte
    there has bit 2 in a chain's last entry.  Gives the chain and the place of each entry, in
    order, and which chains are damaged: those that do not end where they should.
    """
    bad = np.zeros(len(start), np.bool_)
    which, at, stop = np.arange(len(start)), start, end
    found: list[tuple[Array, Array]] = []
    while len(which):
        room = at + least <= stop
        bad[which[~room & ((at != stop) | (last is not None))]] = True
        which, at, stop = which[room], at[room], stop[room]
        length = flat[at + field].astype(np.int64) | flat[at + field + 1].astype(np.int64) << 8
        good = (length >= least) & (length % 8 == 0) & (at + length <= stop)
        bad[which[~good]] = True
        which, at, stop, length = which[good], at[good], stop[good], length[good]
        found.append((which, at))
        if last is not None:
            more = flat[at + last] & 2 == 0
            which, at, stop, length = which[more], at[more], stop[more], length[more]
        at = at + length
    owner = np.concatenate([part[0] for part in found]) if found else np.empty(0, np.int64)
    place = np.concatenate([part[1] for part in found]) if found else np.empty(0, np.int64)
    order = np.argsort(owner, kind="stable")
    return owner[order], place[order], bad
