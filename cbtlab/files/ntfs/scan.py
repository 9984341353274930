"""Every record of $MFT, read in parts of some MiB, as a few tables of arrays.

A table has one position a record, a name, an attribute or a run; nothing loops over
records.  `Scan` gathers the tables of all parts.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from cbtlab.files.extents import Array
from cbtlab.files.ntfs import layout as on_disk
from cbtlab.files.ntfs.records import (
    Attributes,
    Bytes,
    Mask,
    attributes,
    fix_up,
    gather,
    hashes,
    strings,
)
from cbtlab.files.ntfs.runs import decode
from cbtlab.files.ntfs.system import Ntfs
from cbtlab.files.volume import structure

_PART = 8 << 20  # bytes of $MFT held at once
DAMAGED = "its record is damaged"
T = TypeVar("T")


@dataclass
class Table:
    """Arrays of one length."""

    def __len__(self) -> int:
        return len(getattr(self, fields(self)[0].name))

    def take(self: T, which: Any) -> T:
        """The chosen positions."""
        return type(self)(*(getattr(self, f.name)[which] for f in fields(self)))  # type: ignore

    @classmethod
    def join(cls: type[T], parts: list[Any]) -> T:
        """All of them, one after the other; there is at least one."""
        return cls(*(np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(cls)))  # type: ignore


@dataclass
class Records(Table):
    """Records in use, by rising number; ``base`` is the reference of those that extend another.

    ``update`` is where in the record its update sequence array lies.
    """

    number: Array
    sequence: Array
    flags: Array
    update: Array
    base: npt.NDArray[np.uint64]

    def rows_of(self, number: Array) -> Array:
        """The position of each number, or -1."""
        at = np.minimum(np.searchsorted(self.number, number), len(self.number) - 1)
        return np.where(self.number[at] == number, at, -1)


@dataclass
class Information(Table):
    """$STANDARD_INFORMATION: the record it lies in, and its fields."""

    record: Array
    fields: Any


@dataclass
class Names(Table):
    """$FILE_NAME: the record it lies in, its parent's reference, its name space, a hash."""

    record: Array
    parent: npt.NDArray[np.uint64]
    space: npt.NDArray[np.uint8]
    hash: npt.NDArray[np.uint64]


@dataclass
class Values(Table):
    """Resident attributes: the record, the value's place in it and its length in bytes.

    ``name`` is a code; ``tag`` is the first 32 bits of a reparse point.
    """

    record: Array
    type: Array
    name: Array
    at: Array
    length: Array
    flags: Array
    tag: Array


@dataclass
class Pieces(Table):
    """Attributes outside of their record, or pieces of them; ``lowest`` to ``highest`` cluster.

    ``size``, ``valid`` and ``allocated`` (in bytes) count in the piece with ``lowest`` 0.
    """

    record: Array
    type: Array
    name: Array
    flags: Array
    unit: Array
    lowest: Array
    highest: Array
    allocated: Array
    size: Array
    valid: Array


@dataclass
class PieceRuns(Table):
    """Runs: the position of their piece, and in clusters where they begin and their length."""

    piece: Array
    vcn: Array
    lcn: Array
    length: Array


@dataclass
class Listed(Table):
    """Each attribute of records that extend another, or have an attribute list."""

    record: Array
    type: Array
    instance: Array
    lowest: Array


@dataclass
class Scan:
    """The tables of all records; ``names[n]`` is the name of ``name[n]``.

    ``words[code]`` is the name of an attribute.  ``broken`` are records in use that cannot be
    read, ``damaged`` says of a record what is wrong with it.
    """

    records: Records
    information: Information
    name: Names
    names: list[bytes]
    resident: Values
    pieces: Pieces
    runs: PieceRuns
    listed: Listed
    words: list[bytes]
    broken: Array
    damaged: dict[int, str]


@dataclass
class _Parts:
    """The tables of the parts, not joined yet."""

    tables: dict[type[Any], list[Any]] = field(default_factory=dict)
    names: list[bytes] = field(default_factory=list)
    codes: dict[bytes, int] = field(default_factory=lambda: {b"": 0})
    pieces: int = 0
    broken: list[Array] = field(default_factory=list)
    damaged: dict[int, str] = field(default_factory=dict)

    def add(self, table: Table) -> None:
        self.tables.setdefault(type(table), []).append(table)


def scan(ntfs: Ntfs) -> Scan:
    """Read all records.  Raises InputError when no record is sound."""
    parts = _Parts()
    for first, rows in _rows(ntfs):
        _take(ntfs, parts, first, rows)
    unused = int(ntfs.used.sum()) - sum(len(part) for part in parts.tables[Records])
    unused -= sum(len(part) for part in parts.broken)
    if unused:
        ntfs.notes.append(f"{abs(unused)} records are in use by $MFT's bitmap alone, or without it")
    join = {kind: kind.join(tables) for kind, tables in parts.tables.items()}
    return Scan(
        join[Records],
        join[Information],
        join[Names],
        parts.names,
        join[Values],
        join[Pieces],
        join[PieceRuns],
        join[Listed],
        list(parts.codes),
        np.concatenate(parts.broken),
        parts.damaged,
    )


def _rows(ntfs: Ntfs) -> Iterator[tuple[int, Bytes]]:
    size = ntfs.boot.record
    each = _PART // size
    for first in range(0, ntfs.records, each):
        count = min(each, ntfs.records - first)
        data = ntfs.mft.read(first * size, count * size)
        yield first, np.frombuffer(data, np.uint8).reshape(count, size).copy()


def _take(ntfs: Ntfs, parts: _Parts, first: int, rows: Bytes) -> None:
    """Add the tables of one part."""
    marked = ntfs.used[first : first + len(rows)]
    good = fix_up(rows, b"FILE")
    header = structure(rows, on_disk.RECORD)
    good &= header["flags"] & on_disk.RECORD_IN_USE != 0
    # Where the bitmap has a record and nothing is there, a file may be hidden.
    formed = header["magic"] == b"FILE"
    idle = formed & (header["flags"] & on_disk.RECORD_IN_USE == 0)
    parts.broken.append(np.flatnonzero(marked & ~good & ~idle) + first)
    index = np.flatnonzero(good)
    rows, header = rows[index], header[index]
    number = index + first
    numbered = header["usa_offset"] >= on_disk.RECORD.itemsize
    wrong = numbered & (header["number"] != (number & 0xFFFFFFFF))
    found, bad = attributes(rows, header)
    parts.damaged |= dict.fromkeys(number[bad | wrong].tolist(), DAMAGED)
    flags, base = header["flags"].astype(np.int64), header["base"].copy()
    update = header["usa_offset"].astype(np.int64)
    parts.add(Records(number, header["sequence"].astype(np.int64), flags, update, base))
    kind = found.fields["type"]
    resident = found.fields["apart"] == 0
    _information(parts, number, found[(kind == on_disk.STANDARD_INFORMATION) & resident])
    _file_names(parts, number, found[(kind == on_disk.FILE_NAME) & resident])
    other = (kind != on_disk.STANDARD_INFORMATION) & (kind != on_disk.FILE_NAME)
    _values(parts, number, found[other & resident])
    _pieces(parts, number, found[~resident])
    _listed(parts, number, base, found)


def _information(parts: _Parts, number: Array, found: Attributes) -> None:
    length = found.fields["value_length"]
    bad = length < on_disk.INFORMATION_SHORT
    parts.damaged |= dict.fromkeys(number[found.row[bad]].tolist(), DAMAGED)
    found, length = found[~bad], length[~bad]
    values = gather(found.flat, found.at + found.fields["value_offset"], on_disk.INFORMATION)
    values["security"][length < on_disk.INFORMATION.itemsize] = 0
    parts.add(Information(number[found.row], values))


def _file_names(parts: _Parts, number: Array, found: Attributes) -> None:
    length = found.fields["value_length"].astype(np.int64)
    place = found.at + found.fields["value_offset"]
    place = np.minimum(place, len(found.flat) - on_disk.NAME.itemsize)
    values = gather(found.flat, place, on_disk.NAME)
    many = values["length"].astype(np.int64)
    bad = (length < on_disk.NAME.itemsize + 2 * many) | (many == 0)
    parts.damaged |= dict.fromkeys(number[found.row[bad]].tolist(), DAMAGED)
    good = ~bad
    row, place, values, many = found.row[good], place[good], values[good], many[good]
    text = place + on_disk.NAME.itemsize
    parts.names += strings(found.flat, text, many)
    own = hashes(found.flat, text, many)
    parts.add(Names(number[row], values["parent"].copy(), values["space"].copy(), own))


def _values(parts: _Parts, number: Array, found: Attributes) -> None:
    values, at = found.fields, found.inside + found.fields["value_offset"]
    length = values["value_length"].astype(np.int64)
    tag = np.zeros(len(found), np.int64)
    points = np.flatnonzero((values["type"] == on_disk.REPARSE_POINT) & (length >= 8))
    place = found.at[points] + values["value_offset"][points]
    tag[points] = gather(found.flat, place, np.dtype([("tag", "<u4")]))["tag"]
    parts.add(
        Values(
            number[found.row],
            values["type"].astype(np.int64),
            _codes(parts, found),
            at.astype(np.int64),
            length,
            values["flags"].astype(np.int64),
            tag,
        )
    )


def _pieces(parts: _Parts, number: Array, found: Attributes) -> None:
    values = found.fields
    which, vcn, lcn, length, bad = decode(
        found.flat,
        found.at + values["pairs"],
        found.at + values["length"].astype(np.int64),
        values["lowest"].astype(np.int64),
    )
    covered = np.bincount(which, weights=length, minlength=len(found)).astype(np.int64)
    # An attribute without clusters has the highest one -1.
    bad |= values["highest"] - values["lowest"] + 1 != covered
    parts.damaged |= dict.fromkeys(number[found.row[bad]].tolist(), DAMAGED)
    columns = ("flags", "unit", "lowest", "highest", "allocated", "size", "valid")
    own = {name: values[name].astype(np.int64) for name in columns}
    kind = values["type"].astype(np.int64)
    parts.add(Pieces(number[found.row], kind, _codes(parts, found), **own))
    parts.add(PieceRuns(which + parts.pieces, vcn, lcn, length))
    parts.pieces += len(found)


def _codes(parts: _Parts, found: Attributes) -> Array:
    """The code of each attribute's name."""
    codes = np.zeros(len(found), np.int64)
    named = np.flatnonzero(found.fields["name_length"])
    known = parts.codes
    words = found[named].names()
    codes[named] = [known.setdefault(word, len(known)) for word in words]
    return codes


def _listed(parts: _Parts, number: Array, base: Any, found: Attributes) -> None:
    kind = found.fields["type"]
    whole: Mask = base != 0
    whole[found.row[kind == on_disk.ATTRIBUTE_LIST]] = True
    found = found[whole[found.row] & (kind != on_disk.ATTRIBUTE_LIST)]
    values = found.fields
    apart = values["apart"] == 1
    parts.add(
        Listed(
            number[found.row],
            values["type"].astype(np.int64),
            values["instance"].astype(np.int64),
            np.where(apart, values["lowest"], 0),
        )
    )
