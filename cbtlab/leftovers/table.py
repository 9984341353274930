"""The classes of places, and the table of a volume's leftovers: ranges, rising, with owners."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

JOURNAL = "journal"
SLACK = "slack"
PAST_VALID = "past the valid length"
UNWRITTEN = "unwritten extent"
INLINE = "inline"
RECORD = "MFT record"
INODES = "inode table"
ENTRY = "directory entry"
DIRECTORY = "directory slack"
ATTRIBUTES = "attribute block"
METADATA = "metadata of the file system"
FREE = "free space"
OUTSIDE = "outside the file system"
KEPT = "kept file"
EARLIER = "an earlier link of the chain"
IMAGE = "image file itself"
NAME = "name"

CLASSES = (
    JOURNAL,
    SLACK,
    PAST_VALID,
    UNWRITTEN,
    INLINE,
    RECORD,
    INODES,
    ENTRY,
    DIRECTORY,
    ATTRIBUTES,
    METADATA,
    FREE,
    OUTSIDE,
    KEPT,
    EARLIER,
    IMAGE,
    NAME,
)
_CODE = {name: code for code, name in enumerate(CLASSES)}


@dataclass(frozen=True)
class Leftovers:
    """One range a position, in bytes of the image; they rise and do not overlap.

    ``kind`` is a code into `CLASSES`, ``owner`` whose place it is (a path, or a structure in
    ``<>``), ``removable`` whether it may be overwritten by bytes of the value ``fill``.
    """

    start: Ints
    end: Ints
    kind: npt.NDArray[np.int8]
    owner: npt.NDArray[np.object_]
    removable: Bools
    fill: npt.NDArray[np.uint8]

    @classmethod
    def of(
        cls,
        kind: str,
        start: npt.ArrayLike,
        end: npt.ArrayLike,
        owner: str | Sequence[str] | npt.NDArray[np.object_],
        removable: bool | npt.ArrayLike = True,
        fill: int = 0,
    ) -> Leftovers:
        """Ranges of one class; empty ones are left out."""
        low, high = np.asarray(start, np.int64), np.asarray(end, np.int64)
        owners = np.empty(low.shape, object)
        owners[:] = owner if isinstance(owner, str) else list(owner)
        may = np.array(np.broadcast_to(np.asarray(removable, np.bool_), low.shape))
        some = high > low
        count = int(some.sum())
        return cls(
            low[some],
            high[some],
            np.full(count, _CODE[kind], np.int8),
            owners[some],
            may[some],
            np.full(count, fill, np.uint8),
        )

    @classmethod
    def join(cls, parts: Iterable[Leftovers]) -> Leftovers:
        """All of them, rising; of two that overlap the one that begins first is cut."""
        every = [part for part in parts if len(part)] or [cls.of(SLACK, [], [], "")]
        start = np.concatenate([part.start for part in every])
        order = np.argsort(start, kind="stable")
        end = np.concatenate([part.end for part in every])[order]
        start = start[order]
        end[:-1] = np.minimum(end[:-1], start[1:])
        joined = cls(
            start,
            end,
            np.concatenate([part.kind for part in every])[order],
            np.concatenate([part.owner for part in every])[order],
            np.concatenate([part.removable for part in every])[order],
            np.concatenate([part.fill for part in every])[order],
        )
        return joined[end > start]

    def __len__(self) -> int:
        return len(self.start)

    def __getitem__(self, which: npt.NDArray[np.bool_] | Ints) -> Leftovers:
        return Leftovers(
            self.start[which],
            self.end[which],
            self.kind[which],
            self.owner[which],
            self.removable[which],
            self.fill[which],
        )

    def at(self, offsets: Ints) -> Ints:
        """The position of the range that each offset lies in, or -1."""
        if not len(self):
            return np.full(len(offsets), -1, np.int64)
        found = np.searchsorted(self.start, offsets, side="right") - 1
        inside = (found >= 0) & (offsets < self.end[np.maximum(found, 0)])
        return np.asarray(np.where(inside, found, -1), np.int64)

    def within(self, low: int, high: int) -> Leftovers:
        """What lies whole within these bytes."""
        return self[(self.start >= low) & (self.end <= high)]
