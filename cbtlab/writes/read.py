"""Reads a write sequence from whatever holds one, and saves it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from cbtlab.errors import InputError
from cbtlab.folders import require_regular
from cbtlab.writes import native, text
from cbtlab.writes.schema import empty, normalize
from cbtlab.writes.skipped import ATTRIBUTE, KEY, LeftOut, left_out

CHUNK_ROWS = 1 << 20
_OF_A_STREAM = ("dropped", "next_seq", "first_seq", "notes")


def iter_writes(
    path: str | os.PathLike[str], rows: int = CHUNK_ROWS, *, salvage: bool = False
) -> Iterator[pd.DataFrame]:
    """Yield a write sequence in chunks, in the file's own order.

    The format is told from the first bytes: native stream, Parquet, else CSV.
    ``attrs["skipped"]`` of a chunk counts rows left out (reads, flushes, empty
    ranges); ``attrs["dropped"]`` is the recorder's own count of lost events
    and ``attrs["next_seq"]`` the number after the last, where the format has them,
    ``attrs["first_seq"]`` the first that could be there, and ``attrs["notes"]``
    what a reader should know.
    """
    path = Path(path)
    require_regular(path)
    try:
        with path.open("rb") as file:
            magic = file.read(8)
    except OSError as error:
        raise InputError(path, f"cannot be opened: {error.strerror}") from error
    if magic[:4] == b"PAR1":
        yield from text.parquet_chunks(path, rows)
    elif magic[:4] == native.MAGIC[:4] or path.suffix == ".cbt":
        stream = native.open_stream(path, allow_cut=salvage)
        told = {name: getattr(stream, name) for name in _OF_A_STREAM}
        for chunk in stream.chunks(rows):
            chunk.attrs.update(told)
            yield chunk
    elif path.suffix.lower() == ".parquet":
        raise InputError(path, "is not Parquet, or its beginning is damaged")
    else:
        yield from text.csv_chunks(path)


def read_writes(path: str | os.PathLike[str], *, salvage: bool = False) -> pd.DataFrame:
    """Return the whole write sequence of a file, in order; see ``iter_writes``."""
    return concat(list(iter_writes(path, salvage=salvage)), source=path)


def concat(frames: list[pd.DataFrame], source: object = "writes") -> pd.DataFrame:
    """Return several write sequences as one, in order."""
    names = sorted({str(name) for frame in frames for name in frame["comm"].cat.categories})
    task = pd.CategoricalDtype(names)
    parts = [frame.assign(comm=frame["comm"].astype(task)) for frame in frames if len(frame)]
    for part in parts:
        part.attrs = {}  # pandas compares them on every concat
    whole = normalize(pd.concat(parts, ignore_index=True), source=source) if parts else empty()
    whole.attrs["skipped"] = sum(frame.attrs.get("skipped", 0) for frame in frames)
    apart = [part for frame in frames if (part := left_out(frame)) is not None]
    if apart:
        whole.attrs[ATTRIBUTE] = LeftOut.joined(apart)
    for name in _OF_A_STREAM:
        whole.attrs[name] = frames[-1].attrs.get(name) if frames else None
    return whole


def save_writes(frame: pd.DataFrame, path: str | os.PathLike[str], *, force: bool = False) -> None:
    """Save a write sequence as Parquet (zstd) or CSV, by the name's ending.

    Times are written with their zone, UTC; Parquet also keeps the numbers of rows
    that were left out.  An existing file is replaced only
    with ``force``; a failure leaves nothing behind.
    """
    path = Path(path)
    if path.suffix.lower() not in (".parquet", ".csv"):
        raise InputError(path, "has no ending that says its format", "use .parquet or .csv")
    if path.exists() and not force:
        raise InputError(path, "exists", "choose another name or give --force")
    part = path.with_name(path.name + ".part")
    try:
        if path.suffix.lower() == ".parquet":
            pq.write_table(_table(frame), part, compression="zstd", compression_level=9)
        else:
            pacsv.write_csv(_table(frame, time_as_text=True), part)
        part.replace(path)
    except OSError as error:
        raise InputError(path, f"cannot be written: {error.strerror}") from error
    finally:
        part.unlink(missing_ok=True)


def _table(frame: pd.DataFrame, time_as_text: bool = False) -> pa.Table:
    columns: dict[str, Any] = {name: frame[name] for name in frame.columns}
    if time_as_text:
        stamps = np.datetime_as_string(frame["time"].to_numpy(), unit="ns")
        columns["time"] = pa.array(np.char.add(stamps, "Z"), pa.string())
    else:
        columns["time"] = frame["time"].dt.tz_localize("UTC")
    for name in ("volume", "op", "comm"):
        column = pa.array(frame[name])
        columns[name] = column.cast(pa.string()) if time_as_text else column
    table = pa.table(columns)
    apart = left_out(frame)
    return table if apart is None else table.replace_schema_metadata({KEY: apart.encode()})
