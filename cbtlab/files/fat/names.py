"""Names of FAT: long ones in UTF-16, short ones of 8 and 3 bytes in a code page.

All names of a folder level at once.  Long names become UTF-8; a unit that is half of a
surrogate pair becomes the three bytes that it would have (as in WTF-8), so that no two names
have one path.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from cbtlab.files.fat import layout as on_disk

Bytes = npt.NDArray[np.uint8]
Units = npt.NDArray[np.uint16]
Array = npt.NDArray[np.int64]

#: The code page of short names: the default of Linux and of Windows in America.  Windows in
#: western Europe uses 850; a record does not say which.
CODEPAGE = "cp437"


def short_units(records: npt.NDArray[Any], codepage: str = CODEPAGE) -> Units:
    """The short name of each record as a row of UTF-16 units, zeros behind it.

    Names in small letters, which Windows NT marks by two bits, are given in small letters.
    """
    small, large = _letters(codepage)
    raw = np.concatenate((records["name"], records["extension"]), axis=1)
    raw[raw[:, 0] == on_disk.KANJI_E5, 0] = on_disk.DELETED
    rows = np.zeros((len(raw), 12), np.uint16)
    for columns, to, bit in (
        (slice(0, 8), slice(0, 8), on_disk.CASE_LOWER_NAME),
        (slice(8, 11), slice(9, 12), on_disk.CASE_LOWER_EXTENSION),
    ):
        part = raw[:, columns]
        kept = np.flip(np.maximum.accumulate(np.flip(part != 0x20, 1), axis=1), 1)
        lower = (records["case"] & bit).astype(bool)[:, None]
        rows[:, to] = np.where(kept, np.where(lower, small[part], large[part]), 0)
    rows[:, 8] = np.where(rows[:, 9:].any(axis=1), ord("."), 0)
    order = np.argsort(rows == 0, axis=1, kind="stable")  # close the gaps
    return np.take_along_axis(rows, order, 1)


def _letters(codepage: str) -> tuple[Units, Units]:
    """What each byte of a code page stands for, in small letters and as it is."""
    letters = bytes(range(256)).decode(codepage, "replace")
    small = [letter.lower() if len(letter.lower()) == 1 else letter for letter in letters]
    return np.array([*map(ord, small)], np.uint16), np.array([*map(ord, letters)], np.uint16)


def short_checksum(records: npt.NDArray[Any]) -> Bytes:
    """The checksum of the short name that the records of a long name repeat."""
    total = np.zeros(len(records), np.uint8)
    for column in np.concatenate((records["name"], records["extension"]), axis=1).T:
        total = (total >> 1 | total << 7) + column
    return np.asarray(total, np.uint8)


def long_parts(records: npt.NDArray[Any], folder: Array, short: Array) -> Array:
    """How many of the records before each short one hold its long name; 0 where there is none.

    ``folder`` says of each record where it lies, ``short`` gives the positions of the short
    ones.  A long name counts only when its records are all there, in order, with the checksum of
    the short name: else it is a remnant of another, as Linux and Windows take it.
    """
    parts = records.view(on_disk.LONG_RECORD)
    is_long = (records["attributes"] & on_disk.ATTR_MASK) == on_disk.ATTR_LONG
    is_long &= records["name"][:, 0] != on_disk.DELETED
    checksum = short_checksum(records[short])
    found = np.zeros(len(short), np.int64)
    active = np.arange(len(short))
    for number in range(1, on_disk.LONG_MOST + 1):
        at = short[active] - number
        good = (at >= 0) & is_long[at] & (folder[at] == folder[short[active]])
        good &= (parts["order"][at] & ~np.uint8(on_disk.LONG_LAST)) == number
        good &= parts["checksum"][at] == checksum[active]
        active, at = active[good], at[good]
        last = (parts["order"][at] & on_disk.LONG_LAST) != 0
        found[active[last]] = number
        active = active[~last]
        if not len(active):
            break
    return found


def long_units(records: npt.NDArray[Any], short: Array, parts: int) -> Units:
    """The long names of the short records at ``short``, each of ``parts`` records, as rows."""
    at = short[:, None] - np.arange(1, parts + 1)
    own = records.view(on_disk.LONG_RECORD)[at]
    units = np.concatenate((own["first"], own["second"], own["third"]), axis=2)
    return units.reshape(len(short), parts * on_disk.LONG_UNITS)


def encode(units: Units) -> list[bytes]:
    """Each row up to its first zero as UTF-8; a unit of zero ends a name."""
    if not len(units):
        return []
    ended = np.pad(units, ((0, 0), (0, 1)))
    kept = np.zeros(ended.shape, np.bool_)
    kept[:, 0] = True
    kept[:, 1:] = np.logical_and.accumulate(ended[:, :-1] != 0, axis=1)
    text = ended[kept].astype("<u2").tobytes().decode("utf-16-le", "surrogatepass")
    return text.encode("utf-8", "surrogatepass").split(b"\0")[:-1]
