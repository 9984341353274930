"""Mapping pairs: the runs of clusters of attributes that lie outside of their record."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cbtlab.errors import InputError
from cbtlab.files.extents import Array
from cbtlab.files.ntfs.boot import fault
from cbtlab.files.ntfs.records import Bytes, Mask
from cbtlab.files.volume import Volume

HOLE = -1
_MOST = 1 << 44  # clusters of one run: 2^64 bytes in clusters of 512 bytes have fewer


def decode(
    flat: Bytes, at: Array, end: Array, lowest: Array
) -> tuple[Array, Array, Array, Array, Mask]:
    """Decode the mapping pairs from ``at`` to ``end`` of ``flat``, those of many attributes.

    Gives, for every run, the position of its attribute, and in clusters its virtual and logical
    start (`HOLE` for none) and length, in order; and which attributes are damaged.  ``flat`` goes
    on for 16 bytes behind the last pair.
    """
    windows = np.lib.stride_tricks.sliding_window_view(flat, 8)
    bad = (lowest < 0) | (lowest > _MOST)
    which = np.flatnonzero(~bad)
    at, end, vcn = at[which], end[which], lowest[which]
    lcn = np.zeros(len(which), np.int64)
    found: list[tuple[Array, ...]] = []
    while len(which):
        alive = at < end
        head = np.where(alive, flat[np.minimum(at, len(flat) - 1)], 0).astype(np.int64)
        bad[which[~alive]] = True  # no zero ended them
        going = head != 0
        which, at, end, vcn, lcn, head = (a[going] for a in (which, at, end, vcn, lcn, head))
        wide, far = head & 15, head >> 4
        after = at + 1 + wide + far
        good = (wide >= 1) & (wide <= 8) & (far <= 8) & (after <= end)
        bad[which[~good]] = True
        which, at, end, vcn, lcn = (a[good] for a in (which, at, end, vcn, lcn))
        wide, far, after = wide[good], far[good], after[good]
        length = _number(windows, at + 1, wide)
        lcn = lcn + _number(windows, at + 1 + wide, far)
        good = (length > 0) & (length < _MOST) & (vcn + length < _MOST) & (np.abs(lcn) < _MOST)
        bad[which[~good]] = True
        which, at, end, vcn, lcn = (a[good] for a in (which, after, end, vcn, lcn))
        length, far = length[good], far[good]
        # -1 for a hole is how version 1.2 wrote it.
        hole = (far == 0) | (lcn == HOLE)
        found.append((which, vcn, np.where(hole, HOLE, lcn), length))
        vcn = vcn + length
    if not found:
        nothing = np.empty(0, np.int64)
        return nothing, nothing, nothing, nothing, bad
    columns = [np.concatenate([part[n] for part in found]) for n in range(4)]
    order = np.argsort(columns[0], kind="stable")
    first, second, third, fourth = (column[order] for column in columns)
    return first, second, third, fourth, bad


def _number(windows: Bytes, at: Array, width: Array) -> Array:
    """The signed numbers of ``width`` bytes at each place."""
    value = np.ascontiguousarray(windows[at]).view("<i8")[:, 0]
    shift = 64 - 8 * width
    return np.where(width > 0, value << np.minimum(shift, 63) >> np.minimum(shift, 63), 0)


@dataclass(frozen=True)
class Runs:
    """The runs of one attribute, in clusters of ``cluster`` bytes, without gap from 0 on."""

    volume: Volume
    cluster: int
    vcn: Array
    lcn: Array
    length: Array

    @property
    def size(self) -> int:
        """How many bytes the runs have room for."""
        return int(self.length.sum()) * self.cluster

    def places(self, offset: Array) -> Array:
        """Where bytes of the attribute lie in the volume; all have a place."""
        run = np.searchsorted(self.vcn, offset // self.cluster, side="right") - 1
        return (self.lcn[run] - self.vcn[run]) * self.cluster + offset

    def read(self, offset: int, length: int) -> bytes:
        """Bytes of the attribute; holes are zeros."""
        parts, end = [], offset + length
        run = int(np.searchsorted(self.vcn, offset // self.cluster, side="right")) - 1
        while offset < end:
            if run >= len(self.vcn):
                raise self._short(end)
            lcn, stop = int(self.lcn[run]), int(self.vcn[run] + self.length[run]) * self.cluster
            count = min(end, stop) - offset
            place = (lcn - int(self.vcn[run])) * self.cluster + offset
            parts.append(bytes(count) if lcn == HOLE else self.volume.read(place, count))
            offset, run = offset + count, run + 1
        return b"".join(parts)

    def _short(self, end: int) -> InputError:
        return fault(self.volume, f"an attribute ends before byte {end} of it")
