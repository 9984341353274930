"""What kind of place a byte of a volume lies in, and whose it is."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from cbtlab.files.extents import DATA, INLINE, META
from cbtlab.files.volume_map import FREE as FREE_OWNER
from cbtlab.files.volume_map import OUTSIDE as OUTSIDE_OWNER
from cbtlab.files.volume_map import TYPES, UNKNOWN, VolumeMap
from cbtlab.images import Image
from cbtlab.leftovers import table
from cbtlab.leftovers.find import finder
from cbtlab.leftovers.table import CLASSES, Ints, Leftovers

_BY_OWNER = {
    "<journal>": table.JOURNAL,
    "<log>": table.JOURNAL,
    "<log tree>": table.JOURNAL,
    "<$LogFile>": table.JOURNAL,
    "<$MFT>": table.RECORD,
    "<$MFTMirr>": table.RECORD,
    "<inode table>": table.INODES,
    "<boot area>": table.OUTSIDE,
    "<boot sector>": table.OUTSIDE,
    "<boot region>": table.OUTSIDE,
    "<reserved sectors>": table.OUTSIDE,
    "<behind the last cluster>": table.OUTSIDE,
}
_BEFORE, _BEHIND = "<before the file system>", "<behind the file system>"


class Places:
    """Places of the volume that ``volume`` maps and ``image`` shows; for any number of bytes."""

    def __init__(self, volume: VolumeMap, image: Image) -> None:
        self._volume = volume
        self._finder = finder(volume, image)
        self._leftovers = Leftovers.join(self._finder.find())
        found = volume.arrays
        found = found[np.isin(found.kind, (DATA, INLINE, META)) & (found.physical >= 0)]
        self._rows = found[np.argsort(found.physical, kind="stable")]

    def of(self, offsets: npt.ArrayLike) -> list[tuple[str, str]]:
        """The class and the owner of each byte, by its offset in the image."""
        place = np.atleast_1d(np.asarray(offsets)).astype(np.int64)
        owners = self._volume.owners(place)
        rests = self._leftovers.at(place)
        rows = self._row_of(place)
        found = []
        for at, owner, rest, row in zip(
            place.tolist(), owners.tolist(), rests.tolist(), rows.tolist(), strict=True
        ):
            found.append(self._one(at, str(owner), rest, row))
        return found

    def _one(self, at: int, owner: str, rest: int, row: int) -> tuple[str, str]:
        if owner == OUTSIDE_OWNER:
            return table.OUTSIDE, _BEFORE if at < self._volume.offset else _BEHIND
        record = self._finder.record(at)
        if record is not None:
            return record
        if rest >= 0:
            left = self._leftovers
            return CLASSES[left.kind[rest]], str(left.owner[rest])
        if owner in (FREE_OWNER, UNKNOWN):
            return table.FREE, owner
        if owner in _BY_OWNER:
            return _BY_OWNER[owner], owner
        if owner.startswith("<") or row < 0:
            return table.METADATA, owner
        return self._of_a_file(row), owner

    def _of_a_file(self, row: int) -> str:
        """The class of a byte that an extent of a file or folder holds, and no leftover."""
        kind, inode = int(self._rows.kind[row]), int(self._rows.inode[row])
        if kind == INLINE:
            return table.INLINE
        number = self._volume.inodes.index.to_numpy().astype(np.int64)
        at = int(np.searchsorted(number, inode))
        code = int(self._volume.inodes["type"].cat.codes.to_numpy()[at])
        folder = TYPES[code] == "directory" and not self._rows.stream[row]
        if kind == META and folder and not self._volume.fs.startswith("ext"):
            return table.ENTRY  # blocks of its index
        if kind == META:
            return table.ATTRIBUTES if self._volume.fs.startswith("ext") else table.METADATA
        return table.ENTRY if folder else table.KEPT

    def _row_of(self, place: Ints) -> Ints:
        """The last extent that begins before each byte, if it reaches it; or -1."""
        rows = self._rows
        if not len(rows):
            return np.full(len(place), -1, np.int64)
        at = np.searchsorted(rows.physical, place, side="right") - 1
        hit = (at >= 0) & (place < (rows.physical + rows.length)[np.maximum(at, 0)])
        return np.asarray(np.where(hit, at, -1), np.int64)
