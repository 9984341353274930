"""An NTFS volume opened: where $MFT lies, which records and clusters are in use, its version.

The files that describe the volume are read one attribute at a time; `scan` reads the rest.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from cbtlab.errors import InputError
from cbtlab.files.extents import Array
from cbtlab.files.ntfs import layout as on_disk
from cbtlab.files.ntfs.boot import fault, read_boot
from cbtlab.files.ntfs.records import Attributes, Bytes, Mask, attributes, fix_up
from cbtlab.files.ntfs.runs import HOLE, Runs, decode
from cbtlab.files.ranges import Ranges
from cbtlab.files.volume import Volume, structure

_LONGEST_LIST = 1 << 20  # bytes of an attribute list; Windows stops at 256 KiB


@dataclass(frozen=True)
class Value:
    """The value of one attribute: ``size`` bytes, of which ``valid`` were written."""

    size: int
    valid: int
    held: bytes | None  # of a resident one
    runs: Runs | None = None

    def read(self, offset: int, length: int) -> bytes:
        """Bytes of the value, within its size; what was never written is zeros."""
        if self.held is not None or self.runs is None:
            return (self.held or b"")[offset : offset + length]
        count = max(min(offset + length, self.valid) - offset, 0)
        return self.runs.read(offset, count) + bytes(length - count)


class Ntfs:
    """The volume's own files.  Raises InputError where one of them is damaged.

    ``used`` has one bool a record of $MFT; ``records`` is how many there are; ``allocated`` has
    the bytes of $Bitmap; ``notes`` gathers what is odd.
    """

    def __init__(self, volume: Volume) -> None:
        self.volume, self.boot = volume, read_boot(volume)
        self.notes: list[str] = []
        self.version = ""
        self.mft = Runs(volume, self.boot.cluster, *(np.empty(0, np.int64) for _ in range(3)))
        self.records = self._open_mft()
        self.used = self._used_records()
        self._compare_mirror()

    @property
    def cluster(self) -> int:
        """Bytes of a cluster."""
        return self.boot.cluster

    def fault(self, words: str) -> InputError:
        """The error to raise for damage."""
        return fault(self.volume, words)

    # $MFT -----------------------------------------------------------------------------------

    def _open_mft(self) -> int:
        self._first = self._first_record()
        value = self.find(on_disk.MFT, on_disk.DATA)
        if value is None or value.runs is None or (value.runs.lcn == HOLE).any():
            raise self.fault("$MFT has no sound runs")
        self.mft = value.runs
        length = Ranges.union(self.mft.lcn, self.mft.length).length.sum()
        if length != self.mft.length.sum() or value.valid > self.mft.size:
            raise self.fault("$MFT has clusters twice, or fewer than its size needs")
        return min(value.size, value.valid) // self.boot.record

    def _first_record(self) -> Bytes:
        size = self.boot.record
        place = self.boot.mft * self.cluster
        row = np.frombuffer(self.volume.read(place, size), np.uint8).reshape(1, size).copy()
        if not fix_up(row, b"FILE")[0]:
            raise self.fault("the first record of $MFT is damaged")
        return row

    def _used_records(self) -> Mask:
        value = self.find(on_disk.MFT, on_disk.BITMAP)
        if value is None or value.size * 8 < self.records or self.records <= on_disk.RESERVED:
            raise self.fault("the bitmap of $MFT is missing or too short")
        data = np.frombuffer(value.read(0, -(-self.records // 8)), np.uint8)
        return np.unpackbits(data, count=self.records, bitorder="little").view(np.bool_)

    def _compare_mirror(self) -> None:
        size = min(4 * self.boot.record, self.mft.size)
        copy = self.volume.read(self.boot.mirror * self.cluster, size)
        if copy != self.mft.read(0, size):
            self.notes.append("$MFTMirr is not equal to the first records of $MFT")

    def rows(self, numbers: Array) -> tuple[Bytes, Mask]:
        """Records by number as rows, fixed up, and which of them are whole."""
        rows = self.raw_rows(numbers)
        return rows, fix_up(rows, b"FILE")

    def raw_rows(self, numbers: Array) -> Bytes:
        """Records by number as rows, as they lie on the disk."""
        size = self.boot.record
        piece = min(size, self.cluster)
        offset = numbers[:, None] * size + np.arange(0, size, piece)
        place = self.mft.places(offset.ravel())
        return self.volume.blocks(place // piece, piece).reshape(-1, size)

    # Single attributes ----------------------------------------------------------------------

    def find(self, number: int, kind: int, name: bytes = b"") -> Value | None:
        """The attribute of a record, or None; with the pieces that other records hold.

        Raises InputError on damage.
        """
        found = self._attributes(number)
        lists = found[found.fields["type"] == on_disk.ATTRIBUTE_LIST]
        pieces = [_chosen(found, kind, name)]
        if len(lists):
            listed = self._whole([lists], number)
            if listed.size > _LONGEST_LIST:
                raise self.fault(f"record {number} has an attribute list of {listed.size} bytes")
            for other in _elsewhere(listed.read(0, listed.size), number, kind):
                if number == on_disk.MFT and kind == on_disk.DATA:
                    # A later record of $MFT lies in what the earlier ones describe.
                    runs = self._whole(pieces, number).runs
                    self.mft = runs or self.mft
                more = self._attributes(other, number)
                pieces.append(_chosen(more, kind, name))
        return self._whole(pieces, number) if any(len(piece) for piece in pieces) else None

    def _attributes(self, number: int, base: int | None = None) -> Attributes:
        """All attributes of one record; it must belong to ``base``."""
        if number == on_disk.MFT:
            row, good = self._first, True
        else:
            if not 0 <= number < self.mft.size // self.boot.record:
                raise self.fault(f"record {number} lies outside of $MFT")
            row, whole = self.rows(np.array([number]))
            good = bool(whole[0])
        header = structure(row, on_disk.RECORD)
        belongs = int(header["base"][0]) & on_disk.NUMBER == (base or 0)
        if not good or not belongs or not header["flags"][0] & on_disk.RECORD_IN_USE:
            raise self.fault(f"record {number} of $MFT is damaged")
        found, bad = attributes(row, header)
        if bad[0]:
            raise self.fault(f"record {number} of $MFT is damaged")
        return found

    def _whole(self, pieces: list[Attributes], number: int) -> Value:
        """One attribute of its pieces, each of which has been checked to lie in its record."""
        parts: list[tuple[Array, ...]] = []
        size = valid = 0
        for piece in pieces:
            for at, field in zip(piece.at.tolist(), piece.fields, strict=True):
                if not field["apart"]:
                    start = at + int(field["value_offset"])
                    data = piece.flat[start : start + int(field["value_length"])].tobytes()
                    return Value(len(data), len(data), data)
                if field["lowest"] == 0:
                    size, valid = int(field["size"]), int(field["valid"])
                parts.append(self._runs(piece.flat, at, field, number))
        parts.sort(key=lambda part: int(part[0][0]))
        vcn, lcn, length = (np.concatenate([part[n] for part in parts]) for n in range(3))
        runs = Runs(self.volume, self.cluster, vcn, lcn, length)
        end = np.concatenate(([0], vcn + length))[:-1]
        sound = bool((end == vcn).all()) and 0 <= valid <= size
        inside = (lcn == HOLE) | ((lcn >= 0) & (lcn + length <= self.boot.clusters))
        if not sound or not inside.all():
            raise self.fault(f"record {number} of $MFT has damaged runs")
        return Value(size, valid, None, runs)

    def _runs(self, flat: Bytes, at: int, field: Any, number: int) -> tuple[Array, ...]:
        start, end = at + int(field["pairs"]), at + int(field["length"])
        which, vcn, lcn, length, bad = decode(
            flat, *(np.array([value], np.int64) for value in (start, end, int(field["lowest"])))
        )
        if bad[0] or not len(which) or field["flags"] & on_disk.COMPRESSED:
            raise self.fault(f"record {number} of $MFT has damaged runs")
        return vcn, lcn, length


def _chosen(found: Attributes, kind: int, name: bytes) -> Attributes:
    mine = found[found.fields["type"] == kind]
    return mine[np.array([own == name for own in mine.names()], np.bool_)]


def _elsewhere(listed: bytes, number: int, kind: int) -> list[int]:
    """The other records that hold attributes of the type, in the order of the list."""
    at, others = 0, []
    while at + on_disk.LIST_ENTRY.itemsize <= len(listed):
        entry = structure(listed[at:], on_disk.LIST_ENTRY)
        other = int(entry["reference"]) & on_disk.NUMBER
        if entry["type"] == kind and other != number:
            others.append(other)
        if entry["length"] < on_disk.LIST_ENTRY.itemsize:
            break
        at += int(entry["length"])
    return list(dict.fromkeys(others))
