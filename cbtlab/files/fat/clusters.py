"""A volume of clusters, as FAT and exFAT have it: what is in use, and whose each cluster is."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cbtlab.bitmap import Bitmap
from cbtlab.files.extents import DATA, UNWRITTEN, Array, Extents
from cbtlab.files.in_use import over_image
from cbtlab.files.ranges import Ranges
from cbtlab.files.volume import Volume
from cbtlab.files.volume_map import Regions

Mask = npt.NDArray[np.bool_]  # one value a cluster; the first two stand for nothing
Named = tuple[int, int, str]


@dataclass(frozen=True)
class Heap:
    """``clusters`` of ``cluster_size`` bytes from byte ``heap`` of a file system of ``size``.

    Clusters count from 2.
    """

    volume: Volume
    heap: int
    cluster_size: int
    clusters: int
    size: int

    def offset(self, cluster: Array) -> Array:
        """Where clusters lie, in bytes from the volume's start."""
        return self.heap + (cluster - 2) * self.cluster_size

    def cover(self, start: Array, length: Array) -> Mask:
        """The clusters of any of the ranges."""
        joined = Ranges.union(start, length)
        steps = np.zeros(self.clusters + 3, np.int8)
        steps[joined.start] += 1
        steps[joined.end] -= 1
        return np.cumsum(steps[:-1], dtype=np.int8).view(np.bool_)

    def ranges(self, mask: Mask) -> tuple[Array, Array]:
        """Where the marked clusters lie in bytes of the volume: starts and ends."""
        edges = np.flatnonzero(np.diff(np.concatenate(([False], mask, [False])).view(np.int8)))
        return self.offset(edges[::2]), self.offset(edges[1::2])

    def in_use(self, mask: Mask) -> Bitmap:
        """The marked clusters and all that is not a cluster, over the whole image.

        The granularity is the cluster's size, or the largest power of two at whose multiples the
        clusters lie.
        """
        granularity = min(self.cluster_size, self.heap & -self.heap)
        start, end = self.ranges(mask)
        behind = self.heap + self.clusters * self.cluster_size
        start, end = np.append(start, [0, behind]), np.append(end, [self.heap, self.size])
        bits = Bitmap.from_ranges(
            start, end - start, volume_size=self.size, granularity=granularity
        ).bits
        return over_image(self.volume, bits, self.size, granularity)

    def regions(self, fixed: list[Named], masks: list[tuple[Mask, str]]) -> Regions:
        """Structures at fixed places, as (start, end, name), and clusters of one name each."""
        behind = self.heap + self.clusters * self.cluster_size
        fixed = [*fixed, (behind, self.size, "<behind the last cluster>")]
        fixed = [part for part in fixed if part[0] < part[1]]
        start = [np.array([part[0] for part in fixed], np.int64)]
        end = [np.array([part[1] for part in fixed], np.int64)]
        name = [np.array([part[2] for part in fixed], object)]
        for mask, label in masks:
            first, last = self.ranges(mask)
            start.append(first)
            end.append(last)
            name.append(np.full(len(first), label, object))
        begin = np.concatenate(start)
        order = np.argsort(begin, kind="stable")
        offset = self.volume.offset
        stop, label_ = np.concatenate(end), np.concatenate(name)
        return Regions(begin[order] + offset, stop[order] + offset, label_[order])

    def extents(self, inode: Array, logical: Array, start: Array, length: Array) -> Extents:
        """Runs of clusters as extents in bytes of the image."""
        size = self.cluster_size
        place = self.offset(start) + self.volume.offset
        return Extents.of(inode, DATA, logical * size, place, length * size)


def written(extents: Extents, limit: Array) -> Extents:
    """Cut extents at ``limit``, one a row in bytes; what lies behind it is unwritten."""
    inside = np.clip(limit - extents.logical, 0, extents.length)
    first = extents[inside > 0]
    first = Extents.of(
        first.inode, DATA, first.logical, first.physical, inside[inside > 0], first.stream
    )
    rest = inside < extents.length
    more, skip = extents[rest], inside[rest]
    behind = Extents.of(
        more.inode, UNWRITTEN, more.logical + skip, more.physical + skip, more.length - skip
    )
    return Extents.join([first, behind])


def readable(
    heap: Heap, allocated: Mask, start: Array, length: Array, kept: Array
) -> tuple[Mask, int]:
    """What of ``allocated`` reading can return; and how many clusters another owner takes back.

    Of each run of clusters only the first ``kept`` are readable; what one owner has readable
    stays in use, whoever else holds it.
    """
    used = allocated & ~heap.cover(start + kept, length - kept)
    mine = heap.cover(start, kept)
    shared = int((mine & ~used).sum())
    return used | mine, shared
