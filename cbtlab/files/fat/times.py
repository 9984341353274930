"""Times of FAT and exFAT: years from 1980, two seconds to the unit, in the clock's own zone."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

_SECOND, _DAY = 10**9, 86400


def nanoseconds(
    date: npt.NDArray[Any],
    time: npt.NDArray[Any] | int = 0,
    centiseconds: npt.NDArray[Any] | int = 0,
) -> npt.NDArray[np.int64]:
    """Nanoseconds since 1970 of local time, taken as UTC; 0 where there is no date.

    A month or day that does not exist is taken as the first; hours, minutes and seconds that
    do not exist run on into the next.
    """
    packed, clock = date.astype(np.int64), np.asarray(time, np.int64)
    years, month, day = packed >> 9, packed >> 5 & 15, packed & 31
    months = years * 12 + np.clip(month, 1, 12) - 1
    first = (np.datetime64("1980-01", "M") + months).astype("datetime64[D]").astype(np.int64)
    days = first + np.maximum(day, 1) - 1
    seconds = days * _DAY + (clock >> 11) * 3600 + (clock >> 5 & 63) * 60 + (clock & 31) * 2
    whole = seconds * _SECOND + np.asarray(centiseconds, np.int64) * (_SECOND // 100)
    return np.asarray(np.where(packed == 0, 0, whole), np.int64)
