"""The chunks of btrfs: from logical addresses, which everything else names, to places on the disk.

A chunk is a range of logical addresses and one or more stripes on devices.  On
one device a chunk has one stripe (single), or two that hold the same (DUP).
The superblock lists the chunks in which the chunk tree itself lies.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cbtlab.files.btrfs import layout as on_disk
from cbtlab.files.btrfs.superblock import Btrfs
from cbtlab.files.extents import NOWHERE, Array
from cbtlab.files.volume import structure

#: One chunk: its first logical address, its length, its type, and where its stripes begin.
Chunk = tuple[int, int, int, tuple[int, ...]]


@dataclass(frozen=True)
class Chunks:
    """Chunks by rising logical address, in bytes; ``stripe`` has a row a chunk, a column a copy.

    A chunk without a second copy has `NOWHERE` there.
    """

    start: Array
    length: Array
    type: Array
    stripe: npt.NDArray[np.int64]

    @classmethod
    def of(cls, btrfs: Btrfs, chunks: list[Chunk]) -> Chunks:
        """Check the chunks and sort them.  Raises InputError where two overlap."""
        chunks = sorted(chunks)
        start, length, kind = (np.array([c[n] for c in chunks], np.int64) for n in range(3))
        stripe = np.full((len(chunks), 2), NOWHERE, np.int64)
        for row, chunk in enumerate(chunks):
            stripe[row, : len(chunk[3])] = chunk[3]
        found = cls(start, length, kind, stripe)
        if (start[1:] < (start + length)[:-1]).any():
            raise btrfs.fault("two of its chunks overlap")
        place, many, _ = found.stripes()
        order = np.argsort(place)
        if (place[order][1:] < (place + many)[order][:-1]).any():
            raise btrfs.fault("two of its chunks lie in one place")
        return found

    def stripes(self) -> tuple[Array, Array, Array]:
        """Every stripe: its place, its length, and the row of its chunk."""
        row, copy = np.nonzero(self.stripe != NOWHERE)
        return self.stripe[row, copy], self.length[row], row

    def row_of(self, logical: Array, length: Any) -> Array:
        """The chunk that holds each range whole, or -1."""
        if not len(self.start):
            return np.full(len(logical), -1, np.int64)
        row = np.searchsorted(self.start, logical, side="right") - 1
        end = (self.start + self.length)[row]
        inside = (row >= 0) & (logical < end) & (np.asarray(length) <= end - logical)
        return np.where(inside, row, -1)

    def places(self, logical: Array, length: Any) -> npt.NDArray[np.int64]:
        """Where each range lies, a column a copy; `NOWHERE` where there is none."""
        row = self.row_of(logical, length)
        if not len(self.start):
            return np.full((len(logical), 2), NOWHERE, np.int64)
        stripe = self.stripe[row]
        within = (logical - self.start[row])[:, None]
        good = (stripe != NOWHERE) & (row >= 0)[:, None]
        return np.where(good, stripe + within, NOWHERE)


def bootstrap(btrfs: Btrfs) -> Chunks:
    """The chunks that the superblock lists.  Raises InputError."""
    size = int(btrfs.superblock["sys_chunk_array_size"])
    area = btrfs.raw[on_disk.SYS_CHUNK_ARRAY :][:size]
    at, chunks = 0, []
    head = on_disk.KEY_BYTES + on_disk.CHUNK.itemsize
    while at < size:
        if at + head > size or area[at + 8] != on_disk.CHUNK_ITEM_KEY:
            raise btrfs.fault("the superblock's array of chunks is damaged")
        logical = int.from_bytes(area[at + 9 : at + 17], "little")
        many = int(structure(area[at + on_disk.KEY_BYTES :], on_disk.CHUNK)["num_stripes"])
        end = at + head + many * on_disk.STRIPE.itemsize
        if end > size:
            raise btrfs.fault("the superblock's array of chunks is damaged")
        chunks.append(parse_chunk(btrfs, logical, area[at + on_disk.KEY_BYTES : end]))
        at = end
    return Chunks.of(btrfs, chunks)


def parse_chunk(btrfs: Btrfs, logical: int, item: bytes) -> Chunk:
    """One chunk item, checked.  Raises InputError for a profile that needs several devices."""
    sector, device = btrfs.sectorsize, btrfs.size
    if len(item) < on_disk.CHUNK.itemsize:
        raise btrfs.fault(f"the chunk at {logical} is damaged")
    head = structure(item, on_disk.CHUNK)
    length, kind, many = (int(head[name]) for name in ("length", "type", "num_stripes"))
    if len(item) != on_disk.CHUNK.itemsize + many * on_disk.STRIPE.itemsize:
        raise btrfs.fault(f"the chunk at {logical} is damaged")
    stripes = np.frombuffer(item[on_disk.CHUNK.itemsize :], on_disk.STRIPE)
    _check_profile(btrfs, logical, kind, many)
    if any(int(devid) != btrfs.devid for devid in stripes["devid"]):
        raise btrfs.fault(
            f"the chunk at {logical} lies on a device that is not here",
            "only a file system on a single device is mapped",
        )
    places = tuple(int(place) for place in stripes["offset"])
    good = kind & 7 and kind < 1 << 62 and 0 < length <= device and logical < 1 << 62
    good = good and all(n % sector == 0 for n in (logical, length, *places))
    if not good or any(place + length > device for place in places):
        raise btrfs.fault(f"the chunk at {logical} is damaged")
    return logical, length, kind, places


def _check_profile(btrfs: Btrfs, logical: int, kind: int, stripes: int) -> None:
    profile = kind & sum(on_disk.PROFILES)
    # RAID0 over one device is what single is.
    expected = {0: 1, on_disk.CHUNK_DUP: 2, on_disk.CHUNK_RAID0: 1}.get(profile)
    if stripes == expected:
        return
    names = [name for bit, name in on_disk.PROFILES.items() if profile & bit] or ["single"]
    raise btrfs.fault(
        f"the chunk at {logical} is {' and '.join(names)} of {stripes} stripes",
        "single and DUP on one device are mapped",
    )
