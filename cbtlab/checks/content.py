"""What only excluded files hold: fingerprints of their sectors, and their short pieces.

A sector (512 bytes) that is one repeated pattern says nothing, and content that
a kept file has too is not the excluded file's alone.  What is shorter than a
sector (a small file, the tail of a large one, a symlink's target, the value of
an extended attribute) is cut into pieces of at most 64 bytes, and looked for
byte by byte; so are windows of every sector, see `windows`.  Of what is
compressed both are known, the bytes as they lie and the content.

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

from cbtlab.checks.contents import Spots, going_spots, going_symlinks
from cbtlab.checks.material import Material
from cbtlab.checks.pieces import LONGEST, SHORTEST, repeats
from cbtlab.checks.sectors import Keys, fingerprints, patterned, probes
from cbtlab.checks.streams import Bools, Bytes, Ints, read_ranges, table
from cbtlab.checks.windows import Windows, taken_from
from cbtlab.errors import InputError
from cbtlab.units import SECTOR


@dataclass
class Source:
    """Where the excluded files of one backup lie on its S_k: ranges in bytes, with paths.

    Decoded content has no place; its places here are -1, -2, … into ``decoded``, also paths.
    """

    start: Ints
    path: npt.NDArray[np.object_]
    decoded: list[str] = field(default_factory=list)

    def path_at(self, offset: int) -> str:
        """Return whose byte lies at ``offset``."""
        if offset < 0:
            return self.decoded[-1 - offset]
        return str(self.path[int(np.searchsorted(self.start, offset, side="right")) - 1])


@dataclass
class Content:
    """The sectors and pieces of the excluded files of the backups seen so far.

    ``keys`` rise; ``probe`` belongs to each (see `sectors`), ``origin`` is the backup and
    ``place`` the byte on its S_k that it was read from.  ``pieces`` maps a short piece to
    backup and path, ``windows`` are parts of the same sectors, for a search at every byte.
    """

    keys: Keys = field(default_factory=lambda: np.zeros(0, np.uint64))
    probe: Keys = field(default_factory=lambda: np.zeros(0, np.uint64))
    origin: npt.NDArray[np.int32] = field(default_factory=lambda: np.zeros(0, np.int32))
    place: Ints = field(default_factory=lambda: np.zeros(0, np.int64))
    pieces: dict[bytes, tuple[int, str]] = field(default_factory=dict)
    windows: Windows = field(default_factory=Windows)
    sources: dict[int, Source] = field(default_factory=dict)
    kept: dict[int, pd.MultiIndex] = field(default_factory=dict)

    def add(self, m: Material) -> None:
        """Take in the content of the files that backup ``k`` excludes, as on S_k."""
        spots = going_spots(m)
        source = Source(spots.start, spots.path)
        self.sources[m.k] = source
        keys, probe, places, taken = [self.keys], [self.probe], [self.place], []
        for sectors, at in chain(_sectors(m, spots), _decoded(m, spots, source)):
            some = ~patterned(sectors)
            if not some.all():
                sectors, at = sectors[some], at[some]
            seen = fingerprints(sectors)
            keys.append(seen)
            probe.append(probes(sectors))
            places.append(at)
            new = ~_known(self.keys, seen)
            if not new.all():
                sectors, at = sectors[new], at[new]
            taken.append(taken_from(sectors, at))
        origin = np.full(sum(map(len, keys)) - len(self.keys), m.k, np.int32)
        self.keys, first = _first_of_each(np.concatenate(keys))
        self.probe = np.concatenate(probe)[first]
        self.place = np.concatenate(places)[first]
        self.origin = np.concatenate([self.origin, origin])[first]
        self.windows.add(m.k, taken)
        for path, piece in chain(_short(m, spots), _values(m)):
            for cutting in cut(piece):
                self.pieces.setdefault(cutting, (m.k, path))

    def drop(self, sectors: Bools, pieces: set[bytes]) -> None:
        """Forget content that a kept file holds too."""
        self.keys = self.keys[~sectors]
        self.probe = self.probe[~sectors]
        self.place = self.place[~sectors]
        self.origin = self.origin[~sectors]
        for piece in pieces:
            del self.pieces[piece]

    def path_of(self, index: int) -> str:
        """Return the excluded file whose sector a key is."""
        return self.sources[int(self.origin[index])].path_at(int(self.place[index]))


def _known(keys: Keys, seen: Keys) -> Bools:
    """Return which fingerprints are among ``keys``, which rise."""
    if not len(keys):
        return np.zeros(len(seen), np.bool_)
    at = np.minimum(np.searchsorted(keys, seen), len(keys) - 1)
    return np.asarray(keys[at] == seen)


def _first_of_each(keys: Keys) -> tuple[Keys, Ints]:
    """Return the different keys, rising, and the first position of each."""
    order = np.argsort(keys)  # not stable, and several times as fast
    ordered = keys[order]
    start = np.flatnonzero(np.concatenate(([True], ordered[1:] != ordered[:-1])))[: len(keys)]
    first = np.minimum.reduceat(order, start) if len(keys) else order
    return ordered[start], first


def cut(piece: bytes) -> Iterator[bytes]:
    """Yield parts of at most 64 bytes that cover a piece; none is one repeated pattern."""
    last = max(0, len(piece) - LONGEST)
    for at in (*range(0, last, LONGEST), last):
        part = piece[at : at + LONGEST]
        if len(part) >= SHORTEST and not repeats(part):
            yield part


def attributes(m: Material, inode: int) -> list[bytes]:
    """Return the values of an inode's attributes; access lists are no content."""
    assert m.before is not None
    try:
        found = m.before.xattrs(inode)
    except InputError:  # damaged: `kept` says so of a kept file
        return []
    return [value for name, value in found.items() if not name.startswith("system.")]


def _sectors(m: Material, spots: Spots) -> Iterator[tuple[Bytes, Ints]]:
    """Yield the whole sectors of excluded files as they lie, and their places."""
    data = spots[~spots.inline]
    for offset, _, part in read_ranges(m.mapped_image, data.start, data.valid // SECTOR * SECTOR):
        if part is not None:
            sectors = table(part, SECTOR)
            yield sectors, offset + np.arange(len(sectors), dtype=np.int64) * SECTOR


def _decoded(m: Material, spots: Spots, source: Source) -> Iterator[tuple[Bytes, Ints]]:
    """Yield the whole sectors of the content of what is compressed; they have no place."""
    assert m.before is not None
    part = spots[spots.encoded]
    pairs = {
        (inode, stream): str(path)
        for inode, stream, path in zip(
            part.inode.tolist(), part.stream.tolist(), part.path.tolist(), strict=True
        )
    }
    for (inode, stream), path in pairs.items():
        source.decoded.append(path)
        try:
            for _, _, data in m.before.file_chunks(inode, stream):
                whole = 0 if data is None else len(data) // SECTOR * SECTOR
                if data is not None and whole:
                    sectors = table(np.frombuffer(data, np.uint8, whole), SECTOR)
                    yield sectors, np.full(len(sectors), -len(source.decoded), np.int64)
        except InputError:  # damaged or encrypted: what lies there is known as it lies
            continue


def _short(m: Material, spots: Spots) -> Iterator[tuple[str, bytes]]:
    """Yield what is shorter than a sector: tails after the last whole one, and inline data.

    A symlink to a file by its mere name is left out: a folder holds that name.
    """
    assert m.before is not None
    names = {bytes(raw).rpartition(b"/")[2] for raw in m.before.names["raw"]}
    links = set(going_symlinks(m).tolist())
    short = spots[spots.inline | (spots.valid % SECTOR > 0)]
    columns = (short.inode, short.path, short.inline, short.start, short.valid)
    for inode, path, inline, start, valid in zip(*(c.tolist() for c in columns), strict=True):
        begin = 0 if inline else valid // SECTOR * SECTOR
        piece = m.mapped_image.read(start + begin, valid - begin)
        if inode not in links or piece not in names:
            yield path, piece


def _values(m: Material) -> Iterator[tuple[str, bytes]]:
    """Yield the values of the extended attributes of the files that go."""
    assert m.before is not None and m.exclusion is not None
    pairs = m.exclusion.pairs
    for inode in pairs.loc[pairs["stream"] == 0, "inode"].astype(np.int64).tolist():
        yield from ((m.before.label(inode), value) for value in attributes(m, inode))
