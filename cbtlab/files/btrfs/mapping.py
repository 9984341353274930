"""From file extents to extents of the volume, and which bytes of the allocated can be read.

A file extent names a part of an allocated extent.  The rest of that (its
"bookend") stays allocated and nobody can read it.  Of a chunk with two copies
the first is the extent, and the second a ``meta`` extent of the same inode.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from cbtlab.files.btrfs import layout as on_disk
from cbtlab.files.btrfs.chunks import Chunks
from cbtlab.files.btrfs.items import Columns
from cbtlab.files.btrfs.space import Allocated
from cbtlab.files.btrfs.superblock import Btrfs
from cbtlab.files.extents import (
    DATA,
    INLINE,
    META,
    NOWHERE,
    RESERVED,
    UNWRITTEN,
    Array,
    Extents,
)
from cbtlab.files.ranges import Ranges

_MOST = 1 << 60


@dataclass
class Mapping:
    """The file extents of all inodes, checked and sorted by inode and place in the file.

    ``rows`` has the columns of the items; ``start`` and ``length`` are the logical addresses that
    each needs on the disk: the named part, or all of a compressed extent.  ``found`` is the
    allocated extent, or -1.  ``damaged`` says of an inode what is wrong with it.
    """

    btrfs: Btrfs
    chunks: Chunks
    allocated: Allocated
    rows: Columns
    damaged: dict[int, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        order = np.lexsort((self.rows["logical"], self.rows["inode"]))
        self.rows = {name: values[order] for name, values in self.rows.items()}
        self._sieve()
        rows = self.rows
        self.encoded = rows["compression"] != 0
        self.start = np.where(
            self.encoded, rows["disk_bytenr"], rows["disk_bytenr"] + rows["offset"]
        )
        self.length = np.where(self.encoded, rows["disk_num_bytes"], rows["num_bytes"])
        self.inline = rows["type"] == on_disk.INLINE
        self.unwritten = rows["type"] == on_disk.PREALLOCATED
        self.found = self.allocated.row_of(rows["disk_bytenr"], rows["disk_num_bytes"], False)
        self._blame(~self.inline & (self.found < 0), "it names an extent that is not allocated")

    def _sieve(self) -> None:
        """Drop explicit holes, and what makes no sense, which damages the inode."""
        rows, sector = self.rows, self.btrfs.sectorsize
        kind, packed = rows["type"], rows["compression"] != 0
        inline = kind == on_disk.INLINE
        bad = rows["odd"] | (kind > on_disk.PREALLOCATED) | (rows["compression"] > on_disk.ZSTD)
        bad |= packed & (kind == on_disk.PREALLOCATED)
        bad |= packed & (rows["ram_bytes"] > on_disk.LARGEST_ENCODED)
        bad |= inline & ~packed & (rows["ram_bytes"] != rows["disk_num_bytes"])
        bad |= inline & (rows["logical"] != 0)
        hole = ~inline & (rows["disk_bytenr"] == 0)
        placed = ~inline & ~hole
        for name in ("logical", "disk_bytenr", "disk_num_bytes", "offset", "num_bytes"):
            bad |= ~inline & (rows[name] % sector != 0)
        limit = np.where(packed, rows["ram_bytes"], rows["disk_num_bytes"])
        limit = np.where(packed, -(-limit // sector) * sector, limit)
        bad |= placed & (rows["offset"] + rows["num_bytes"] > limit)
        bad |= ~inline & (rows["num_bytes"] <= 0)
        outside = self.chunks.row_of(rows["disk_bytenr"], rows["disk_num_bytes"]) < 0
        bad |= placed & (outside | (rows["disk_num_bytes"] <= 0))
        end = rows["logical"] + np.where(inline, np.minimum(rows["num_bytes"], sector), 0)
        end = np.where(inline, end, rows["logical"] + rows["num_bytes"])
        again = (rows["inode"][1:] == rows["inode"][:-1]) & (end[:-1] > rows["logical"][1:])
        self._blame(np.concatenate(([False], again))[: len(bad)], "two extents hold one place")
        self._blame(bad, "its file extents are damaged")
        self.rows = {name: values[~hole & ~bad] for name, values in rows.items()}

    def _blame(self, mask: npt.NDArray[np.bool_], why: str) -> None:
        for inode in np.unique(self.rows["inode"][mask]).tolist():
            self.damaged.setdefault(inode, why)

    # Extents --------------------------------------------------------------------------------

    def extents(self) -> Extents:
        """All extents but holes, `ordered`, in bytes of the volume."""
        rows, kept = self.rows, ~self.inline
        inode, logical = rows["inode"], rows["logical"]
        places = self.chunks.places(self.start, self.length)
        kind = np.where(self.unwritten, UNWRITTEN, DATA)[kept]
        first = Extents.of(
            inode[kept],
            kind,
            logical[kept],
            places[kept, 0],
            self.length[kept],
            encoded=self.encoded[kept],
        )
        twice = kept & (places[:, 1] != NOWHERE)
        second = Extents.of(
            inode[twice],
            np.where(self.unwritten[twice], RESERVED, META),
            NOWHERE,
            places[twice, 1],
            self.length[twice],
        )
        small = Extents.of(
            inode[self.inline],
            INLINE,
            logical[self.inline],
            rows["inline"][self.inline],
            rows["disk_num_bytes"][self.inline],
            encoded=self.encoded[self.inline],
        )
        return Extents.join([first, second, small, self._rests()]).ordered().merged()

    def as_mapped(self) -> Extents:
        """What of each file has content, not encoded: to find its holes by; `ordered`."""
        rows = self.rows
        return Extents.of(rows["inode"], DATA, rows["logical"], 0, rows["num_bytes"])

    def rests(self) -> tuple[Array, Array, Array]:
        """What of the named extents no file can read: logical start and end, and an inode each.

        The inode is one that names the extent.  What was written there still has checksums, and
        who moves or verifies the whole extent (a balance, a scrub) reads it.
        """
        named = ~self.inline & (self.found >= 0)
        taken = Ranges.union(self.start[named], self.length[named])
        gaps = Ranges(np.append(0, taken.end), np.append(taken.start, 1 << 62))
        gaps = Ranges.union(gaps.start, gaps.length)
        found, at = np.unique(self.found[named], return_index=True)
        inode = self.rows["inode"][named][at]
        start = self.allocated.start[found]
        which, begin, end = gaps.clipped(start, start + self.allocated.length[found])
        return begin, end, inode[which]

    def _rests(self) -> Extents:
        begin, end, inode = self.rests()
        places = self.chunks.places(begin, end - begin)
        row, copy = np.nonzero(places != NOWHERE)
        return Extents.of(inode[row], RESERVED, NOWHERE, places[row, copy], (end - begin)[row])

    # What can be read -----------------------------------------------------------------------

    def readable(self, inodes: Array, limit: Array) -> tuple[Array, Array]:
        """The logical addresses that reading can return, as starts and lengths.

        ``limit`` is, for each of ``inodes`` (ascending), where its content ends; one that is
        `NOWHERE` counts whole, with what was never written.
        """
        rows, sector = self.rows, self.btrfs.sectorsize
        at = np.minimum(np.searchsorted(inodes, rows["inode"]), len(inodes) - 1)
        end = np.where(inodes[at] == rows["inode"], limit[at], NOWHERE)
        whole = end == NOWHERE
        end = np.where(whole, _MOST, -(-end // sector) * sector)
        length = np.clip(end - rows["logical"], 0, self.length)
        length = np.where(self.encoded & (length > 0), self.length, length)
        length = np.where(self.unwritten & ~whole, 0, length)
        length = np.where(self.inline, 0, length)
        nameless = np.ones(len(self.allocated.start), np.bool_)
        nameless[self.found[~self.inline & (self.found >= 0)]] = False
        nameless &= ~self.allocated.tree
        bytes_ = int(self.allocated.length[nameless].sum())
        if bytes_:
            self.btrfs.notes.append(f"{bytes_} bytes are allocated for data that no file names")
        return (
            np.concatenate((self.start, self.allocated.start[nameless])),
            np.concatenate((length, self.allocated.length[nameless])),
        )

    def check_references(self) -> None:
        """Note the allocated extents that count other references than the files' items make."""
        counted = np.zeros(len(self.allocated.start), np.int64)
        mine = ~self.inline & (self.found >= 0) & self.rows["fresh"].astype(np.bool_)
        np.add.at(counted, self.found[mine], 1)
        bad = ~self.allocated.tree & (counted != self.allocated.refs) & (counted > 0)
        if bad.any():
            at = int(np.flatnonzero(bad)[0])
            self.btrfs.notes.append(
                f"{int(bad.sum())} extents count other references than the files make; the first, "
                f"{int(self.allocated.start[at])}, {int(self.allocated.refs[at])} and not "
                f"{int(counted[at])}"
            )
