"""Looks for sectors of excluded files at any byte, where no kept file's content lies.

Of every sector two windows of 32 bytes are remembered by their fingerprints, so
that 287 bytes in a row that lie anywhere hold a whole one.  Only places that are
no kept file's content are looked at: the journal, folders, tables, slack.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from cbtlab.checks.streams import Bools, Bytes, Ints
from cbtlab.files.ranges import Ranges
from cbtlab.images import Image

Keys = npt.NDArray[np.uint64]
WIDTH = 32  # bytes
_PLACES = (112, 368)  # in a sector
_TELLING = 8  # different bytes in a window: with less it may be anybody's
_WORDS = WIDTH // 8
_FACTORS = np.random.default_rng(0xB17E).integers(0, 1 << 63, _WORDS, np.uint64) * 2 + 1
_MIX = np.uint64(0x9E3779B97F4A7C15)


@dataclass
class Windows:
    """Fingerprints, rising, with the backup and the byte on its S_k that each was read from."""

    keys: Keys = field(default_factory=lambda: np.zeros(0, np.uint64))
    origin: npt.NDArray[np.int32] = field(default_factory=lambda: np.zeros(0, np.int32))
    place: Ints = field(default_factory=lambda: np.zeros(0, np.int64))

    def add(self, k: int, taken: list[tuple[Keys, Ints]]) -> None:
        """Take in what `taken_from` gave for sectors of S_k."""
        every = np.concatenate([self.keys, *(keys for keys, _ in taken)])
        origin = np.full(len(every) - len(self.keys), k, np.int32)
        self.keys, first = np.unique(every, return_index=True)
        self.origin = np.concatenate([self.origin, origin])[first]
        self.place = np.concatenate([self.place, *(places for _, places in taken)])[first]

    def drop(self, gone: Bools) -> None:
        """Forget windows that a kept file holds too."""
        self.keys = self.keys[~gone]
        self.origin = self.origin[~gone]
        self.place = self.place[~gone]

    def find(self, image: Image, kept: Ranges) -> tuple[Ints, Ints]:
        """Return where outside ``kept`` windows lie whole, and the number of each."""
        places, numbers = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
        if not len(self.keys):
            return places[0], numbers[0]
        shift = np.uint64(64 - min(24, max(16, len(self.keys).bit_length() + 3)))
        hashes = np.zeros(1 << (64 - int(shift)), np.bool_)
        hashes[(self.keys * _MIX) >> shift] = True
        rest, rest_at = np.zeros(0, np.uint8), np.zeros(0, np.int64)
        for offset, data in image.chunks():
            if data is None:
                rest, rest_at = rest[:0], rest_at[:0]
                continue
            chunk = np.frombuffer(data, np.uint8)
            free = np.flatnonzero(_outside(kept, offset, len(chunk)))
            flat = np.concatenate([rest, chunk[free]])
            where = np.concatenate([rest_at, free + offset])
            for first in range(8):
                words = flat[first : first + (len(flat) - first) // 8 * 8].view(np.uint64)
                if len(words) < _WORDS or not words.any():
                    continue
                last = len(words) - _WORDS + 1
                seen = _sum(np.stack([words[n : n + last] for n in range(_WORDS)]))
                maybe = np.flatnonzero(hashes[(seen * _MIX) >> shift])
                at = np.searchsorted(self.keys, seen[maybe])
                at = np.minimum(at, len(self.keys) - 1)
                begin = maybe * 8 + first
                hit = self.keys[at] == seen[maybe]
                hit &= where[begin + WIDTH - 1] - where[begin] == WIDTH - 1
                places.append(where[begin[hit]])
                numbers.append(at[hit])
            keep = min(WIDTH - 1, len(flat))
            rest, rest_at = flat[len(flat) - keep :], where[len(flat) - keep :]
        return np.concatenate(places), np.concatenate(numbers)


def taken_from(sectors: Bytes, places: Ints) -> tuple[Keys, Ints]:
    """Return the fingerprints of the windows of sectors, and the place of each."""
    keys, spots = [np.zeros(0, np.uint64)], [np.zeros(0, np.int64)]
    for at in _PLACES:
        windows = np.ascontiguousarray(sectors[:, at : at + WIDTH])
        chosen = np.flatnonzero(_telling(windows))
        keys.append(_sum(windows[chosen].view(np.uint64).T))
        spots.append(places[chosen] + at)
    return np.concatenate(keys), np.concatenate(spots)


def _sum(words: Keys) -> Keys:
    """Return the fingerprint of windows, whose first words are ``words[0]``, and so on."""
    total = words[0] * _FACTORS[0]
    for word, factor in zip(words[1:], _FACTORS[1:], strict=True):
        total = total + word * factor
    return np.asarray(total, np.uint64)


def _telling(windows: Bytes) -> Bools:
    """Return which windows have enough different bytes, and are no short pattern."""
    ordered = np.sort(windows, axis=1)
    many = (ordered[:, 1:] != ordered[:, :-1]).sum(axis=1) + 1 >= _TELLING
    for period in range(_TELLING, WIDTH // 2 + 1):
        many &= (windows[:, period:] != windows[:, :-period]).any(axis=1)
    return np.asarray(many, np.bool_)


def _outside(kept: Ranges, offset: int, length: int) -> Bools:
    """Return which of the bytes at ``offset`` lie in none of the ranges."""
    low = np.array([offset], np.int64)
    _, start, end = kept.clipped(low, low + length)
    edges = np.zeros(length + 1, np.int8)
    edges[start - offset] += 1
    edges[end - offset] -= 1
    return np.asarray(np.cumsum(edges[:-1], dtype=np.int8) == 0)
