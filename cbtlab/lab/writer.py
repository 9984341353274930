"""A program that goes on writing with fsync while backups are made, and logs every stall."""

from __future__ import annotations

import multiprocessing
import os
import struct
import time
from dataclasses import dataclass
from pathlib import Path

from cbtlab.lab.content import text

_RECORD = struct.Struct("<QQ")
_PAGE = 4096


@dataclass(frozen=True)
class Stalls:
    """What the writer did in a span: how many writes, and the longest one in seconds.

    ``covered`` is true when it was writing before the span and after it.
    """

    writes: int
    longest: float
    covered: bool


class Writer:
    """Writes one page and an fsync, again and again, in a process of its own.

    The file is a ring of ``pages``; ``pause`` is the time between two writes in seconds.
    """

    def __init__(self, path: Path, log: Path, pause: float, pages: int) -> None:
        self._log = log
        self._end = multiprocessing.Event()
        self._process = multiprocessing.Process(
            target=_write, args=(path, log, pause, pages, self._end), daemon=True
        )

    def start(self) -> None:
        """Start; return after the first write has been logged."""
        self._process.start()
        while not (self._log.exists() and self._log.stat().st_size):
            if not self._process.is_alive():
                raise RuntimeError("the writer ended at once")
            time.sleep(0.01)

    def stop(self) -> None:
        """End it; RuntimeError when it had failed before."""
        self._end.set()
        self._process.join()
        if self._process.exitcode != 0:
            raise RuntimeError(f"the writer failed with status {self._process.exitcode}")

    def stalls(self, begin_ns: int, end_ns: int) -> Stalls:
        """Return what it did between two instants of CLOCK_MONOTONIC."""
        data = self._log.read_bytes()
        rows = list(_RECORD.iter_unpack(data[: len(data) // _RECORD.size * _RECORD.size]))
        inside = [(start, end) for start, end in rows if end > begin_ns and start < end_ns]
        longest = max((end - start for start, end in inside), default=0) / 1e9
        covered = bool(rows) and rows[0][0] < begin_ns and rows[-1][1] > end_ns
        return Stalls(len(inside), longest, covered)


def _write(
    path: Path, log: Path, pause: float, pages: int, end: multiprocessing.synchronize.Event
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    number = 0
    with log.open("wb", buffering=0) as out:
        while not end.is_set():
            page = text(f"mail {number}", _PAGE)
            start = time.monotonic_ns()
            os.pwrite(fd, page, number % pages * _PAGE)
            os.fsync(fd)
            out.write(_RECORD.pack(start, time.monotonic_ns()))
            number += 1
            time.sleep(pause)
    os.close(fd)
