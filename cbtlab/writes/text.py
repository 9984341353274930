"""Write sequences as CSV or Parquet, of our own or another tracker's making."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from cbtlab.errors import InputError
from cbtlab.units import parse_time
from cbtlab.writes.schema import COLUMNS, OP_TYPE, OPS, VOLUME_TYPE, empty, normalize
from cbtlab.writes.skipped import ATTRIBUTE, KEY, LeftOut

SKIPPED_OPS = ("read", "flush")
_BLOCK = 32 << 20
_NULLABLE = ("seq", "pid", "inode", "inode_offset")
_NUMBERS = {"interval", "offset", "length", "flags", *_NULLABLE}
_ISO = r"^\s*\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d{1,9})?\s*([Zz]|[+-]\d\d:?\d\d)\s*$"


def csv_chunks(path: Path) -> Iterator[pd.DataFrame]:
    """Yield the rows of a CSV file as write sequences, in the file's order."""
    try:
        with path.open("rb") as file:
            head = file.readline(1 << 16)
        if not head.strip():
            raise InputError(path, "is empty", "a CSV needs a line of column names")
        names = pacsv.open_csv(pa.py_buffer(_header(head, path))).schema.names
        _check_columns(path, names)
        reader = pacsv.open_csv(
            path,
            read_options=pacsv.ReadOptions(block_size=_BLOCK),
            convert_options=pacsv.ConvertOptions(
                column_types={name: pa.string() for name in names},
                include_columns=[name for name in names if name in COLUMNS],
                strings_can_be_null=True,
                null_values=["", "null", "NULL", "NA", "<NA>", "nan", "NaN", "None"],
            ),
        )
        start = 0
        for batch in reader:
            table = pa.Table.from_batches([batch])
            yield _from_table(table, path, start)
            start += table.num_rows
    except (pa.ArrowException, OSError) as error:
        raise InputError(path, f"cannot be read as CSV: {error}") from error


def parquet_chunks(path: Path, rows: int) -> Iterator[pd.DataFrame]:
    """Yield the rows of a Parquet file as write sequences of at most ``rows`` rows."""
    try:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            _check_columns(path, names)
            start = 0
            kept = (file.schema_arrow.metadata or {}).get(KEY)
            for batch in file.iter_batches(rows, columns=[n for n in names if n in COLUMNS]):
                table = pa.Table.from_batches([batch])
                frame = _from_table(table, path, start)
                if kept is not None and not start:
                    frame.attrs[ATTRIBUTE] = LeftOut.decode(kept)
                yield frame
                start += table.num_rows
            if not start:
                yield empty()
    except InputError:
        raise
    except (pa.ArrowException, OSError, ValueError) as error:
        raise InputError(path, f"cannot be read as Parquet: {error}") from error


def _header(line: bytes, path: Path) -> bytes:
    try:
        line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(path, "is not UTF-8 text", "save it as CSV in UTF-8") from error
    if b"\0" in line:
        raise InputError(path, "is not text", "a CSV, a Parquet file or a native stream is needed")
    return line


def _check_columns(path: Path, names: list[str]) -> None:
    twice = {name for name in names if names.count(name) > 1}
    missing = [name for name in ("time", "op", "offset", "length") if name not in names]
    if missing:
        needed = "the columns time, op, offset and length are needed, with commas between"
        raise InputError(path, f"has no column {missing[0]!r}", needed)
    if twice & set(COLUMNS):
        raise InputError(path, f"has the column {min(twice & set(COLUMNS))!r} twice")


def _from_table(table: pa.Table, path: Path, start: int) -> pd.DataFrame:
    """Return one batch as a write sequence; reads, flushes and empty rows are counted away."""
    op = pc.utf8_lower(pc.utf8_trim_whitespace(_plain(table["op"]).cast(pa.string())))
    known = pc.is_in(op, value_set=pa.array([*OPS, *SKIPPED_OPS]))
    _refuse(path, start, pc.invert(known), table["op"], "op", "is unknown")
    length = _number(table["length"], "length", path, start)
    keep = pc.and_(
        pc.is_in(op, value_set=pa.array(OPS)), pc.not_equal(length, pa.scalar(0, pa.uint64()))
    )
    if pc.any(pc.is_null(length)).as_py():
        _refuse(path, start, pc.is_null(length), table["length"], "length", "is missing")
    columns: dict[str, Any] = {}
    for name in table.column_names:
        if name == "op":
            columns[name] = pd.Categorical(op.filter(keep).to_pandas(), dtype=OP_TYPE)
            continue
        column = length if name == "length" else _column(table[name], name, path, start)
        column = column.filter(keep)
        if name in _NULLABLE and column.null_count:
            columns[name] = column.to_pandas(types_mapper=lambda kind: pd.UInt64Dtype())
        elif column.null_count and name in ("time", "offset"):
            _refuse(path, start, pc.is_null(table[name]), table[name], name, "is missing")
        elif column.null_count and name in ("interval", "flags", "overlap"):
            columns[name] = pc.fill_null(column, False if name == "overlap" else 0).to_pandas()
        else:
            columns[name] = column.to_pandas()
    frame = normalize(pd.DataFrame(columns), sort=False, source=path)
    frame.attrs["skipped"] = table.num_rows - len(frame)
    if frame.attrs["skipped"] and "seq" in table.column_names:
        frame.attrs[ATTRIBUTE] = _left_out(table.filter(pc.invert(keep)), path, start)
    return frame


def _left_out(table: pa.Table, path: Path, start: int) -> LeftOut:
    """Return the numbers of rows that are no writes."""
    seq = _number(table["seq"], "seq", path, start)
    table = table.filter(pc.is_valid(seq))
    codes, interval = np.full(len(table), -1, np.int8), np.zeros(len(table), np.uint32)
    if "volume" in table.column_names:
        names = _plain(table["volume"]).cast(pa.string()).to_pandas()
        codes = pd.Categorical(names, dtype=VOLUME_TYPE).codes.astype(np.int8)
    if "interval" in table.column_names:
        known = pc.fill_null(_number(table["interval"], "interval", path, start), 0)
        interval = known.to_numpy().astype(np.uint32)
    return LeftOut(seq.drop_null().to_numpy().astype(np.uint64), codes, interval)


def _plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    return column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column


def _column(column: pa.ChunkedArray, name: str, path: Path, start: int) -> pa.ChunkedArray:
    column = _plain(column)
    if name == "time":
        return _time(column, path, start)
    if name in _NUMBERS:
        return _number(column, name, path, start)
    if name == "overlap" and pa.types.is_string(column.type):
        lower = pc.utf8_lower(pc.utf8_trim_whitespace(column))
        yes = pc.is_in(lower, value_set=pa.array(["true", "1"]))
        known = pc.or_(yes, pc.is_in(lower, value_set=pa.array(["false", "0", None])))
        _refuse(path, start, pc.invert(known), column, name, "is neither true nor false")
        return yes
    return column


def _number(column: pa.ChunkedArray, name: str, path: Path, start: int) -> pa.ChunkedArray:
    """Return a column of whole numbers from zero on as uint64; others are refused by row."""
    column = _plain(column)
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        trimmed = pc.utf8_trim_whitespace(column)
        # 20 digits hold 2**64; Arrow's own cast refuses what is larger
        whole = pc.match_substring_regex(trimmed, r"^\d{1,20}$")
        _refuse(path, start, pc.invert(whole), column, name, "is no whole number from 0 on")
        column = trimmed
    elif not pa.types.is_integer(column.type):
        raise InputError(path, f"column {name} is of type {column.type}", "integers are needed")
    elif pa.types.is_signed_integer(column.type):
        _refuse(path, start, pc.less(column, 0), column, name, "is negative")
    try:
        return column.cast(pa.uint64())
    except pa.ArrowInvalid as error:
        raise InputError(path, f"column {name} holds a number that is too large") from error


def _time(column: pa.ChunkedArray, path: Path, start: int) -> pa.ChunkedArray:
    """Return instants as timestamp[ns] in UTC; a Parquet column without a zone is in UTC."""
    kind = column.type
    if pa.types.is_timestamp(kind):
        return column.cast(pa.timestamp("ns"))
    if pa.types.is_integer(kind):
        return _number(column, "time", path, start).cast(pa.int64()).cast(pa.timestamp("ns"))
    trimmed = pc.utf8_trim_whitespace(column)
    digits = pc.match_substring_regex(trimmed, r"^\d{1,18}$|^[1-8]\d{18}$")
    iso = pc.match_substring_regex(trimmed, _ISO)
    _refuse(
        path,
        start,
        pc.invert(pc.or_(digits, iso)),
        column,
        "time",
        "is neither nanoseconds since 1970 nor ISO 8601 with a zone",
    )
    if pc.all(digits).as_py():
        return trimmed.cast(pa.int64()).cast(pa.timestamp("ns"))
    text = trimmed.to_pandas().astype("string")
    if pc.any(digits).as_py():
        whole = pd.Series(digits.to_pandas(), dtype=bool)
        stamps = pd.Series(np.zeros(len(text), "datetime64[ns]"))
        stamps[whole] = text[whole].astype("int64").astype("datetime64[ns]")
        stamps[~whole] = _stamps(text[~whole], path)
        return pa.chunked_array([pa.array(stamps, pa.timestamp("ns"))])
    return pa.chunked_array([pa.array(_stamps(text, path), pa.timestamp("ns"))])


def _stamps(text: pd.Series[Any], path: Path) -> Any:
    if len(text):
        parse_time(str(text.iloc[0]), f"{path}: time")
    try:
        stamps = pd.to_datetime(text, utc=True, format="ISO8601")
    except (ValueError, OverflowError) as error:
        raise InputError(path, f"a time cannot be read: {error}") from error
    return stamps.dt.tz_localize(None).astype("datetime64[ns]").to_numpy()


def _refuse(
    path: Path, start: int, bad: pa.ChunkedArray, column: pa.ChunkedArray, name: str, fault: str
) -> None:
    """Raise for the first row that is bad; a null counts as bad."""
    flags = pc.fill_null(bad, True)
    if not pc.any(flags).as_py():
        return
    if name in (*_NULLABLE, "interval", "flags"):
        flags = pc.and_(flags, pc.is_valid(column))  # these may be absent
        if not pc.any(flags).as_py():
            return
    row = pc.index(flags, True).as_py()
    value = column[row].as_py()
    told = "is missing" if value is None else f"{str(value)[:40]!r} {fault}"
    raise InputError(path, f"row {start + row + 1}: {name} {told}")
