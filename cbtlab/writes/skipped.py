"""Rows that were left out (reads, flushes, empty ranges): their numbers are no loss.

A tracker that numbers its reads too leaves numbers that no write has.  They
travel in ``DataFrame.attrs["left_out"]``, and in the metadata of a Parquet file.
"""

from __future__ import annotations

import base64
import zlib
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

ATTRIBUTE = "left_out"
KEY = b"cbtlab.left_out"


class LeftOut:
    """The sequence numbers of rows that were left out, and whose rows they were.

    ``seq`` is an array; ``volume`` is -1 where unknown, else the category's
    code; ``interval`` is the row's.  Never changed, so that pandas, which
    copies attributes with every frame, can share it.
    """

    def __init__(
        self,
        seq: npt.NDArray[np.uint64],
        volume: npt.NDArray[np.int8],
        interval: npt.NDArray[np.uint32],
    ) -> None:
        self.seq, self.volume, self.interval = seq, volume, interval

    def __deepcopy__(self, memo: dict[int, Any]) -> LeftOut:
        return self

    def of(self, volume: int, interval: int | None) -> LeftOut:
        """Return those of a volume (or of none named) and, where given, of an interval."""
        keep = (self.volume == -1) | (self.volume == volume)
        if interval is not None:
            keep &= self.interval == interval
        return LeftOut(self.seq[keep], self.volume[keep], self.interval[keep])

    def encode(self) -> bytes:
        """Return the numbers for the metadata of a file."""
        return base64.b64encode(zlib.compress(np.sort(self.seq).astype("<u8").tobytes()))

    @classmethod
    def decode(cls, text: bytes) -> LeftOut:
        """Return what ``encode`` wrote.  Raises ValueError for anything else."""
        try:
            packed = zlib.decompress(base64.b64decode(text, validate=True))
        except zlib.error as error:
            raise ValueError("not a list of numbers") from error
        seq = np.frombuffer(packed, "<u8").astype(np.uint64)
        return cls(seq, np.full(len(seq), -1, np.int8), np.zeros(len(seq), np.uint32))

    @classmethod
    def joined(cls, parts: list[LeftOut]) -> LeftOut | None:
        """Return several as one; None for none."""
        if not parts:
            return None
        return cls(
            np.concatenate([part.seq for part in parts]),
            np.concatenate([part.volume for part in parts]),
            np.concatenate([part.interval for part in parts]),
        )


def left_out(frame: pd.DataFrame) -> LeftOut | None:
    """Return what was left out of a write sequence when it was read; None for nothing known."""
    return frame.attrs.get(ATTRIBUTE)


def numbers(frame: pd.DataFrame) -> npt.NDArray[np.uint64]:
    """Return every known sequence number of a frame, of rows that were left out too."""
    seq = frame["seq"].dropna().to_numpy(np.uint64)
    more = left_out(frame)
    return seq if more is None else np.concatenate([seq, more.seq])
