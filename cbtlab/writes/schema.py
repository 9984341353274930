"""The write sequence as a DataFrame: its columns, their types, and what makes a row valid."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from cbtlab.errors import InputError

OPS = ("write", "write_zeroes", "discard", "secure_erase")
VOLUMES = ("physical", "snapshot")
OP_TYPE = pd.CategoricalDtype(list(OPS))
VOLUME_TYPE = pd.CategoricalDtype(list(VOLUMES))

#: Bits of the column ``flags``, by the kernel's names (``REQ_*`` of a bio's operation flags).
FLAGS = {
    "sync": 1,
    "fua": 2,
    "preflush": 4,
    "meta": 8,
    "prio": 16,
    "rahead": 32,
    "nowait": 64,
    "idle": 128,
    "remainder": 0x10000,
}

#: Column to dtype.  Offsets and lengths are bytes, relative to the tracked volume; times are UTC.
#: ``inode`` is the file whose page cache was written, ``inode_offset`` where in it that begins.
COLUMNS: dict[str, Any] = {
    "time": "datetime64[ns]",
    "seq": "UInt64",
    "volume": VOLUME_TYPE,
    "interval": "uint32",
    "overlap": "bool",
    "op": OP_TYPE,
    "offset": "uint64",
    "length": "uint64",
    "flags": "uint32",
    "pid": "UInt32",
    "comm": "category",
    "inode": "UInt64",
    "inode_offset": "UInt64",
}

_NEEDED = ("time", "op", "offset", "length")
_DEFAULTS: dict[str, Any] = {"interval": 0, "overlap": False, "flags": 0}
_END = np.uint64(1 << 63)  # offsets beyond what a loff_t can hold are damage


def empty() -> pd.DataFrame:
    """Return a write sequence of no rows."""
    return pd.DataFrame({name: pd.Series(dtype=dtype) for name, dtype in COLUMNS.items()})


def normalize(frame: pd.DataFrame, *, sort: bool = True, source: object = "writes") -> pd.DataFrame:
    """Return ``frame`` with exactly the columns of a write sequence, in their types.

    Missing columns are null (``overlap`` False, ``interval`` and ``flags`` 0).
    Rows come out in the order of ``seq`` where every row has one, else of
    ``time``; rows of length 0 must have been dropped before.  Raises InputError
    for a value that its column cannot hold, or a range that ends past 2**63.
    """
    for name in _NEEDED:
        if name not in frame:
            raise InputError(source, f"has no column {name!r}", "it needs " + ", ".join(_NEEDED))
    columns = {}
    for name, dtype in COLUMNS.items():
        if name not in frame:
            default = _DEFAULTS.get(name)
            columns[name] = pd.Series(default, index=frame.index, dtype=dtype)
            continue
        columns[name] = _cast(frame[name], name, dtype, source)
    result = pd.DataFrame(columns, index=frame.index)
    offset, length = result["offset"].to_numpy(), result["length"].to_numpy()
    bad = (offset >= _END) | (length > _END - np.minimum(offset, _END))
    if bad.any():
        row = int(np.argmax(bad))
        raise InputError(
            source, f"row {row + 1}: {offset[row]} + {length[row]} bytes is out of any volume"
        )
    if sort and len(result):
        result = _sorted(result)
    result.attrs.update(frame.attrs)
    return result.reset_index(drop=True)


def _cast(column: pd.Series[Any], name: str, dtype: Any, source: object) -> pd.Series[Any]:
    if isinstance(dtype, pd.CategoricalDtype):
        cast = column.astype(dtype)
        odd = cast.isna() & column.notna()
        if odd.any():
            value = str(column[odd].iloc[0])
            raise InputError(
                source,
                f"{name} {value[:40]!r} is unknown",
                "known are " + ", ".join(map(str, dtype.categories)),
            )
        if name == "op" and cast.isna().any():
            raise InputError(source, "a row has no op")
        return cast
    try:
        if name == "comm":
            return column.astype("category")
        if pd.api.types.is_numeric_dtype(column) and name not in ("time", "overlap"):
            _check_whole(column, name, source)
        return column.astype(dtype)
    except (TypeError, ValueError, OverflowError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(source, f"column {name} cannot be read: {error}") from error


def _check_whole(column: pd.Series[Any], name: str, source: object) -> None:
    """Refuse what an unsigned column would wrap or round in silence."""
    limit = 1 << (32 if name in ("interval", "flags", "pid") else 64)
    known = column.dropna()
    if not len(known):
        return
    if pd.api.types.is_float_dtype(known) and not (known == np.floor(known)).all():
        raise InputError(source, f"column {name} holds a number that is not whole")
    low, high = known.min(), known.max()
    if low < 0:
        raise InputError(source, f"column {name} holds a negative number, {low}")
    if int(high) >= limit:
        raise InputError(source, f"column {name} holds {high}, which is too large")


def _sorted(frame: pd.DataFrame) -> pd.DataFrame:
    key = "time" if frame["seq"].isna().any() else "seq"
    values = frame[key].to_numpy()
    if len(values) > 1 and (values[1:] < values[:-1]).any():
        return frame.iloc[np.argsort(values, kind="stable")]
    return frame
