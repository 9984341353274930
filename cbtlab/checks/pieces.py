"""Looks for many short pieces of bytes in a large image, at every byte.

Each piece has an anchor: eight bytes from its middle.  The image is seen as
64-bit words at each of the eight alignments; a small table of hashes sorts out
nearly all words, an exact search of the anchors the rest, and what is left is
compared whole.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from cbtlab.checks.streams import Bytes, Ints
from cbtlab.images import Image

SHORTEST, LONGEST = 16, 64  # bytes: less is no evidence, more tells no more
_MIX = np.uint64(0x9E3779B97F4A7C15)


def repeats(piece: bytes) -> bool:
    """Return whether a piece is one pattern over and over."""
    return any(piece[n:] == piece[:-n] for n in range(1, len(piece) // 2 + 1))


class Search:
    """Prepared to look for ``pieces``, each of 16 bytes or more."""

    def __init__(self, pieces: list[bytes]) -> None:
        self.pieces = pieces
        at = [(len(piece) - 8) // 2 for piece in pieces]
        words = [int.from_bytes(p[a : a + 8], "little") for p, a in zip(pieces, at, strict=True)]
        anchors = np.array(words, np.uint64)
        self._order = np.argsort(anchors, kind="stable")
        self._anchors = anchors[self._order]
        self._at = np.array(at, np.int64)
        self._first = np.array([piece[0] for piece in pieces], np.uint8)
        bits = min(24, max(16, len(pieces).bit_length() + 3))
        self._shift = np.uint64(64 - bits)
        self._table = np.zeros(1 << bits, np.bool_)
        self._table[(anchors * _MIX) >> self._shift] = True

    def find(self, image: Image) -> Iterator[tuple[int, int]]:
        """Yield (offset, number of the piece) for every occurrence, chunk by chunk."""
        if not self.pieces:
            return
        longest = max(map(len, self.pieces))
        before = np.zeros(0, np.uint8)  # the end of the chunk before: a piece may cross
        for offset, data in image.chunks():
            if data is None:
                before = np.zeros(0, np.uint8)
                continue
            buffer = np.concatenate([before, np.frombuffer(data, np.uint8)])
            start = offset - len(before)
            for place, number in self._in(buffer):
                if place + len(self.pieces[number]) > len(before):
                    yield start + place, number
            before = buffer[len(buffer) - min(longest - 1, len(buffer)) :]

    def _in(self, buffer: Bytes) -> Iterator[tuple[int, int]]:
        raw = buffer.tobytes()
        for place, number in zip(*self._candidates(buffer), strict=True):
            piece = self.pieces[number]
            begin = place - int(self._at[number])
            if begin >= 0 and raw[begin : begin + len(piece)] == piece:
                yield begin, int(number)

    def _candidates(self, buffer: Bytes) -> tuple[list[int], list[int]]:
        """Return places of anchors, and the piece of each."""
        places: list[Ints] = []
        numbers: list[Ints] = []
        for shift in range(8):
            words = buffer[shift : shift + (len(buffer) - shift) // 8 * 8].view(np.uint64)
            maybe = np.flatnonzero(self._table[(words * _MIX) >> self._shift])
            found = words[maybe]
            low = np.searchsorted(self._anchors, found, side="left")
            many = np.searchsorted(self._anchors, found, side="right") - low
            each = np.repeat(np.arange(len(found)), many)
            within = np.arange(len(each)) - np.repeat(np.cumsum(many) - many, many)
            place, number = maybe[each] * 8 + shift, self._order[low[each] + within]
            good = self._plausible(buffer, place, number)
            places.append(place[good])
            numbers.append(number[good])
        return np.concatenate(places).tolist(), np.concatenate(numbers).tolist()

    def _plausible(self, buffer: Bytes, place: Ints, number: Ints) -> npt.NDArray[np.bool_]:
        """Compare the first byte of the candidates, so that few are compared whole."""
        begin = place - self._at[number]
        good = begin >= 0
        good[good] = buffer[begin[good]] == self._first[number[good]]
        return np.asarray(good)
