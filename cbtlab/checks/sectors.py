"""Fingerprints of sectors: which of them say something, and which of an image's are known.

Of every sector three words are looked at first; only one whose three may be known is summed.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from cbtlab.checks.needles import looked_up, table_of
from cbtlab.checks.streams import Bools, Bytes, Ints
from cbtlab.units import SECTOR

Keys = npt.NDArray[np.uint64]
_PERIODS = 64  # bytes: the longest pattern whose repetition is no content
_FACTORS = np.random.default_rng(0x5EC7).integers(0, 1 << 63, SECTOR // 8, np.uint64) * 2 + 1
_PROBES = (9, 31, 54)  # words of a sector


def fingerprints(sectors: Bytes) -> Keys:
    """Return a 64-bit fingerprint per row of 512 bytes; that of zeros is 0."""
    words = np.ascontiguousarray(sectors).view(np.uint64)
    return np.asarray(np.einsum("ij,j->i", words, _FACTORS))


def probes(sectors: Bytes) -> Keys:
    """Return what three words of each row of 512 bytes come to."""
    words = sectors.view(np.uint64)
    found = words[:, _PROBES[0]] * _FACTORS[_PROBES[0]]
    for at in _PROBES[1:]:
        found += words[:, at] * _FACTORS[at]
    return np.asarray(found)


def patterned(sectors: Bytes) -> Bools:
    """Return which rows are one repeated pattern of at most 64 bytes."""
    found = np.zeros(len(sectors), np.bool_)
    head = np.ascontiguousarray(sectors[:, : 2 * _PERIODS])
    again = head[:, 1 : _PERIODS + 1] == head[:, :1]
    row, period = np.nonzero(again)
    period += 1
    for more in range(1, 8):  # nearly all have gone after a few bytes
        same = head[row, period + more] == head[row, more]
        row, period = row[same], period[same]
    for length in np.unique(period).tolist():
        at = row[period == length]
        at = at[~found[at]]
        found[at] = (sectors[at, length:] == sectors[at, :-length]).all(axis=1)
    return found


class Known:
    """Prepared to find sectors by their fingerprints: ``keys`` rise, ``first`` are their probes."""

    def __init__(self, keys: Keys, first: Keys) -> None:
        self._keys = keys
        self._table, self._shift = table_of(first)

    def find(self, sectors: Bytes) -> tuple[Ints, Ints]:
        """Return which rows of 512 bytes are known, and the position of the key of each."""
        if not len(self._keys):
            return np.zeros(0, np.int64), np.zeros(0, np.int64)
        maybe = looked_up(self._table, self._shift, probes(sectors))
        seen = fingerprints(sectors[maybe])
        at = np.minimum(np.searchsorted(self._keys, seen), len(self._keys) - 1)
        hit = self._keys[at] == seen
        return maybe[hit], at[hit]
