"""Whether the log of XFS is clean: whether its last record says that it was unmounted.

The log is a ring of sectors.  Each begins with the number of the turn in which
it was written (the first sector of a record has its magic number there, and the
turn after it), so the head of the log is where the number falls by one.  A
sector that a crash left out of order lies near it: the kernel has at most
2 MiB under way (``XLOG_TOTAL_REC_SHIFT``).  Source: ``xfs_log_recover.c``.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from cbtlab.files.volume import structure
from cbtlab.files.xfs import layout as on_disk
from cbtlab.files.xfs.superblock import Xfs

_LEAST = 64  # sectors of a log, far below the least that mkfs.xfs makes
_UNDER_WAY = 4096  # sectors around the head that are looked at
_SECTOR = on_disk.SECTOR
_REMEDY = (
    "mount a copy once (with -o nouuid beside the original), so that the log is replayed; "
    "a volume that was frozen for its snapshot needs it, too"
)
Array = npt.NDArray[np.int64]


class Log:
    """The log of a file system, which must be on the volume itself; raises InputError.

    ``block`` is its first block from the start of the file system, ``count`` how many it has.
    """

    def __init__(self, xfs: Xfs) -> None:
        self._xfs, sb = xfs, xfs.superblock
        if not int(sb["log_start"]):
            raise xfs.fault(
                "has its log on another device, so nobody can say whether it is clean",
                "mount it with its log and map it there",
            )
        self.count = int(sb["log_blocks"])
        start = int(sb["log_start"])
        place, good = xfs.linear(np.array([min(start, 1 << 62)], np.int64), self.count)
        self._sectors = self.count * xfs.block_size // _SECTOR
        if not good[0] or self._sectors < _LEAST:
            raise xfs.fault("the superblock's place of the log is impossible")
        self.block = int(place[0])

    def must_be_clean(self) -> None:
        """Raise NotAtRest when the log has anything to replay."""
        fault = self._fault()
        if fault:
            raise self._xfs.volume.not_at_rest(
                f"its log {fault}, so its files cannot be mapped as they lie", _REMEDY
            )

    def _fault(self) -> str:
        first, last = int(self._turns(0, 1)[0]), int(self._turns(self._sectors - 1, 1)[0])
        if first == last == 0:
            self._xfs.notes.append("its log was never written to")
            return "" if not self._turns(0, min(self._sectors, _UNDER_WAY)).any() else "is torn"
        if last not in (first, first - 1):
            return "is torn"
        head = self._sectors if first == last else self._head(last)
        before = self._around(head - _UNDER_WAY, head, first, last, head)
        after = self._around(head, head + _UNDER_WAY, first, last, head)
        if not (before and after):
            return "was being written"
        return "" if self._is_unmounted(head) else "holds changes that were not replayed"

    def _head(self, last: int) -> int:
        """The first sector of the turn before; the first and the last sector differ."""
        low, high = 0, self._sectors - 1
        while high - low > 1:
            middle = (low + high) // 2
            if int(self._turns(middle, 1)[0]) == last:
                high = middle
            else:
                low = middle
        return high

    def _around(self, begin: int, end: int, first: int, last: int, head: int) -> bool:
        """Whether sectors, which may be counted beyond the ring's ends, have their turns."""
        where = np.arange(max(begin, 0), min(end, self._sectors))
        good = self._as_expected(where, first, last, head)
        if begin < 0:
            where = np.arange(max(self._sectors + begin, 0), self._sectors)
            good = good and self._as_expected(where, first, last, head)
        if end > self._sectors:
            where = np.arange(min(end - self._sectors, self._sectors))
            good = good and self._as_expected(where, first, last, head)
        return good

    def _as_expected(self, where: Array, first: int, last: int, head: int) -> bool:
        if not len(where):
            return True
        found = self._turns(int(where[0]), len(where))
        return bool((found == np.where(where < head, first, last)).all())

    def _is_unmounted(self, head: int) -> bool:
        """Whether the last record before the head is one of an unmount, and ends there."""
        most = min(self._sectors, 1 << 9)  # one such record has a few sectors
        for back in range(2, most + 1):
            at = (head - back) % self._sectors
            raw = self._read(at)
            if int.from_bytes(raw[:4], "big") != on_disk.RECORD_MAGIC:
                continue
            record = structure(raw, on_disk.RECORD)
            self._must_be_ours(bytes(record["uuid"].tobytes()))
            size = int(record["size"]) if int(record["version"]) & 2 else 0
            heads = max(1, -(-size // on_disk.RECORD_CYCLES))
            content = -(-int(record["length"]) // _SECTOR)
            if int(record["operations"]) != 1 or heads + content != back:
                return False
            operation = self._read((at + heads) % self._sectors)
            return bool(operation[on_disk.OPERATION_FLAGS] & on_disk.OPERATION_UNMOUNT)
        return False

    def _must_be_ours(self, uuid: bytes) -> None:
        if any(uuid) and uuid != self._xfs.superblock["uuid"].tobytes():
            raise self._xfs.fault("its log is another volume's")

    def _read(self, sector: int, count: int = 1) -> bytes:
        place = self.block * self._xfs.block_size + sector * _SECTOR
        return self._xfs.volume.read(place, count * _SECTOR)

    def _turns(self, sector: int, count: int) -> Array:
        """The number of the turn of each of ``count`` sectors."""
        rows = np.frombuffer(self._read(sector, count), ">u4").reshape(count, -1)[:, :2]
        found = np.where(rows[:, 0] == on_disk.RECORD_MAGIC, rows[:, 1], rows[:, 0])
        return np.asarray(found, np.int64)
