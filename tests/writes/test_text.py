"""CSV and Parquet: the order does not matter, reads are skipped, nonsense is refused by row."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from cbtlab.errors import InputError
from cbtlab.writes import read_writes, save_writes

HEAD = "time,op,offset,length"


def csv(tmp_path: Path, *rows: str, head: str = HEAD) -> Path:
    path = tmp_path / "writes.csv"
    path.write_text("\n".join([head, *rows]) + "\n")
    return path


def test_rows_come_in_the_order_of_time_whatever_the_file_s_order(tmp_path: Path) -> None:
    frame = read_writes(csv(tmp_path, "30,write,0,1", "10,discard,8,9", "20,write_zeroes,4,5"))
    assert frame["offset"].tolist() == [8, 4, 0]
    assert frame["op"].tolist() == ["discard", "write_zeroes", "write"]


def test_the_sequence_number_orders_what_the_clock_cannot(tmp_path: Path) -> None:
    head = HEAD + ",seq"
    frame = read_writes(csv(tmp_path, "5,write,0,1,2", "5,write,8,1,1", head=head))
    assert frame["seq"].tolist() == [1, 2]
    assert frame["offset"].tolist() == [8, 0]


def test_both_ways_to_write_an_instant_are_one(tmp_path: Path) -> None:
    frame = read_writes(
        csv(
            tmp_path,
            "1700000000123456789,write,0,1",
            "2023-11-14T22:13:20.123456789Z,write,1,1",
            "2023-11-14T23:13:20.123456789+01:00,write,2,1",
        )
    )
    assert (frame["time"] == np.datetime64(1_700_000_000_123_456_789, "ns")).all()


def test_reads_flushes_and_empty_rows_are_skipped_and_counted(tmp_path: Path) -> None:
    frame = read_writes(
        csv(tmp_path, "1,read,0,5", "1,flush,0,0", "1,write,0,0", "2,secure_erase,0,7")
    )
    summary = frame.writes.summary()
    assert (summary["rows"], summary["skipped"], summary["ops"]) == (1, 3, {"secure_erase": 1})
    assert summary["bytes"] == 7


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        ("1,write,-1,2", "offset '-1'"),
        ("1,wrote,1,2", "op 'wrote'"),
        ("1,,1,2", "op"),
        ("1,write,1.5,2", "offset '1.5'"),
        ("1,write,1,", "length is missing"),
        ("1,write,,2", "offset is missing"),
        (",write,1,2", "time is missing"),
        ("2024-01-01T00:00:00,write,1,2", "zone"),
        ("2024-13-01T00:00:00Z,write,1,2", "time"),
        ("-5,write,1,2", "time"),
        ("1,write,18446744073709551615,2", "out of any volume"),
        ("1,write,99999999999999999999,2", "too large"),
        ("1,write,3", "CSV"),
    ],
)
def test_nonsense_is_refused_in_one_line(tmp_path: Path, row: str, fault: str) -> None:
    path = csv(tmp_path, "1,write,0,1", row)
    with pytest.raises(InputError) as caught:
        read_writes(path)
    assert fault in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("data", [b"", b"\n", b"\x00\xff\x00", b"time,op\n", b"PAR1", b"PAR1" * 9])
def test_what_is_no_sequence_is_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "writes.csv"
    path.write_bytes(data)
    with pytest.raises(InputError):
        read_writes(path)


def test_other_columns_are_taken(tmp_path: Path) -> None:
    head = HEAD + ",pid,comm,inode,overlap,flags,volume,interval,color"
    frame = read_writes(csv(tmp_path, "1,write,0,1,7,sh,12,true,3,snapshot,4,red", head=head))
    row = frame.iloc[0]
    assert (row["pid"], row["comm"], row["inode"], row["overlap"]) == (7, "sh", 12, True)
    assert (row["flags"], row["volume"], row["interval"]) == (3, "snapshot", 4)
    assert "color" not in frame


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_what_is_saved_is_read_again(tmp_path: Path, suffix: str) -> None:
    head = HEAD + ",seq,pid,comm,inode,inode_offset,overlap,flags,volume,interval"
    frame = read_writes(
        csv(
            tmp_path,
            "1700000000123456789,write,0,512,1,7,sh,12,8192,true,3,snapshot,4",
            "1700000000123456790,discard,512,512,2,,,,,false,0,physical,4",
            head=head,
        )
    )
    target = tmp_path / f"saved{suffix}"
    save_writes(frame, target)
    pd.testing.assert_frame_equal(read_writes(target), frame)
    with pytest.raises(InputError, match="exists"):
        save_writes(frame, target)


def test_a_parquet_file_of_plain_integers_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "writes.parquet"
    pd.DataFrame(
        {"time": [2, 1], "op": ["write", "read"], "offset": [0, 1], "length": [4096, 5]}
    ).to_parquet(path)
    frame = read_writes(path)
    assert len(frame) == 1 and frame.attrs["skipped"] == 1
    pd.DataFrame({"time": [2], "op": ["write"], "offset": [-1], "length": [1]}).to_parquet(path)
    with pytest.raises(InputError, match="offset"):
        read_writes(path)


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_number_of_a_skipped_row_is_no_loss(tmp_path: Path, suffix: str) -> None:
    rows = ["1,write,0,1,1", "2,read,0,1,2", "3,write,0,0,3", "4,write,0,1,4", "5,write,0,1,7"]
    path = csv(tmp_path, *rows, head=HEAD + ",seq")
    if suffix == ".parquet":
        save_writes(read_writes(path), tmp_path / "saved.parquet")
        path = tmp_path / "saved.parquet"
    summary = read_writes(path).writes.summary()
    assert (summary["rows"], summary["lost"], summary["gaps"]) == (3, 2, 1)


def test_a_header_in_another_encoding_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "writes.csv"
    for data in ("time,op,offset,length,caf\xe9\n1,write,0,1,x\n".encode("latin-1"),
                 "time,op,offset,length\n1,write,0,1\n".encode("utf-16")):  # fmt: skip
        path.write_bytes(data)
        with pytest.raises(InputError, match="text"):
            read_writes(path)


@pytest.mark.timeout(20)
def test_a_pipe_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "writes.csv")
    with pytest.raises(InputError, match="regular"):
        read_writes(tmp_path / "writes.csv")
