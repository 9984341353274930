"""Which names of a volume the rules give, and which rule decides."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from cbtlab.errors import InputError
from cbtlab.files.volume_map import VolumeMap
from cbtlab.rules import Rules
from cbtlab.rules.patterns import Holds

NOBODY = -1
_NO_UIDS = ("ntfs", "fat12", "fat16", "fat32", "vfat", "fat", "exfat")

Names = VolumeMap | pd.DataFrame | Sequence[str]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class _Columns:
    """The facts of many files at once, a row each; see `cbtlab.rules.Facts`."""

    size: npt.NDArray[np.int64]
    mtime_ns: npt.NDArray[np.int64]
    uid: npt.NDArray[np.int64] | None
    sid: npt.NDArray[np.object_] | None


def match(lines: Sequence[str], names: Names) -> Bools:
    """Whether the rules name each path, folders included; the root is never named.

    ``names`` is a `VolumeMap`, its ``names``, or paths that begin with ``/``, a folder's ending
    with ``/``.  Conditions need the `VolumeMap`; InputError without it, and for an age where
    the snapshot's instant is not known.  Of bytes that are not UTF-8 each is one character,
    which ``?`` and ``*`` match.
    """
    return decide(lines, names) != NOBODY


def decide(lines: Sequence[str], names: Names) -> npt.NDArray[np.int64]:
    """The number of the line that names each path, or -1."""
    rules = Rules(lines)
    rules.ready()
    facts = _Judged(rules, names)
    paths = list(_paths(names))
    found = np.full(len(paths), NOBODY, np.int64)
    for row, (path, stream) in enumerate(paths):
        if path in ("", "/") and not stream:
            continue
        if stream:
            number = rules.decide_stream(path, stream, facts.of_file(row), facts.of_row(row))
        else:
            number = rules.decide_by(path, facts.of_row(row))
        if number is not None:
            found[row] = number
    return found


def idle(lines: Sequence[str], names: Names) -> list[str]:
    """Return the rules that by themselves name no file and no folder; comments name nothing.

    Of one that takes back (``!``) it is told whether there is anything to take back.  Rules with
    conditions are judged where ``names`` is a `VolumeMap`.
    """
    some = [line for line in dict.fromkeys(lines) if line.strip() and not line.startswith("#")]
    rules = Rules(some)
    asking = set(rules.conditional)
    used: set[int] = set()
    for path, stream in _paths(names):
        if path in ("", "/") and not stream:
            continue
        whole = f"{path.rstrip('/')}:{stream}" if stream else path
        used.update(rules.matching(whole, bool(stream)))
    if isinstance(names, VolumeMap):
        for number in asking & used:
            if not match([some[number].removeprefix("!")], names).any():
                used.discard(number)
    return [line for number, line in enumerate(some) if number not in used]


class _Judged:
    """Which lines' conditions each row meets, decided for all rows at once."""

    def __init__(self, rules: Rules, names: Names) -> None:
        self._file: dict[int, Bools] = {}
        self._row: dict[int, Bools] = {}
        for number in rules.conditional:
            conditions = rules.conditions(number)
            if not isinstance(names, VolumeMap):
                raise InputError(
                    f"rule {rules.lines[number]!r}",
                    "has a condition, and here only paths are known",
                    "give a pattern alone",
                )
            if not self._file:
                files, rows, leaf = _columns(names)
            self._file[number] = np.logical_and.reduce([c.holds(files) for c in conditions])
            self._row[number] = leaf & np.logical_and.reduce([c.holds(rows) for c in conditions])

    def of_file(self, row: int) -> Holds:
        """About the content without a name of the file of a row."""
        return _Holds(self._file, row) if self._file else _nothing_asked

    def of_row(self, row: int) -> Holds:
        """About what the row itself names; a folder meets no condition."""
        return _Holds(self._row, row) if self._row else _nothing_asked


@dataclass(frozen=True)
class _Holds:
    answers: dict[int, Bools]
    row: int

    def __call__(self, number: int) -> bool:
        return bool(self.answers[number][self.row])


def _nothing_asked(number: int) -> bool:
    return True


def _columns(volume: VolumeMap) -> tuple[_Columns, _Columns, Bools]:
    """The facts about the files of all names, about what each row names, and which are no folder.

    The two differ in the size of a named stream.
    """
    names = volume.names
    wanted = names["inode"].to_numpy()

    def column(name: str) -> npt.NDArray[Any]:
        return volume.inodes[name].reindex(wanted, fill_value=0).to_numpy()

    size, mtime = column("size").astype(np.int64), column("mtime_ns").astype(np.int64)
    uid = None if volume.fs.startswith(_NO_UIDS) else column("uid").astype(np.int64)
    sid = column("sid").astype(object) if "sid" in volume.inodes else None
    stream = names["stream"].to_numpy()
    own = size.copy()
    named = np.flatnonzero(stream)
    for row in named.tolist():
        at = volume.streams.position(int(wanted[row]), int(stream[row]))
        own[row] = volume.streams.size[at]
    leaf = (names["type"] != "directory").to_numpy()
    return _Columns(size, mtime, uid, sid), _Columns(own, mtime, uid, sid), leaf


def _paths(names: Names) -> Iterator[tuple[str, str]]:
    """Paths as rules see them, without a slash in front, and the name of the stream."""
    if isinstance(names, VolumeMap):
        folders = set(names.inodes.index[names.inodes["type"] == "directory"].tolist())
        kinds, table = names.streams.names, names.names
        columns = (table[name].tolist() for name in ("raw", "inode", "stream"))
        for raw, inode, code in zip(*columns, strict=True):
            stream = kinds[code]
            path = raw[: len(raw) - len(stream) - 1] if code else raw
            yield _text(path) + "/" * (inode in folders), stream.decode(errors="surrogateescape")
    elif isinstance(names, pd.DataFrame):
        for raw, kind in zip(names["raw"].tolist(), names["type"].tolist(), strict=True):
            path, stream = _text(raw), ""
            if kind == "stream":
                path, _, stream = path.rpartition(":")
            yield path + "/" * (kind == "directory"), stream
    else:
        for path in names:
            yield path.lstrip("/"), ""


def _text(raw: bytes) -> str:
    return raw.decode(errors="surrogateescape").lstrip("/")
