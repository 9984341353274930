"""Looks for short pieces of bytes in an image, at every byte or in some ranges of it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from cbtlab.checks.areas import chunks_and_areas
from cbtlab.checks.needles import Needles
from cbtlab.files.ranges import Ranges
from cbtlab.images import Image

SHORTEST, LONGEST = 16, 64  # bytes: less is no evidence, more tells no more


def repeats(piece: bytes) -> bool:
    """Return whether a piece is one pattern over and over."""
    return any(piece[n:] == piece[:-n] for n in range(1, len(piece) // 2 + 1))


class Search:
    """Prepared to look for ``pieces``, each of 5 bytes or more."""

    def __init__(self, pieces: list[bytes]) -> None:
        self.pieces = pieces
        self._needles = Needles.of(pieces)

    def find(self, image: Image, wanted: Ranges | None = None) -> Iterator[tuple[int, int]]:
        """Yield (offset, number of the piece) for every occurrence, chunk by chunk.

        Only what lies whole in one of the ``wanted`` ranges, where they are given.
        """
        if not self.pieces:
            return
        if wanted is None:
            wanted = Ranges(np.array([0]), np.array([image.size]))
        longest = int(self._needles.length.max())
        for _, _, area in chunks_and_areas(image, wanted, longest - 1):
            if area is None:
                continue
            at, number = self._needles.places(area.flat)
            place, good = area.placed(at, self._needles.length[number])
            yield from zip(place[good].tolist(), number[good].tolist(), strict=True)
