"""VolumeMap: names, inodes, extents, what is in use, and whose each byte is."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from cbtlab.bitmap import Bitmap
from cbtlab.errors import InputError
from cbtlab.files.extents import (
    HOLE,
    KINDS,
    META,
    NOWHERE,
    PLACED,
    RESERVED,
    UNWRITTEN,
    Extents,
    category,
)
from cbtlab.files.names import text, texts
from cbtlab.files.volume import Volume

TYPES = ("file", "directory", "symlink", "other", "stream")
OUTSIDE, FREE, UNKNOWN = "<outside the file system>", "<free>", "<allocated, no owner>"
_CHUNK = 4 << 20
Chunk = tuple[int, int, bytes | None]
_WHOLE_FILE = 1 << 30  # the most that read_file returns


@dataclass(frozen=True)
class Regions:
    """The file system's own structures: byte ranges of the image, ascending, with their names."""

    start: npt.NDArray[np.int64]
    end: npt.NDArray[np.int64]
    name: npt.NDArray[np.object_]


@dataclass(frozen=True)
class Streams:
    """Named streams of content, beside the unnamed one that every file has.

    ``names[code]`` is a name in bytes, ``names[0]`` the empty one.  One position a stream:
    the ``inode``, the ``code``, and in bytes its ``size`` and how many were written (``valid``).
    Inodes ascend, and codes within an inode.
    """

    names: tuple[bytes, ...]
    inode: npt.NDArray[np.int64]
    code: npt.NDArray[np.int64]
    size: npt.NDArray[np.int64]
    valid: npt.NDArray[np.int64]

    @classmethod
    def none(cls) -> Streams:
        """For a file system without named streams."""
        nothing = np.empty(0, np.int64)
        return cls((b"",), nothing, nothing, nothing, nothing)

    def codes_of(self, inode: int) -> list[int]:
        """The codes of an inode's named streams."""
        low, high = np.searchsorted(self.inode, [inode, inode + 1])
        return [int(code) for code in self.code[low:high]]

    def position(self, inode: int, code: int) -> int:
        """The position of a stream, or -1."""
        low, high = np.searchsorted(self.inode, [inode, inode + 1])
        found = np.flatnonzero(self.code[low:high] == code)
        return int(low + found[0]) if len(found) else -1


class VolumeMap:
    """One file system of an image; every offset counts bytes from the start of the image.

    ``fs`` is its kind (``ext4``), ``root`` the inode of its root, ``block_size`` in bytes,
    ``offset`` where it begins, ``size`` how many bytes it manages.  ``in_use`` is `A_k` of the
    method at ``block_size`` (finer where the file system does not begin at a multiple of it):
    what is allocated, less unwritten extents and blocks wholly past the end of a file, and
    every byte that the file system does not manage.  ``notes`` tells, in sentences, what is
    odd about the volume; ``damaged`` says for an inode what is wrong with it; ``hidden`` tells
    what could not be read of the folders, where names may be missing.

    ``inodes`` has one row an inode in use, by rising number: ``type``, ``size``, ``mode``,
    ``uid``, ``gid``, ``nlink``, four times in nanoseconds since 1970 UTC (``mtime_ns``,
    ``atime_ns``, ``ctime_ns``, ``crtime_ns``), ``flags`` as stored, ``device`` and ``project``;
    0 where the file system has no such thing.  ``valid``, where there is such a column, is how
    many bytes of the content were ever written: those after it read as zeros.

    A file system's reader gives ``xattrs`` and ``holders`` (see `value_holders`), ``special``
    (names for inodes that serve the file system itself) and, where content can be encoded,
    ``decoded``, which yields the chunks of a stream of an inode, see `file_chunks`.
    """

    def __init__(
        self,
        *,
        volume: Volume,
        fs: str,
        uuid: str,
        block_size: int,
        size: int,
        in_use: Bitmap,
        inodes: pd.DataFrame,
        extents: Extents,
        regions: Regions,
        special: dict[int, str],
        root: int,
        xattrs: Callable[[int], dict[str, bytes]],
        holders: Callable[[int], list[int]],
        notes: list[str],
        damaged: dict[int, str],
        streams: Streams | None = None,
        decoded: Callable[[int, int], Iterator[Chunk]] | None = None,
    ) -> None:
        self._volume, self._image = volume, volume.image
        self.fs, self.uuid = fs, uuid
        self.block_size, self.size, self.offset = block_size, size, volume.offset
        self.in_use, self.inodes = in_use, inodes
        self._extents, self._regions, self._special, self.root = extents, regions, special, root
        self._xattrs, self._holders = xattrs, holders
        self.notes, self.damaged = notes, damaged
        self.streams = streams or Streams.none()
        self._decoded = decoded
        self.hidden: list[str] = []
        self.names = self._table([], np.empty(0, np.int64))

    def __repr__(self) -> str:
        return (
            f"<VolumeMap {self._volume.name}: {self.fs}, {self.size} bytes in blocks of "
            f"{self.block_size}, {len(self.names)} names>"
        )

    # Names ----------------------------------------------------------------------------------

    def set_names(
        self, paths: list[bytes], inodes: npt.NDArray[np.int64], hidden: Sequence[str] = ()
    ) -> None:
        """Take the names of a walk, full paths; the root itself is added, and every stream.

        A named stream is a row ``PATH:STREAM`` of the type ``stream``, for each path.
        ``hidden`` says what could not be read, so that names may be missing.
        """
        self.hidden = list(hidden)
        paths = [b"/", *paths]
        inodes = np.concatenate(([self.root], inodes))
        codes = np.zeros(len(paths), np.int64)
        more = self.streams
        if len(more.inode):
            low = np.searchsorted(more.inode, inodes)
            many = np.searchsorted(more.inode, inodes, side="right") - low
            which = np.repeat(np.arange(len(paths)), many)
            at = np.arange(len(which)) - np.repeat(np.cumsum(many) - many, many) + low[which]
            extra = more.code[at]
            pairs = zip(which.tolist(), extra.tolist(), strict=True)
            paths += [paths[n] + b":" + more.names[code] for n, code in pairs]
            inodes, codes = np.concatenate((inodes, inodes[which])), np.append(codes, extra)
        self.names = self._table(paths, inodes, codes)

    def _table(
        self,
        paths: list[bytes],
        inodes: npt.NDArray[np.int64],
        streams: npt.NDArray[np.int64] | None = None,
    ) -> pd.DataFrame:
        order = sorted(range(len(paths)), key=paths.__getitem__)
        inodes = inodes[np.array(order, np.int64)]
        stream = (np.zeros(len(paths), np.int64) if streams is None else streams)[
            np.array(order, np.int64)
        ]
        codes = self.inodes["type"].cat.codes.to_numpy()
        at = self._row_of(inodes)
        kind = np.where(at >= 0, codes[at] if len(codes) else 3, 3)
        kind = np.where(stream != 0, TYPES.index("stream"), kind)
        raw = [paths[n] for n in order]
        frame: pd.DataFrame = pd.DataFrame(
            {
                "path": pd.Series(texts(raw), dtype=object),
                "raw": pd.Series(raw, dtype=object),
                "inode": inodes.astype(np.uint64),
                "type": category(kind, TYPES),
                "stream": stream.astype(np.int32),
            }
        )
        return frame

    def _row_of(self, inodes: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """The row of each inode in ``inodes``, or -1."""
        index = self.inodes.index.to_numpy().astype(np.int64)
        if not len(index):
            return np.full(len(inodes), -1, np.int64)
        at = np.minimum(np.searchsorted(index, inodes), len(index) - 1)
        return np.where(index[at] == inodes, at, -1)

    @cached_property
    def _first_name(self) -> dict[int, str]:
        firsts = self.names[self.names["stream"] == 0].drop_duplicates("inode")
        return dict(zip(firsts["inode"].tolist(), firsts["path"].tolist(), strict=True))

    def label(self, inode: int) -> str:
        """What to call an inode: its first path, its role in the file system, or its number."""
        name = self._special.get(inode) or self._first_name.get(inode)
        return name or f"<inode {inode}, without a name>"

    # Extents --------------------------------------------------------------------------------

    @cached_property
    def extents(self) -> pd.DataFrame:
        """One row an extent: ``inode``, ``kind``, and bytes ``logical``, ``physical``, ``length``.

        Kinds are ``data``, ``hole``, ``unwritten``, ``inline``, ``meta`` (nodes of the block
        map, attribute blocks, second copies; no logical place) and ``reserved`` (allocated
        with a file's blocks, and never read as part of it: the rest of a cluster or extent).
        Data and unwritten extents are whole blocks, as FIEMAP reports them, and may lie past
        the file's end; a hole ends at the file's size.  ``physical`` of an inline extent is a
        place inside the inode.  ``stream`` is the name of the stream, empty for a file's
        content; what is ``encoded`` is compressed or encrypted, in ``length`` bytes that are
        not the content.
        """
        found = self._extents
        nowhere, unmapped = found.logical == NOWHERE, found.physical == NOWHERE
        physical = np.where(unmapped, 0, found.physical).astype(np.uint64)
        frame: pd.DataFrame = pd.DataFrame(
            {
                "inode": found.inode.astype(np.uint64),
                "kind": category(found.kind, KINDS),
                "logical": pd.arrays.IntegerArray(np.where(nowhere, 0, found.logical), nowhere),
                "physical": pd.arrays.IntegerArray(physical, unmapped),
                "length": found.length.astype(np.uint64),
                "stream": category(found.stream, [text(name) for name in self.streams.names]),
                "encoded": found.encoded,
            }
        )
        return frame

    @cached_property
    def pieces(self) -> pd.DataFrame:
        """One row a piece: of every name its extents, and then the file system's own structures.

        Columns: ``path``, ``inode``, ``stream``, ``kind`` (as in `extents`, or ``system``),
        ``logical``, ``physical`` and ``length`` in bytes.  An inode without a name, and one
        that serves the file system itself, has its `label` as path.
        """
        own = self.extents.copy()
        own["stream"] = own["stream"].astype(object)
        own["kind"] = own["kind"].astype(object)
        paths = self.names[self.names["stream"] == 0]
        named = own.merge(paths[["inode", "path"]], on="inode", how="left", sort=False)
        lost = named["path"].isna().to_numpy()
        labels = {n: self.label(int(n)) for n in named.loc[lost, "inode"].unique().tolist()}
        named.loc[lost, "path"] = named.loc[lost, "inode"].map(labels)
        start = self._regions.start
        system: pd.DataFrame = pd.DataFrame(
            {
                "path": self._regions.name,
                "stream": "",
                "kind": "system",
                "physical": pd.array(start, "UInt64"),
                "length": (self._regions.end - start).astype(np.uint64),
            }
        )
        columns = ["path", "inode", "stream", "kind", "logical", "physical", "length"]
        whole: pd.DataFrame = pd.concat([named, system], ignore_index=True)
        whole["inode"] = whole["inode"].astype("UInt64")
        return whole[columns]

    def rows(self, inode: int) -> Extents:
        """The extents of one inode as arrays of bytes, by logical place."""
        return self._extents.rows_of(inode)

    @property
    def arrays(self) -> Extents:
        """All extents as plain arrays, by inode and logical place."""
        return self._extents

    # Owners ---------------------------------------------------------------------------------

    def owner(self, offset: int) -> str:
        """Whose the byte at ``offset`` of the image is: a path, or a structure in ``<>``."""
        return str(self.owners(np.array([offset]))[0])

    def owners(self, offsets: npt.ArrayLike) -> npt.NDArray[np.object_]:
        """`owner` for an array of offsets."""
        place = np.asarray(offsets).astype(np.int64)
        result = np.full(place.shape, OUTSIDE, object)
        inside = (place >= self.offset) & (place < self.offset + self.size)
        inode, which = np.unique(self._holder(place[inside]), return_inverse=True)
        labels = ["" if n == NOWHERE else self.label(n) for n in inode.tolist()]
        found = np.array([*labels, ""], object)[which]
        nobody = np.where(self._marked(place[inside]), UNKNOWN, FREE).astype(object)
        found = np.where(found == "", nobody, found)
        at = np.searchsorted(self._regions.start, place[inside], side="right") - 1
        own = (at >= 0) & (self._regions.end[at] > place[inside]) if len(self._regions.end) else 0
        found = np.where(own, self._regions.name[at] if len(self._regions.end) else "", found)
        result[inside] = found
        return result

    def _marked(self, place: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Whether each place is in use."""
        block = place // self.in_use.granularity
        bits = np.frombuffer(memoryview(self.in_use.bits), np.uint8)
        return np.asarray(bits[block >> 3] >> (block & 7) & 1, np.bool_)

    def _holder(self, place: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """The inode that maps each place, or `NOWHERE`."""
        start, end, inode, longest = self._by_place
        holder = np.full(len(place), NOWHERE, np.int64)
        if not len(start):
            return holder
        last = np.searchsorted(start, place, side="right") - 1
        known = last >= 0
        for candidate in (longest[last], last):  # the nearest start wins where ranges overlap
            hit = known & (end[candidate] > place)
            holder[hit] = inode[candidate[hit]]
        return holder

    @cached_property
    def _by_place(self) -> tuple[npt.NDArray[np.int64], ...]:
        found = self._extents
        found = found[np.isin(found.kind, PLACED)]
        order = np.argsort(found.physical, kind="stable")
        start, inode = found.physical[order], found.inode[order]
        end = start + found.length[order]
        reach = np.maximum.accumulate(end) if len(end) else end
        newest = np.where(end == reach, np.arange(len(end)), 0)
        return start, end, inode, np.maximum.accumulate(newest) if len(end) else newest

    # Content --------------------------------------------------------------------------------

    def xattrs(self, inode: int) -> dict[str, bytes]:
        """Extended attributes by full name, values as ``getxattr`` returns them."""
        self._size_of(inode)
        return self._xattrs(inode)

    def value_holders(self, inode: int) -> list[int]:
        """The inodes that hold values of this inode's extended attributes."""
        return self._holders(inode)

    def file_chunks(self, inode: int, stream: int = 0) -> Iterator[Chunk]:
        """The content up to the file's size, in order, as ``(offset, length, bytes)``.

        ``stream`` is a code into ``streams.names``.  ``None`` for the bytes means zeros: a
        hole or an unwritten extent, in one piece however long.  Other pieces are at most 4 MiB.
        """
        size, valid = self._size_of(inode, stream)
        if inode in self.damaged:
            raise InputError(self._volume.name, f"{self.label(inode)}: {self.damaged[inode]}")
        found = self._extents.rows_of(inode)
        found = found[found.stream == stream]
        if found.encoded.any():
            if self._decoded is None:
                raise InputError(self._volume.name, f"{self.label(inode)} is encoded")
            yield from self._decoded(inode, stream)
            return
        for kind, logical, physical, length in _rows(found):
            end = min(logical + length, size)
            if kind in (META, RESERVED) or logical >= end:
                continue
            written = end if kind not in (HOLE, UNWRITTEN) else logical
            written = max(min(written, valid), logical)
            for at in range(logical, written, _CHUNK):
                count = min(_CHUNK, written - at)
                place = physical + at - logical - self.offset
                yield at, count, self._volume.read(place, count)
            if written < end:
                yield written, end - written, None

    def read_file(self, inode: int, stream: int = 0) -> bytes:
        """The whole content of a file or symlink; InputError above 1 GiB: use `file_chunks`."""
        if self._size_of(inode, stream)[0] > _WHOLE_FILE:
            raise InputError(
                self._volume.name, f"{self.label(inode)} is too large to hold", "read it in chunks"
            )
        return b"".join(
            bytes(length) if data is None else data
            for _, length, data in self.file_chunks(inode, stream)
        )

    def _size_of(self, inode: int, stream: int = 0) -> tuple[int, int]:
        """The size of a stream, and how many bytes of it were written."""
        if stream:
            at = self.streams.position(inode, stream)
            if at < 0:
                raise InputError(self._volume.name, f"inode {inode} has no such stream")
            return int(self.streams.size[at]), int(self.streams.valid[at])
        at = int(self._row_of(np.array([inode], np.int64))[0])
        if at < 0:
            raise InputError(self._volume.name, f"has no inode {inode} in use")
        size = int(self.inodes["size"].iloc[at])
        return size, int(self.inodes["valid"].iloc[at]) if "valid" in self.inodes else size


def _rows(extents: Extents) -> Iterator[tuple[int, ...]]:
    columns: tuple[Any, ...] = (
        extents.kind,
        extents.logical,
        extents.physical,
        extents.length,
    )
    return zip(*(column.tolist() for column in columns), strict=True)
