"""What an NTFS volume has in use, and whose the sectors behind its last cluster are."""

from __future__ import annotations

import numpy as np
from bitarray import bitarray

from cbtlab.files.extents import PLACED, RESERVED, UNWRITTEN, Array, Extents
from cbtlab.files.ntfs import layout as on_disk
from cbtlab.files.ntfs.system import Ntfs
from cbtlab.files.ranges import Ranges
from cbtlab.files.volume_map import Regions


def in_use(ntfs: Ntfs, found: Extents, whole: Array, size: int) -> bitarray:
    """`A_k` over the clusters: what $Bitmap has, less what was never written.

    Of the inodes in ``whole`` (damaged, or the file system's own) everything counts as in use.
    Behind the clusters come bits for a rest of sectors and the copy of the boot sector, up to
    ``size`` bytes.
    """
    cluster, clusters = ntfs.cluster, ntfs.boot.clusters
    value = ntfs.find(on_disk.BITMAP_FILE, on_disk.DATA)
    if value is None or value.size * 8 < clusters:
        raise ntfs.fault("$Bitmap is missing or too short")
    bits = bitarray(endian="little")
    bits.frombytes(value.read(0, -(-clusters // 8)))
    del bits[clusters:]
    placed = found[np.isin(found.kind, PLACED)]
    kept = np.isin(placed.inode, whole)
    idle = (placed.kind == RESERVED) | ((placed.kind == UNWRITTEN) & ~kept)
    start = (placed.physical - ntfs.volume.offset) // cluster
    length = -(-placed.length // cluster)
    everything = bits.copy()
    mapped = Ranges.union(start, length)
    for low, high in mapped.pairs():
        everything[low:high] = True
    unknown = everything.count() - bits.count()
    lost = everything.count() - int(mapped.length.sum())
    if unknown:
        ntfs.notes.append(f"{unknown} clusters of files are free in $Bitmap")
    if lost:
        ntfs.notes.append(f"{lost} clusters in use belong to no file")
    del everything
    for low, high in Ranges.union(start[idle], length[idle]).pairs():
        bits[low:high] = False
    before = bits.count()
    for low, high in Ranges.union(start[~idle], length[~idle]).pairs():
        bits[low:high] = True
    shared = bits.count() - before - unknown
    if shared > 0:
        ntfs.notes.append(f"{shared} clusters in use are not readable for another owner")
    bits.extend([True] * (-(-size // cluster) - clusters))
    return bits


def regions(ntfs: Ntfs, size: int) -> Regions:
    """What lies behind the last cluster: clusters themselves belong to files."""
    end, managed, offset = ntfs.boot.clusters * ntfs.cluster, ntfs.boot.managed, ntfs.volume.offset
    parts = [(end, managed, "<behind the last cluster>"), (managed, size, "<backup boot sector>")]
    parts = [part for part in parts if part[0] < part[1]]
    return Regions(
        np.array([part[0] for part in parts], np.int64) + offset,
        np.array([part[1] for part in parts], np.int64) + offset,
        np.array([part[2] for part in parts], object),
    )
