"""What only excluded files hold: fingerprints of their sectors, and their short pieces.

A sector (512 bytes) that is one repeated pattern says nothing, and content that
a kept file has too is not the excluded file's alone.  What is shorter than a
sector (a small file, the tail of a large one, a symlink's target, the value of
an extended attribute) is cut into pieces of at most 64 bytes, and looked for
byte by byte; so are windows of every sector, see `windows`.

Content is carried from backup to backup: what was excluded once must not turn
up later, unless a kept file has come to hold it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain

import numpy as np
import numpy.typing as npt
import pandas as pd

from cbtlab.checks.material import Material
from cbtlab.checks.pieces import LONGEST, SHORTEST, repeats
from cbtlab.checks.streams import Bools, Bytes, Ints, read_ranges, table
from cbtlab.checks.windows import Windows, taken_from
from cbtlab.errors import InputError
from cbtlab.files.ranges import Ranges
from cbtlab.units import SECTOR

Keys = npt.NDArray[np.uint64]
_PERIODS = 64  # bytes: the longest pattern whose repetition is no content
_FACTORS = np.random.default_rng(0x5EC7).integers(0, 1 << 63, SECTOR // 8, np.uint64) * 2 + 1


def fingerprints(sectors: Bytes) -> Keys:
    """Return a 64-bit fingerprint per row of 512 bytes; that of zeros is 0."""
    words = np.ascontiguousarray(sectors).view(np.uint64)
    return np.asarray(np.einsum("ij,j->i", words, _FACTORS))


def patterned(sectors: Bytes) -> Bools:
    """Return which rows are one repeated pattern of at most 64 bytes."""
    found = np.zeros(len(sectors), np.bool_)
    for period in range(1, _PERIODS + 1):
        at = np.flatnonzero(~found & (sectors[:, period] == sectors[:, 0]))
        at = at[(sectors[at, period : 2 * period] == sectors[at, :period]).all(axis=1)]
        found[at] = (sectors[at, period:] == sectors[at, :-period]).all(axis=1)
    return found


@dataclass
class Source:
    """Where the excluded files of one backup lie on its S_k: ranges in bytes, with paths."""

    start: Ints
    length: Ints
    path: npt.NDArray[np.object_]

    def path_at(self, offset: int) -> str:
        """Return whose byte lies at ``offset``."""
        at = int(np.searchsorted(self.start, offset, side="right")) - 1
        return str(self.path[at])


@dataclass
class Content:
    """The sectors and pieces of the excluded files of the backups seen so far.

    ``keys`` rise; ``origin`` is the backup and ``place`` the byte on its S_k
    that each was read from.  ``pieces`` maps a short piece to backup and path,
    ``windows`` are parts of the same sectors, for a search at every byte.
    """

    keys: Keys = field(default_factory=lambda: np.zeros(0, np.uint64))
    origin: npt.NDArray[np.int32] = field(default_factory=lambda: np.zeros(0, np.int32))
    place: Ints = field(default_factory=lambda: np.zeros(0, np.int64))
    pieces: dict[bytes, tuple[int, str]] = field(default_factory=dict)
    windows: Windows = field(default_factory=Windows)
    sources: dict[int, Source] = field(default_factory=dict)
    kept: dict[int, pd.MultiIndex] = field(default_factory=dict)

    def add(self, m: Material) -> None:
        """Take in the content of the files that backup ``k`` excludes, as on S_k."""
        inodes = excluded_inodes(m, "file", "symlink")
        spots = _valid(m, inodes)
        data = spots[spots["kind"] == "data"].sort_values("start", ignore_index=True)
        start, length = data["start"].to_numpy(np.int64), data["valid"].to_numpy(np.int64)
        self.sources[m.k] = Source(start, length, data["path"].to_numpy(object))
        keys, places, taken = [self.keys], [self.place], []
        for offset, _, part in read_ranges(m.snapshot, start, length // SECTOR * SECTOR):
            if part is None:
                continue
            sectors = table(part, SECTOR)
            telling = np.flatnonzero(~patterned(sectors))
            keys.append(fingerprints(sectors[telling]))
            places.append(offset + telling * SECTOR)
            if m.policy == "allocated":
                taken.append(taken_from(sectors[telling], places[-1]))
        origin = np.full(sum(map(len, keys)) - len(self.keys), m.k, np.int32)
        every = np.concatenate(keys)
        self.keys, first = np.unique(every, return_index=True)
        self.place = np.concatenate(places)[first]
        self.origin = np.concatenate([self.origin, origin])[first]
        self.windows.add(m.k, taken)
        for path, piece in chain(_short(m, spots), _values(m, inodes)):
            for cutting in cut(piece):
                self.pieces.setdefault(cutting, (m.k, path))

    def drop(self, sectors: Bools, pieces: set[bytes]) -> None:
        """Forget content that a kept file holds too."""
        self.keys = self.keys[~sectors]
        self.place = self.place[~sectors]
        self.origin = self.origin[~sectors]
        for piece in pieces:
            del self.pieces[piece]

    def path_of(self, index: int) -> str:
        """Return the excluded file whose sector a key is."""
        return self.sources[int(self.origin[index])].path_at(int(self.place[index]))


def excluded_inodes(m: Material, *types: str) -> Ints:
    """Return the inodes of these types (regular files) all of whose names a rule gives."""
    assert m.before is not None and m.exclusion is not None
    inodes = m.before.inodes
    files = inodes.index[inodes["type"].isin(types or ("file",))]
    named = m.exclusion.files
    going = named.loc[(named["linked"] == "") & named["inode"].isin(files), "inode"]
    return going.unique().astype(np.int64)


def kept_ranges(m: Material) -> Ranges:
    """Return the bytes of S_k that are content of files and symlinks with a kept name.

    What has no name is nobody's: the journal, the resize inode, quota files, orphans.
    """
    assert m.before is not None and m.exclusion is not None
    names = m.before.names
    kept = names["type"].isin(["file", "symlink"])
    kept &= ~names["path"].isin(m.exclusion.files["path"])
    spots = _valid(m, names.loc[kept, "inode"].unique().astype(np.int64))
    return Ranges.union(spots["start"].to_numpy(np.int64), spots["valid"].to_numpy(np.int64))


def _valid(m: Material, inodes: Ints) -> pd.DataFrame:
    """Return where bytes of these files lie: inode, path, kind, start, logical, valid length."""
    assert m.before is not None
    rows = m.before.extents
    rows = rows[
        rows["inode"].isin(inodes)
        & rows["kind"].isin(["data", "inline"])
        & rows["physical"].notna()
        & rows["logical"].notna()
    ]
    size = m.before.inodes["size"].reindex(rows["inode"].to_numpy()).to_numpy(np.int64)
    logical = rows["logical"].to_numpy(np.int64)
    valid = np.minimum(rows["length"].to_numpy(np.int64), np.maximum(size - logical, 0))
    names = m.before.names.drop_duplicates("inode").set_index("inode")["path"]
    made: pd.DataFrame = pd.DataFrame(
        {
            "inode": rows["inode"].to_numpy(np.int64),
            "path": names.reindex(rows["inode"].to_numpy()).to_numpy(object),
            "kind": rows["kind"].astype(str).to_numpy(),
            "start": rows["physical"].to_numpy(np.int64),
            "logical": logical,
            "valid": valid,
        }
    )
    some: pd.DataFrame = made[made["valid"] > 0]
    return some


def cut(piece: bytes) -> Iterator[bytes]:
    """Yield parts of at most 64 bytes that cover a piece; none is one repeated pattern."""
    last = max(0, len(piece) - LONGEST)
    for at in (*range(0, last, LONGEST), last):
        part = piece[at : at + LONGEST]
        if len(part) >= SHORTEST and not repeats(part):
            yield part


def _short(m: Material, spots: pd.DataFrame) -> Iterator[tuple[str, bytes]]:
    """Yield what is shorter than a sector: tails after the last whole one, and inline data.

    A symlink to a file by its mere name is left out: a folder holds that name.
    """
    assert m.before is not None
    names = {bytes(raw).rpartition(b"/")[2] for raw in m.before.names["raw"]}
    short = spots[(spots["kind"] == "inline") | (spots["valid"] % SECTOR > 0)]
    columns = (short[name].tolist() for name in ("path", "kind", "start", "valid"))
    for path, kind, start, valid in zip(*columns, strict=True):
        begin = 0 if kind == "inline" else valid // SECTOR * SECTOR
        piece = m.snapshot.read(start + begin, valid - begin)
        if piece not in names:
            yield path, piece


def _values(m: Material, inodes: Ints) -> Iterator[tuple[str, bytes]]:
    """Yield the values of the extended attributes of these inodes."""
    assert m.before is not None
    for inode in inodes.tolist():
        yield from ((m.before.label(inode), value) for value in _attributes(m, inode))


def _attributes(m: Material, inode: int) -> list[bytes]:
    """Return the values of an inode's attributes; access lists are no content."""
    assert m.before is not None
    try:
        found = m.before.xattrs(inode)
    except InputError:  # damaged: `kept` says so of a kept file
        return []
    return [value for name, value in found.items() if not name.startswith("system.")]


def kept_beside(m: Material) -> bytes:
    """Return what S_k keeps beside the content of files: names, and attributes of kept inodes."""
    assert m.before is not None and m.exclusion is not None
    names = m.before.names
    leaves = {bytes(raw).rpartition(b"/")[2] for raw in names["raw"]}
    kept = names.loc[~names["path"].isin(m.exclusion.files["path"]), "inode"].unique()
    values = {value for inode in kept.tolist() for value in _attributes(m, inode)}
    return b"\0".join([*leaves, *values])
