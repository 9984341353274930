"""Looks for many short rows of bytes in a buffer, at every byte, with numpy.

The buffer is seen as words of 64 bits at every ``stride``-th byte only, and of every needle
``stride`` words are known, one for each way in which it can lie to those: wherever a needle
lies, one of its words is seen.  A table of hashes sorts out nearly all words of the buffer, an
exact search the rest, and what is left is compared whole.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from cbtlab.checks.streams import Bools, Bytes, Ints

Keys = npt.NDArray[np.uint64]
SHORTEST = 5  # bytes of a needle
_MIX = np.uint64(0x9E3779B97F4A7C15)
_WORD_COSTS = 400  # to keep one more word costs as much as to look at so many bytes
_SHORT = 64  # bytes: longer needles are compared apart, for all are as wide as the longest
_COMPARED = 1 << 20  # bytes that are compared at once
_AT_ONCE = 1 << 18  # needles that are taken apart at once


def table_of(words: Keys) -> tuple[npt.NDArray[np.bool_], np.uint64]:
    """A table that tells of nearly every other word that it is none of ``words``, and its shift."""
    bits = min(25, max(16, len(words).bit_length() + 5))
    shift = np.uint64(64 - bits)
    table = np.zeros(1 << bits, np.bool_)
    table[((words * _MIX) >> shift).view(np.int64)] = True
    return table, shift


def looked_up(table: npt.NDArray[np.bool_], shift: np.uint64, words: Keys) -> Ints:
    """The positions of the words that may be in the table."""
    hashed = words * _MIX
    np.right_shift(hashed, shift, out=hashed)
    return np.flatnonzero(table[hashed.view(np.int64)])


class Needles:
    """Prepared to look for rows of bytes: ``rows`` is (n, width), ``length`` says how much of each.

    Each is of 5 bytes or more.  ``places`` finds them.  ``area`` says in how many bytes they
    will be looked for: the more, the more words of each needle are worth keeping.
    """

    def __init__(self, rows: Bytes, length: Ints, area: int = 1 << 40) -> None:
        self.rows, self.length = rows, length
        shortest = int(length.min()) if len(length) else SHORTEST
        self._wide = shortest >= 8
        self._stride = _stride(shortest, len(length), self._wide, area)
        words, at, number = self._take_apart()
        order = np.argsort(words)
        self._words, self._at, self._number = words[order], at[order], number[order]
        self._table, self._shift = table_of(self._words)

    @classmethod
    def of(cls, pieces: list[bytes], area: int = 1 << 40) -> Needles:
        """Needles of different lengths."""
        length = np.array([len(piece) for piece in pieces], np.int64)
        width = int(length.max()) if len(length) else SHORTEST
        flat = b"".join(piece.ljust(width, b"\0") for piece in pieces)
        return cls(np.frombuffer(flat, np.uint8).reshape(-1, width), length, area)

    def __len__(self) -> int:
        return len(self.length)

    def places(self, buffer: Bytes, skipped: Bools | None = None) -> tuple[Ints, Ints]:
        """Where needles begin in the buffer, and the number of each; not of the ``skipped``."""
        places, numbers = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
        width = 8 if self._wide else 4
        for skip in range(0, width, self._stride) if len(self) else ():
            count = (len(buffer) - skip) // width
            if count <= 0:
                continue
            seen = buffer[skip : skip + count * width].view("<u8" if self._wide else "<u4")
            words = seen if self._wide else seen.astype(np.uint64)
            maybe = looked_up(self._table, self._shift, words)
            begin, number = self._exact(words[maybe], maybe * width + skip)
            if skipped is not None:
                wanted = ~skipped[number]
                begin, number = begin[wanted], number[wanted]
            good = self._same(buffer, begin, number)
            places.append(begin[good])
            numbers.append(number[good])
        return np.concatenate(places), np.concatenate(numbers)

    def _exact(self, found: Keys, place: Ints) -> tuple[Ints, Ints]:
        """Which needles have these words, and where they would begin."""
        low = np.searchsorted(self._words, found, side="left")
        some = low < len(self._words)
        some[some] = self._words[low[some]] == found[some]
        found, place, low = found[some], place[some], low[some]
        many = np.searchsorted(self._words, found, side="right") - low
        each = np.repeat(np.arange(len(found)), many)
        within = np.arange(len(each)) - np.repeat(np.cumsum(many) - many, many)
        row = low[each] + within
        return place[each] - self._at[row], self._number[row]

    def _same(self, buffer: Bytes, begin: Ints, number: Ints) -> Ints:
        """The positions of candidates that are there to the last byte."""
        length = self.length[number]
        chosen = np.flatnonzero((begin >= 0) & (begin + length <= len(buffer)))
        # Most differ soon: the first byte is looked at by itself.
        chosen = chosen[buffer[begin[chosen]] == self.rows[number[chosen], 0]]
        good = [chosen[:0]]
        longest = self.rows.shape[1]
        for low, high in ((0, min(_SHORT, longest)), (_SHORT, longest)):
            mine = chosen[(length[chosen] > low) & (length[chosen] <= high)]
            step = max(1, _COMPARED // max(1, high))
            for at in range(0, len(mine), step):
                part = mine[at : at + step]
                same = _rows_at(buffer, begin[part], high) == self.rows[number[part], :high]
                if int(length[part].min()) < high:
                    same |= np.arange(high) >= length[part][:, None]
                good.append(part[same.all(axis=1)])
        return np.concatenate(good)

    def _take_apart(self) -> tuple[Keys, Ints, Ints]:
        """The words of all needles: of each, for each of its ways to lie, the most telling one."""
        parts = [
            self._words_of(at, min(at + _AT_ONCE, len(self)))
            for at in range(0, len(self), _AT_ONCE)
        ]
        if not parts:
            return np.zeros(0, np.uint64), np.zeros(0, np.int64), np.zeros(0, np.int64)
        words, at, number = (np.concatenate(column) for column in zip(*parts, strict=True))
        return words, at, number

    def _words_of(self, first: int, last: int) -> tuple[Keys, Ints, Ints]:
        rows, length = self.rows[first:last], self.length[first:last]
        width = 8 if self._wide else 4
        if self._stride == 1 and int(length.min()) == rows.shape[1]:
            return _one_word(rows, width, first)
        changes = np.zeros((len(rows), rows.shape[1]), np.int16)
        np.cumsum(rows[:, 1:] != rows[:, :-1], axis=1, out=changes[:, 1:])
        score = changes[:, width - 1 :] - changes[:, : rows.shape[1] - width + 1] + np.int16(1)
        score[np.arange(score.shape[1]) > (length - width)[:, None]] = 0  # not within the needle
        row = np.arange(len(rows))
        found = []
        for way in range(self._stride):
            own = score[:, way :: self._stride]
            at = own.argmax(axis=1) * self._stride + way
            word = rows[row[:, None], at[:, None] + np.arange(width)]
            flat = np.ascontiguousarray(word).view("<u8" if width == 8 else "<u4")[:, 0]
            found.append((flat.astype(np.uint64), at, row + first))
        words, places, numbers = (np.concatenate(column) for column in zip(*found, strict=True))
        return words, places, numbers


def _rows_at(buffer: Bytes, begin: Ints, width: int) -> Bytes:
    """The ``width`` bytes at each place; what would lie behind the buffer's end is zero."""
    if len(begin) and int(begin.max()) + width > len(buffer):
        buffer = np.concatenate((buffer, np.zeros(width, np.uint8)))
    return np.asarray(np.lib.stride_tricks.sliding_window_view(buffer, width)[begin])


def _one_word(rows: Bytes, width: int, first: int) -> tuple[Keys, Ints, Ints]:
    """The most telling of three words of rows of one length: the first, the middle, the last."""
    changes = rows[:, 1:] != rows[:, :-1]
    best = np.full(len(rows), -1, np.int64)
    place, word = np.zeros(len(rows), np.int64), np.zeros(len(rows), np.uint64)
    for at in {0, (rows.shape[1] - width) // 2, rows.shape[1] - width}:
        score = changes[:, at : at + width - 1].sum(axis=1)
        part = np.ascontiguousarray(rows[:, at : at + width])
        own = part.view("<u8" if width == 8 else "<u4")[:, 0].astype(np.uint64)
        better = score > best
        best, place = np.where(better, score, best), np.where(better, at, place)
        word = np.where(better, own, word)
    return word, place, np.arange(first, first + len(rows))


def _stride(shortest: int, count: int, wide: bool, area: int) -> int:
    """How many bytes lie between two looks: a power of two, for which every needle is long enough.

    So many words are kept of each needle; the one that costs least, words and looks together.
    """
    if not wide and shortest < SHORTEST:
        raise ValueError(f"a needle of {shortest} bytes is too short")
    width = 8 if wide else 4
    ways = [way for way in (1, 2, 4, 8) if way <= width and width + way - 1 <= shortest]
    return min(ways, key=lambda way: count * way * _WORD_COSTS + 4 * area // way)
