"""Sets of ranges as arrays: joined, sorted, looked up."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Ranges:
    """Disjoint ranges in ascending order, as half-open ``start`` and ``end``."""

    start: Array
    end: Array

    @classmethod
    def union(cls, start: Array, length: Array) -> Ranges:
        """What any of the ranges covers; ranges that touch become one."""
        used = length > 0
        start, length = start[used], length[used]
        if not len(start):
            return cls(start.astype(np.int64), start.astype(np.int64))
        order = np.argsort(start, kind="stable")
        start = start[order]
        reach = np.maximum.accumulate(start + length[order])
        first = np.concatenate(([True], start[1:] > reach[:-1]))
        last = np.concatenate((first[1:], [True]))
        return cls(start[first], reach[last])

    @property
    def length(self) -> Array:
        """The length of each range."""
        return self.end - self.start

    def pairs(self) -> Iterator[tuple[int, int]]:
        """The ranges as ``(start, end)``, for a caller that has few of them."""
        return zip(self.start.tolist(), self.end.tolist(), strict=True)

    def clipped(self, start: Array, end: Array) -> tuple[Array, Array, Array]:
        """The parts of the given ranges that lie in this set: which range, start and end."""
        low = np.searchsorted(self.end, start, side="right")
        high = np.searchsorted(self.start, end, side="left")
        many = np.maximum(high - low, 0)
        which = np.repeat(np.arange(len(start)), many)
        first = np.cumsum(many) - many
        mine = low[which] + np.arange(len(which)) - first[which]
        return (
            which,
            np.maximum(self.start[mine], start[which]),
            np.minimum(self.end[mine], end[which]),
        )
