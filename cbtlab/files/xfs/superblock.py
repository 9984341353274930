"""The superblock of XFS and the headers of its allocation groups, checked before use.

The map of what is in use is made from them, so what is damaged, or has a feature
that is not known here, is refused.  Whether the log is clean is asked in ``log.py``.
"""

from __future__ import annotations

from typing import Any
from uuid import UUID

import numpy as np
import numpy.typing as npt

from cbtlab.errors import InputError
from cbtlab.files.volume import Volume, structure
from cbtlab.files.xfs import layout as on_disk
from cbtlab.files.xfs.checksum import right

Array = npt.NDArray[np.int64]
Bytes = npt.NDArray[np.uint8]

REPAIR = "check a copy with xfs_repair -n"
_LEAST_GROUP = 64  # blocks, as the kernel's XFS_MIN_AG_BLOCKS
_LEAST_BYTES = 16 << 20  # of all groups but the last, as the kernel's XFS_AG_MIN_BYTES
_MOST_GROUPS = 1 << 18  # 4 TiB in groups of the least size; mkfs.xfs makes far larger ones


class Xfs:
    """The geometry of one file system.

    A place on the disk is named in three ways: by the number of a block within its allocation
    group; by the group's number above it (as stored in files, see `linear`); and by the
    block's number from the start of the file system, which is what this package goes on with.
    Sizes are bytes, ``blocks`` and ``ag_blocks`` counts; ``agf`` and ``agi`` have one row a
    group.  ``notes`` collects what a reader should know.  Raises InputError.
    """

    def __init__(self, volume: Volume) -> None:
        self.volume = volume
        self.notes: list[str] = []
        first = volume.read(0, on_disk.SECTOR)
        self.superblock: Any = structure(first, on_disk.SUPERBLOCK)
        self._checksum()
        self._features()
        self._geometry()
        self._claimed = np.zeros(self.blocks // 8 + 1, np.uint8)

    def fault(self, fault: str, remedy: str = REPAIR) -> InputError:
        """The error for something wrong with this file system."""
        return self.volume.fault(fault, remedy)

    # The superblock -------------------------------------------------------------------------

    def _checksum(self) -> None:
        sb = self.superblock
        self.sector_size = int(sb["sector_size"])
        number = int(sb["version"]) & on_disk.VERSION_NUMBER
        if number not in (4, 5):
            raise self.fault(f"is of version {number} of XFS", "versions 4 and 5 can be mapped")
        self.has_checksums = number == 5
        if self.sector_size not in (1 << n for n in range(9, 16)):
            raise self.fault("the superblock's sector size is impossible")
        if self.has_checksums:
            raw = np.frombuffer(self.volume.read(0, self.sector_size), np.uint8)
            if not right(raw[None], on_disk.SUPERBLOCK_CHECKSUM)[0]:
                raise self.fault("the superblock's checksum is wrong")

    def _features(self) -> None:
        sb = self.superblock
        version, more = int(sb["version"]), int(sb["features2"]) | int(sb["bad_features2"])
        if not version & on_disk.VERSION_MORE:
            more = 0
        needed = on_disk.VERSION_EXTENT_FLAG | on_disk.VERSION_FOLDERS_2
        unknown = [f"0x{bit:x}" for bit in _bits(version & ~on_disk.VERSION_KNOWN)]
        unknown += [f"features2 0x{bit:x}" for bit in _bits(more & ~on_disk.FEATURES2_KNOWN)]
        incompat, ro = (
            int(sb[name]) if self.has_checksums else 0 for name in ("incompat", "ro_compat")
        )
        names = on_disk.INCOMPAT_NAMES
        missing = _bits(incompat & ~on_disk.INCOMPAT_KNOWN)
        unknown += [names.get(bit, f"incompat 0x{bit:x}") for bit in missing]
        unknown += [f"ro_compat 0x{bit:x}" for bit in _bits(ro & ~on_disk.RO_KNOWN)]
        if unknown:
            raise self.fault(
                f"has features that are not supported: {', '.join(unknown)}",
                "mount it and map it there",
            )
        if version & needed != needed:
            raise self.fault("is of a form of version 4 that no kernel mounts")
        if int(sb["in_progress"]):
            raise self.fault("mkfs.xfs did not finish it", "make it anew")
        if incompat & on_disk.INCOMPAT_NEEDS_REPAIR:
            raise self.volume.not_at_rest(
                "is marked as in need of repair, so its files cannot be mapped as they lie",
                "run xfs_repair on a copy",
            )
        if int(sb["realtime_blocks"]):
            raise self.fault(
                "has a realtime device, so some of its files lie elsewhere",
                "only what has no realtime device can be mapped",
            )
        self.has_ftype = bool(incompat & on_disk.INCOMPAT_FTYPE or more & on_disk.FEATURES2_FTYPE)
        self.has_wide_projects = self.has_checksums or bool(more & on_disk.FEATURES2_PROJECT_32)
        self.has_sparse_inodes = bool(incompat & on_disk.INCOMPAT_SPARSE_INODES)
        self.ro_compat, self.has_quota = ro, bool(version & on_disk.VERSION_QUOTA)
        own = sb["meta_uuid"] if incompat & on_disk.INCOMPAT_META_UUID else sb["uuid"]
        self.block_uuid = own.tobytes()  # what every block tells of its file system
        self.uuid = str(UUID(bytes=sb["uuid"].tobytes()))

    def _geometry(self) -> None:
        sb = self.superblock
        self.block_size, self.inode_size = int(sb["block_size"]), int(sb["inode_size"])
        self.blocks, self.ag_blocks = int(sb["data_blocks"]), int(sb["ag_blocks"])
        self.ag_count, self.ag_log = int(sb["ag_count"]), int(sb["ag_block_log"])
        self.inode_log = int(sb["inodes_per_block_log"])
        self.root = int(sb["root_inode"])
        self.core = on_disk.INODE_CORE if self.has_checksums else on_disk.INODE_CORE_4
        least = 512 if self.has_checksums else 256
        checks = {
            "block size": _is_log(self.block_size, int(sb["block_log"]), 9, 16)
            and self.block_size >= self.sector_size,
            "sector size": _is_log(self.sector_size, int(sb["sector_log"]) or 9, 9, 15),
            "inode size": _is_log(self.inode_size, int(sb["inode_log"]), 8, 11)
            and least <= self.inode_size <= self.block_size,
            "number of inodes a block": int(sb["inodes_per_block"]) == 1 << self.inode_log
            and self.inode_size << self.inode_log == self.block_size,
            "number of allocation groups": 0 < self.ag_count <= _MOST_GROUPS,
            "size of allocation groups": self.ag_blocks >= _LEAST_GROUP
            and self.ag_log == (self.ag_blocks - 1).bit_length()
            and self.ag_blocks * self.block_size >= _LEAST_BYTES,
            "size of folder blocks": self.block_size << min(int(sb["folder_block_log"]), 32)
            <= 1 << 16,
        }
        for what, good in checks.items():
            if not good:
                raise self.fault(f"the superblock's {what} is impossible")
        self.folder_block = self.block_size << int(sb["folder_block_log"])
        self.head_blocks = -(-4 * self.sector_size // self.block_size)  # of each group
        self.size = self.blocks * self.block_size
        if self.size > self.volume.size:
            raise self.fault(
                f"the file system has {self.size} bytes and only {self.volume.size} are here",
                "bring the whole volume; this one was cut short",
            )
        last = self.blocks - (self.ag_count - 1) * self.ag_blocks
        if not _LEAST_GROUP <= last <= self.ag_blocks:
            raise self.fault("the superblock's number of blocks is impossible")
        self.ag_length = np.full(self.ag_count, self.ag_blocks, np.int64)
        self.ag_length[-1] = last

    # Places ---------------------------------------------------------------------------------

    def linear(self, stored: Array, count: Array | int = 1) -> tuple[Array, npt.NDArray[np.bool_]]:
        """Block numbers as files store them, from the start; and whether they are possible.

        Possible are ``count`` blocks within one allocation group.
        """
        group, block = stored >> self.ag_log, stored & (1 << self.ag_log) - 1
        return self.in_group(group, block, count)

    def in_group(
        self, group: Array, block: Array, count: Array | int = 1
    ) -> tuple[Array, npt.NDArray[np.bool_]]:
        """`linear` for a group's number and a block's number within it."""
        good = (group >= 0) & (group < self.ag_count) & (block >= 0)
        group = np.where(good, group, 0)
        good &= block + count <= self.ag_length[group]
        return np.where(good, group * self.ag_blocks + block, 0), good

    def inode_places(self, number: Array) -> Array:
        """Where inodes lie, in bytes from the start."""
        return np.asarray(self.inode_blocks(number) * self.block_size + self._slot(number))

    def inode_blocks(self, number: Array) -> Array:
        """The blocks that inodes lie in."""
        group = number >> self.ag_log + self.inode_log
        block = number >> self.inode_log & (1 << self.ag_log) - 1
        return np.asarray(group * self.ag_blocks + block)

    def _slot(self, number: Array) -> Array:
        return np.asarray((number & (1 << self.inode_log) - 1) * self.inode_size)

    def claim(self, blocks: Array) -> npt.NDArray[np.bool_]:
        """Which of these blocks are met for the first time, as nodes of a tree or a list."""
        first = np.zeros(len(blocks), np.bool_)
        first[np.unique(blocks, return_index=True)[1]] = True
        bit = np.left_shift(1, blocks & 7).astype(np.uint8)
        first &= self._claimed[blocks >> 3] & bit == 0
        np.bitwise_or.at(self._claimed, blocks[first] >> 3, bit[first])
        return first

    # Allocation groups ----------------------------------------------------------------------

    def read_groups(self) -> None:
        """Read and check the headers of all groups: ``agf``, ``agi``, and ``free_lists``."""
        self.agf = self._headers(1, b"XAGF", on_disk.AGF, "AGF")
        self.agi = self._headers(2, b"XAGI", on_disk.AGI, "AGI")
        self.free_lists = self._free_lists()

    def _headers(self, sector: int, magic: bytes, kind: np.dtype[Any], name: str) -> Any:
        rows = self._sectors(sector)
        found = structure(rows, kind)
        good = (found["magic"] == magic) & (found["version"] == 1)
        good &= (found["number"] == np.arange(self.ag_count)) & (found["length"] == self.ag_length)
        self._must(good, f"the {name} of allocation group {{}} is damaged")
        if self.has_checksums:
            self.must_be_ours(rows, found, kind, name)
        return found

    def must_be_ours(self, rows: Bytes, found: Any, kind: np.dtype[Any], name: str) -> None:
        """Check the checksums and the UUID in a header of each group."""
        at = kind.fields["checksum"][1]  # type: ignore[index]
        self._must(right(rows, at), f"the {name} of allocation group {{}} has a wrong checksum")
        self._must(self.is_ours(found), f"the {name} of allocation group {{}} is another volume's")

    def is_ours(self, found: Any) -> npt.NDArray[np.bool_]:
        """Whether structures of version 5 tell this file system's UUID."""
        raw = np.ascontiguousarray(found["uuid"]).view(np.uint8).reshape(len(found), 16)
        return np.asarray((raw == np.frombuffer(self.block_uuid, np.uint8)).all(axis=1), np.bool_)

    def _must(self, good: npt.NDArray[np.bool_], fault: str) -> None:
        if not good.all():
            raise self.fault(fault.format(int(np.flatnonzero(~good)[0])))

    def _sectors(self, sector: int) -> Bytes:
        """One sector of every group."""
        each = self.ag_blocks * (self.block_size // self.sector_size)
        return self.volume.blocks(
            np.arange(self.ag_count, dtype=np.int64) * each + sector, self.sector_size
        )

    def _free_lists(self) -> Array:
        """The blocks that are set apart for the groups' own trees (AGFL), from the start."""
        rows = self._sectors(3)
        head = on_disk.AGFL.itemsize if self.has_checksums else 0
        if self.has_checksums:
            found = structure(rows, on_disk.AGFL)
            good = (found["magic"] == b"XAFL") & (found["number"] == np.arange(self.ag_count))
            self._must(good, "the AGFL of allocation group {} is damaged")
            self.must_be_ours(rows, found, on_disk.AGFL, "AGFL")
        listed = np.ascontiguousarray(rows[:, head:]).view(">u4").astype(np.int64)
        room = listed.shape[1]
        first, last, count = (
            self.agf[name].astype(np.int64) for name in ("list_first", "list_last", "list_count")
        )
        good = (first < room) & (last < room) & (count <= room)
        good &= (count == 0) | ((last - first) % room + 1 == count)
        self._must(good, "the free list of allocation group {} is damaged")
        slot = np.arange(room)
        group, at = np.nonzero((slot - first[:, None]) % room < count[:, None])
        blocks, inside = self.in_group(group, listed[group, at])
        if not (inside.all() and self.claim(blocks).all()):
            raise self.fault("a free list of an allocation group names a wrong block")
        return blocks


def _bits(value: int) -> list[int]:
    return [1 << bit for bit in range(value.bit_length()) if value >> bit & 1]


def _is_log(size: int, log: int, least: int, most: int) -> bool:
    return least <= log <= most and size == 1 << log
