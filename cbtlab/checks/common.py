"""Which of the content that was found kept files have too: it is no excluded file's alone."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from cbtlab.checks.areas import chunks_and_areas
from cbtlab.checks.content import Content, attributes
from cbtlab.checks.hits import Hits
from cbtlab.checks.material import Material
from cbtlab.checks.needles import Needles
from cbtlab.checks.streams import Ints
from cbtlab.files.ranges import Ranges
from cbtlab.units import SECTOR

COMPARED = 1000  # sectors that kept files are searched for, and that are compared byte by byte
_PIECE = 256 << 10  # bytes at once: what was found in one is not looked for in the next
_TRIED = 4  # places of a piece in a chunk of kept files that are compared with S_k


class Common:
    """Which of what was found kept files have too, at any byte: numbers of each kind."""

    def __init__(
        self,
        m: Material,
        kept: Ranges,
        content: Content,
        sectors: Hits,
        pieces: Hits,
        windows: dict[int, bytes],
    ) -> None:
        assert m.restored is not None
        self.sectors, self.pieces, self.windows = (np.zeros(0, np.int64) for _ in range(3))
        every = list(content.pieces)
        one, place = np.unique(sectors.number, return_index=True)
        one, place = one[:COMPARED], sectors.offset[place[:COMPARED]]
        whole = [m.restored.read(at, SECTOR) for at in place.tolist()]
        two, three = np.unique(pieces.number), np.array(sorted(windows), np.int64)
        looked = [*whole, *(every[n] for n in two.tolist()), *(windows[n] for n in three.tolist())]
        if not looked:
            return
        shared = _in_kept(m, kept, looked)
        beside = _beside_content(m)
        shared |= {n for n in range(len(one), len(looked)) if looked[n] in beside}
        found = np.array(sorted(shared), np.int64)
        first, second = len(one), len(one) + len(two)
        self.sectors = one[found[found < first]]
        self.pieces = two[found[(found >= first) & (found < second)] - first]
        self.windows = three[found[found >= second] - second]


def _in_kept(m: Material, kept: Ranges, pieces: list[bytes]) -> set[int]:
    """Return the numbers of the pieces that kept files have at any byte, in R_k and on S_k."""
    assert m.restored is not None
    needles = Needles.of(pieces, int(kept.length.sum()))
    known = np.zeros(len(pieces), np.bool_)
    overlap = needles.rows.shape[1] - 1
    for _, _, area in chunks_and_areas(m.restored, kept, overlap, _PIECE):
        if area is None or known.all():
            continue
        at, number = needles.places(area.flat, known)
        place, good = area.placed(at, needles.length[number])
        for n, offset in _first_few(number[good], place[good]):
            known[n] |= m.mapped_image.read(offset, len(pieces[n])) == pieces[n]
    return set(np.flatnonzero(known).tolist())


def _first_few(number: Ints, place: Ints) -> Iterator[tuple[int, int]]:
    """Yield some places of each number: R_k is nearly always as S_k, and then one would do."""
    order = np.argsort(number, kind="stable")
    number, place = number[order], place[order]
    first = np.searchsorted(number, number, side="left")
    some = np.arange(len(number)) - first < _TRIED
    yield from zip(number[some].tolist(), place[some].tolist(), strict=True)


def _beside_content(m: Material) -> bytes:
    """Return what S_k keeps beside the content of files: names, and attributes of kept inodes."""
    assert m.before is not None and m.exclusion is not None
    names = m.before.names
    leaves = {bytes(raw).rpartition(b"/")[2] for raw in names["raw"]}
    kept = names.loc[~names["path"].isin(m.exclusion.files["path"]), "inode"].unique()
    values = {value for inode in kept.tolist() for value in attributes(m, int(inode))}
    return b"\0".join([*leaves, *values])
