"""Operations as plain arrays: what the plan needs to know of a write sequence."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Rows:
    """The recorded operations that make up ``M_k``, as arrays of one value a row."""

    offset: npt.NDArray[np.uint64]
    length: npt.NDArray[np.uint64]
    """Bytes, exactly as the operation asked."""
    overlap: npt.NDArray[np.bool_]
    """Marked in two intervals around a snapshot's instant."""
    discard: npt.NDArray[np.bool_]
    """A discard or a secure erase: without payload."""
