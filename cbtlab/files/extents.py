"""Extents of many inodes as parallel arrays: joined, sorted, merged, with their holes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

Array = npt.NDArray[np.int64]

KINDS = ("data", "hole", "unwritten", "inline", "meta", "reserved")
DATA, HOLE, UNWRITTEN, INLINE, META, RESERVED = range(6)
#: What holds places of the volume by itself, and not inside of something else.
PLACED = (DATA, UNWRITTEN, META, RESERVED)
NOWHERE = -1  # a logical or physical place that does not exist


@dataclass(frozen=True)
class Extents:
    """One extent a position: ``inode``, ``kind`` (a code into `KINDS`) and three lengths.

    ``logical`` and ``physical`` are `NOWHERE` where there is none; the unit (blocks or bytes)
    is the caller's.  ``stream`` is a code into the file system's list of stream names; 0 is
    the unnamed one, a file's content.  What is ``encoded`` (compressed, encrypted) lies in
    ``length`` bytes that are not the content; its first byte belongs to ``logical``.
    """

    inode: Array
    kind: npt.NDArray[np.int8]
    logical: Array
    physical: Array
    length: Array
    stream: npt.NDArray[np.int32]
    encoded: npt.NDArray[np.bool_]

    @classmethod
    def of(
        cls,
        inode: Any,
        kind: Any,
        logical: Any,
        physical: Any,
        length: Any,
        stream: Any = 0,
        encoded: Any = False,
    ) -> Extents:
        """Columns, or one number for a whole column; ``inode`` says how many there are."""
        inode = np.asarray(inode, np.int64)

        def column(value: Any, dtype: Any = np.int64) -> npt.NDArray[Any]:
            return np.array(np.broadcast_to(np.asarray(value, dtype), inode.shape))

        return cls(
            inode,
            column(kind, np.int8),
            column(logical),
            column(physical),
            column(length),
            column(stream, np.int32),
            column(encoded, np.bool_),
        )

    @classmethod
    def join(cls, parts: Sequence[Extents]) -> Extents:
        """All of them, one after the other."""
        if not parts:
            return cls.of(np.empty(0, np.int64), 0, 0, 0, 0)
        return cls(*(np.concatenate([getattr(p, name) for p in parts]) for name in _COLUMNS))

    def __len__(self) -> int:
        return len(self.inode)

    def __getitem__(self, which: Any) -> Extents:
        return Extents(*(getattr(self, name)[which] for name in _COLUMNS))

    def ordered(self) -> Extents:
        """By inode, stream and logical place; what has no place (``meta``) after the rest."""
        last = np.where(self.logical == NOWHERE, np.iinfo(np.int64).max, self.logical)
        return self[np.lexsort((self.physical, last, self.stream, self.inode))]

    def merged(self) -> Extents:
        """Neighbours that continue each other become one; the extents must be `ordered`."""
        if not len(self):
            return self
        before, after = self[:-1], self[1:]
        placed = (before.logical != NOWHERE) & (before.physical != NOWHERE)
        joins = (
            placed
            & (before.inode == after.inode)
            & (before.kind == after.kind)
            & (before.stream == after.stream)
            & ~(before.encoded | after.encoded)
            & (before.kind != INLINE)
            & (before.logical + before.length == after.logical)
            & (before.physical + before.length == after.physical)
        )
        starts = np.flatnonzero(np.concatenate(([True], ~joins)))
        length = np.add.reduceat(self.length, starts)
        first = self[starts]
        return replace(first, length=length)

    def rows_of(self, inode: int) -> Extents:
        """The extents of one inode; the extents must be `ordered`."""
        low, high = np.searchsorted(self.inode, [inode, inode + 1])
        return self[int(low) : int(high)]

    def overlapping(self) -> Array:
        """The inodes that map one logical place twice; the extents must be `ordered`."""
        placed = self[self.logical != NOWHERE]
        clash = (
            (placed.inode[1:] == placed.inode[:-1])
            & (placed.stream[1:] == placed.stream[:-1])
            & ~placed.encoded[:-1]
            & (placed.logical[:-1] + placed.length[:-1] > placed.logical[1:])
        )
        return np.unique(placed.inode[1:][clash])


def category(codes: npt.NDArray[Any], names: Sequence[str]) -> pd.Categorical[Any]:
    """A column of words from codes into ``names``."""
    return pd.Categorical.from_codes(codes.astype(np.int32), pd.Index(list(names)))


_COLUMNS = tuple(field.name for field in fields(Extents))


def holes(extents: Extents, inode: Array, size: Array) -> Extents:
    """What of the given files, ``size`` long, no extent covers, in the unit of ``size``.

    ``extents`` are `ordered` and of the content of these files, nothing of it encoded; ``inode``
    ascends.
    """
    placed = extents[extents.logical != NOWHERE]
    at = np.searchsorted(inode, placed.inode)
    end = placed.logical + placed.length
    new = np.concatenate(([True], placed.inode[1:] != placed.inode[:-1]))[: len(placed)]
    reached = np.where(new, 0, np.concatenate(([0], end[:-1]))[: len(placed)])
    until = np.minimum(placed.logical, size[at])
    gap = until > reached
    before = Extents.of(placed.inode[gap], HOLE, reached[gap], NOWHERE, (until - reached)[gap])
    covered = np.zeros(len(inode), np.int64)
    np.maximum.at(covered, at, end)
    short = covered < size
    after = Extents.of(inode[short], HOLE, covered[short], NOWHERE, (size - covered)[short])
    return Extents.join([before, after])
