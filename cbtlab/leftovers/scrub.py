"""Overwrites the leftovers of a volume that may be, in a view of its image.

The image itself is not written.  What is changed is told as patches, which make the view of
any image of the same content again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cbtlab.bitmap import Bitmap
from cbtlab.errors import InputError
from cbtlab.files.ranges import Ranges
from cbtlab.files.volume_map import VolumeMap
from cbtlab.images import CHUNK, Image
from cbtlab.leftovers.find import finder
from cbtlab.leftovers.table import CLASSES, METADATA, Leftovers

Bytes = npt.NDArray[np.uint8]
MOST = 100_000  # patches of a link: the manifest that holds them is read whole


@dataclass(frozen=True)
class Patch:
    """``length`` bytes at ``offset``: of the value ``fill``, or ``data`` where that is given."""

    offset: int
    length: int
    kind: str
    owner: str
    fill: int = 0
    data: bytes = b""

    @property
    def end(self) -> int:
        """The first byte behind it."""
        return self.offset + self.length

    def document(self) -> dict[str, Any]:
        """The patch as JSON: its bytes as ``fill``, or in hexadecimal as ``data``."""
        written = {"data": self.data.hex()} if self.data else {"fill": self.fill}
        place = {"offset": self.offset, "length": self.length}
        return {**place, "class": self.kind, "owner": self.owner, **written}

    @classmethod
    def of(cls, document: dict[str, Any]) -> Patch:
        """The patch of a `document`, which was checked."""
        return cls(
            document["offset"],
            document["length"],
            document["class"],
            document["owner"],
            document.get("fill", 0),
            bytes.fromhex(document.get("data", "")),
        )


@dataclass(frozen=True)
class Patches:
    """Patches that rise and do not overlap."""

    items: tuple[Patch, ...] = ()

    @classmethod
    def read(cls, documents: Any) -> Patches:
        """The patches of a list of documents."""
        return cls(tuple(Patch.of(document) for document in documents))

    def documents(self) -> tuple[dict[str, Any], ...]:
        """All of them as JSON."""
        return tuple(patch.document() for patch in self.items)

    def touched(self, volume_size: int, unit: int) -> Bitmap:
        """The units with a patch in them."""
        return _units([(p.offset, p.length) for p in self.items], volume_size, unit)

    def changed(self, other: Patches, volume_size: int, unit: int) -> Bitmap:
        """The units in which the two would write other bytes, or elsewhere.

        Exact for images that are equal there: a patch of one and its equal in the other cancel
        each other out, and so do parts of fills.
        """
        mine, theirs = set(self.items) - set(other.items), set(other.items) - set(self.items)
        ranges = []
        for fill in {patch.fill for patch in mine | theirs if not patch.data}:
            parts = [[p for p in side if not p.data and p.fill == fill] for side in (mine, theirs)]
            ranges += _one_sided(*parts)
        ranges += [(p.offset, p.length) for p in mine | theirs if p.data]
        return _units(ranges, volume_size, unit)


def _units(ranges: list[tuple[int, int]], volume_size: int, unit: int) -> Bitmap:
    offset, length = zip(*ranges, strict=True) if ranges else ((), ())
    return Bitmap.from_ranges(
        np.array(offset, np.int64),
        np.array(length, np.int64),
        volume_size=volume_size,
        granularity=unit,
    )


def _one_sided(mine: list[Patch], theirs: list[Patch]) -> list[tuple[int, int]]:
    """What one of two lists of ranges covers and the other does not; offset and length."""
    edges: dict[int, int] = {}
    for sign, side in ((1, mine), (2, theirs)):
        for patch in side:
            edges[patch.offset] = edges.get(patch.offset, 0) ^ sign
            edges[patch.end] = edges.get(patch.end, 0) ^ sign
    found, state, last = [], 0, 0
    for at in sorted(edges):
        if state in (1, 2):
            found.append((last, at - last))
        state ^= edges[at]
        last = at
    return found


class Scrubbed(Image):
    """An image with patches over it; closing it leaves the image open."""

    def __init__(self, image: Image, patches: Patches) -> None:
        super().__init__(image.name, image.size)
        self._image, self._patches = image, patches.items
        self._start = np.array([patch.offset for patch in patches.items], np.int64)
        self._end = np.array([patch.end for patch in patches.items], np.int64)

    def load(self, offset: int, length: int) -> Bytes | None:
        """The bytes of the image, with what of the patches lies in them."""
        found = self._image.load(offset, length)
        first = int(np.searchsorted(self._end, offset, side="right"))
        last = int(np.searchsorted(self._start, offset + length, side="left"))
        for patch in self._patches[first:last]:
            if found is None:
                if not patch.data and not patch.fill:
                    continue
                found = np.zeros(length, np.uint8)
            low, high = max(patch.offset, offset), min(patch.end, offset + length)
            if patch.data:
                piece = patch.data[low - patch.offset : high - patch.offset]
                found[low - offset : high - offset] = np.frombuffer(piece, np.uint8)
            else:
                found[low - offset : high - offset] = patch.fill
        return found

    def close(self) -> None:
        """There is nothing of its own to close."""


def scrub(volume: VolumeMap, image: Image, held: Bitmap | None = None) -> Patches:
    """The patches that overwrite every leftover of ``volume`` that may be.

    ``image`` is what ``volume`` maps.  What lies outside of ``held`` is left alone, for it is
    not stored.  A leftover that already is what it would become has no patch.
    """
    source = finder(volume, image)
    found = Leftovers.join(source.find())
    found = _needed(found[found.removable], image, held)
    if len(found) > MOST:
        raise InputError(
            image.name,
            f"has {len(found)} places to overwrite, more than {MOST}",
            "back it up without --scrub",
        )
    patches = [
        Patch(low, high - low, CLASSES[kind], str(owner), fill)
        for low, high, kind, owner, fill in zip(
            found.start.tolist(),
            found.end.tolist(),
            found.kind.tolist(),
            found.owner.tolist(),
            found.fill.tolist(),
            strict=True,
        )
    ]
    first = _rising(patches)
    mends = source.mend(Scrubbed(image, first), found)
    patches += [Patch(at, len(data), METADATA, owner, data=data) for at, data, owner in mends]
    return _rising(patches)


def _rising(patches: list[Patch]) -> Patches:
    return Patches(tuple(sorted(patches, key=lambda patch: patch.offset)))


def _needed(found: Leftovers, image: Image, held: Bitmap | None) -> Leftovers:
    """What of leftovers is held and not yet of the fill's value, cut to what is not."""
    if held is not None:
        found = _cut(found, held)
    start, end = found.start.copy(), found.end.copy()
    keep = np.zeros(len(found), np.bool_)
    for offset in range(0, image.size, CHUNK):
        length = min(CHUNK, image.size - offset)
        first = int(np.searchsorted(found.end, offset, side="right"))
        last = int(np.searchsorted(found.start, offset + length, side="left"))
        if first >= last:
            continue
        data = image.load(offset, length)
        for n in range(first, last):
            low, high = max(int(found.start[n]), offset), min(int(found.end[n]), offset + length)
            fill = found.fill[n]
            if data is None:
                odd = np.zeros(0, np.int64) if not fill else np.array([0, high - low - 1])
            else:
                odd = np.flatnonzero(data[low - offset : high - offset] != fill)
            if len(odd):
                start[n] = low + int(odd[0]) if not keep[n] else start[n]
                end[n] = low + int(odd[-1]) + 1
                keep[n] = True
    parts = Leftovers(start, end, found.kind, found.owner, found.removable, found.fill)
    return parts[keep]


def _cut(found: Leftovers, held: Bitmap) -> Leftovers:
    """The parts of leftovers that a mask holds."""
    offset, length = (column.astype(np.int64) for column in held.extents())
    which, start, end = Ranges(offset, offset + length).clipped(found.start, found.end)
    part = found[which]
    return Leftovers(start, end, part.kind, part.owner, part.removable, part.fill)
