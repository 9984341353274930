"""Searches the files of a chain: what of link k no reader sees, and what earlier links keep."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from cbtlab.checks.areas import complement
from cbtlab.checks.content import Content
from cbtlab.checks.contents import excluded_inodes
from cbtlab.checks.hits import Searches, found_in, whole_windows
from cbtlab.checks.material import Material, link_name
from cbtlab.checks.pieces import LONGEST
from cbtlab.checks.sectors import Known
from cbtlab.checks.streams import Bools, Ints, table
from cbtlab.checks.verdict import count, item
from cbtlab.checks.windows import WIDTH
from cbtlab.files.ranges import Ranges
from cbtlab.images import Image, RawImage, RawLayer
from cbtlab.leftovers.table import EARLIER, IMAGE
from cbtlab.qcow2.reader import DATA, Qcow2Layer
from cbtlab.units import SECTOR

_CLUSTERS = 1 << 16  # looked up at once


def unseen(m: Material, content: Content, searches: Searches) -> list[dict[str, Any]]:
    """Return evidence for content in the image file of link k that no reader of it sees.

    What a reader sees is part of R_k.  The rest is the file's own tables, clusters that they
    do not name, and what follows the last one.
    """
    assert m.chain is not None
    path = m.chain / m.link_name
    with _layer(path) as image:
        seen = _seen(path)
        rest = complement(seen, image.size)
        wide = Ranges.union(
            np.maximum(rest.start - LONGEST, 0),
            np.minimum(rest.end + LONGEST, image.size) - np.maximum(rest.start - LONGEST, 0),
        )
        part = _Part(image, wide)
        sectors, pieces, windows, _ = found_in(part, searches, wide)
        windows, _ = whole_windows(m, part, content, windows)
    every = list(content.pieces)
    length = np.array([len(every[n]) for n in pieces.number.tolist()], np.int64)
    found = []
    for hits, many in ((sectors, SECTOR), (pieces, length), (windows, WIDTH)):
        new = ~_inside(seen, hits.offset, many)
        found.append((hits.offset[new], hits.number[new]))
    told = [(at, SECTOR, content.path_of(n), int(content.origin[n])) for at, n in _pairs(found[0])]
    for at, n in _pairs(found[1]):
        k, whose = content.pieces[every[n]]
        told.append((at, len(every[n]), whose, k))
    whole = {at // SECTOR * SECTOR for at, *_ in told}
    for at, n in _pairs(found[2]):
        k = int(content.windows.origin[n])
        whose = content.sources[k].path_at(int(content.windows.place[n]))
        if at // SECTOR * SECTOR not in whole:
            told.append((at, WIDTH, whose, k))
    return [
        item(
            **{"class": IMAGE},
            owner=m.link_name,
            link=m.link_name,
            length=length,
            note=f"content of {whose}, which backup {k} excludes, at byte {at} of the image file",
        )
        for at, length, whose, k in told
    ]


def earlier(m: Material, content: Content) -> list[dict[str, Any]]:
    """List the excluded files that earlier restore points kept, and note what this one keeps.

    Where their sectors lie in earlier links that this restore point is made of, that is told
    with each link: its reader does not see them, or they would have been found in R_k.
    """
    assert m.before is not None and m.exclusion is not None
    inodes = m.before.inodes
    files = inodes[inodes["type"] == "file"]
    born = files.set_index("crtime_ns", append=True).index
    out = files.index.isin(excluded_inodes(m))
    listed: dict[int, list[int]] = {}
    for k, kept in content.kept.items():
        for inode in files.index[out & born.isin(kept)].tolist():
            listed.setdefault(inode, []).append(k)
    content.kept[m.k] = born[~out]
    paths = {m.before.label(int(inode)): backups for inode, backups in listed.items()}
    there = _in_links(m, content, set(paths)) if paths else {}
    found = []
    for path, backups in paths.items():
        name = link_name(backups[-1])
        note = "kept until then by restore point " + ", ".join(map(str, backups))
        holding = [link for (whose, link) in there if whose == path]
        for link in holding or [name]:
            many = there.get((path, link), 0)
            here = f"{count(many, 'sector')} in {link}, which later links hide; " if many else ""
            found.append(
                item(
                    **{"class": EARLIER},
                    owner=link,
                    path=path,
                    link=link,
                    length=many * SECTOR or None,
                    note=here + note,
                )
            )
    return found


def _in_links(m: Material, content: Content, paths: set[str]) -> dict[tuple[str, str], int]:
    """How many sectors of these files lie in each earlier link that R_k is made of."""
    assert m.chain is not None and m.plan is not None
    source = content.sources[m.k]
    mine = (content.origin == m.k) & (content.place >= 0)
    row = np.searchsorted(source.start, content.place, side="right") - 1
    wanted = np.isin(source.path.astype(str), list(paths))
    chosen = np.flatnonzero(mine)
    chosen = chosen[wanted[row[chosen]]] if len(wanted) else chosen[:0]
    known = Known(content.keys[chosen], content.probe[chosen])
    found: dict[tuple[str, str], int] = {}
    k = m.plan.base
    while k is not None and k in m.plans:
        with _layer(m.chain / link_name(k)) as image:
            for _, data in image.chunks():
                if data is None:
                    continue
                _, key = known.find(table(np.frombuffer(data, np.uint8), SECTOR))
                for n in key.tolist():
                    pair = (content.path_of(int(chosen[n])), link_name(k))
                    found[pair] = found.get(pair, 0) + 1
        k = m.plans[k].base
    return found


class _Part(Image):
    """An image of which only some ranges show, and zeros elsewhere, so that little is read."""

    def __init__(self, image: Image, shown: Ranges) -> None:
        super().__init__(image.name, image.size)
        self._image, self._shown = image, shown

    def load(self, offset: int, length: int) -> Any:
        """The bytes of the image where they show; None where nothing does."""
        low, high = np.array([offset]), np.array([offset + length])
        _, start, end = self._shown.clipped(low, high)
        if not len(start):
            return None
        if int((end - start).sum()) == length:
            return self._image.load(offset, length)
        found = np.zeros(length, np.uint8)
        for begin, stop in zip(start.tolist(), end.tolist(), strict=True):
            data = self._image.load(begin, stop - begin)
            if data is not None:
                found[begin - offset : stop - offset] = data
        return found

    def close(self) -> None:
        """The image stays open."""


def _layer(path: Path) -> RawImage:
    return RawImage(RawLayer(os.open(path, os.O_RDONLY | os.O_CLOEXEC), str(path)))


def _seen(path: Path) -> Ranges:
    """Return the bytes of an image file that a reader of its disk sees as they lie."""
    layer = Qcow2Layer(os.open(path, os.O_RDONLY | os.O_CLOEXEC), str(path))
    hosts = [np.zeros(0, np.int64)]
    try:
        clusters = -(-layer.size // layer.cluster)
        for first in range(0, clusters, _CLUSTERS):
            many = min(_CLUSTERS, clusters - first)
            kinds, host = layer.locate(first * layer.cluster, many, layer.cluster)
            hosts.append(host[kinds == DATA])
    finally:
        layer.close()
    host = np.concatenate(hosts)
    return Ranges.union(host, np.full(len(host), layer.cluster, np.int64))


def _inside(ranges: Ranges, offset: Ints, length: Ints | int) -> Bools:
    """Return which spans lie whole in the ranges."""
    if not len(ranges.end):
        return np.zeros(len(offset), np.bool_)
    at = np.searchsorted(ranges.start, offset, side="right") - 1
    return np.asarray((at >= 0) & (offset + length <= ranges.end[np.maximum(at, 0)]))


def _pairs(hits: tuple[Ints, Ints]) -> list[tuple[int, int]]:
    return list(zip(hits[0].tolist(), hits[1].tolist(), strict=True))
