"""The superblock and the group descriptors of ext2, ext3 and ext4, checked before use.

What a snapshot hands over must be at rest: a journal that was not replayed is
refused, as are features that this reader does not know and structures whose
checksum is wrong, because the map of what is in use is made from them.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any
from uuid import UUID

import numpy as np
import numpy.typing as npt

from cbtlab.files.checksum import crc16, crc32c
from cbtlab.files.ext import layout as on_disk
from cbtlab.files.volume import Volume, structure

Blocks = npt.NDArray[np.int64]


class Ext:
    """The geometry of one file system.  Blocks count from the start of the file system.

    ``block_size`` and ``inode_size`` are bytes, ``blocks`` and ``groups`` counts, ``cluster``
    the blocks that are allocated together (1 without bigalloc);
    ``block_bitmap``, ``inode_bitmap`` and ``inode_table`` have one block number a
    group.  ``notes`` collects what a reader should know.  Raises InputError.
    """

    def __init__(self, volume: Volume) -> None:
        self.volume = volume
        volume.remedy = "check a copy with e2fsck -fn"
        self.notes: list[str] = []
        raw = volume.read(on_disk.SUPERBLOCK_OFFSET, on_disk.SUPERBLOCK_BYTES)
        self.superblock: Any = structure(raw, on_disk.SUPERBLOCK)
        self._features(raw)
        self._geometry()
        self._read_groups()

    # The superblock -------------------------------------------------------------------------

    def _features(self, raw: bytes) -> None:
        sb = self.superblock
        revised = int(sb["rev_level"]) >= 1
        self.compat, self.incompat, self.ro_compat = (
            int(sb[name]) if revised else 0 for name in ("compat", "incompat", "ro_compat")
        )
        unknown = self.incompat & ~on_disk.INCOMPAT_KNOWN
        if self.has_checksums:
            if int(sb["checksum_type"]) != 1:
                raise self._fault("the superblock names an unknown kind of checksum")
            rows = np.frombuffer(raw, np.uint8)[None, :-4]
            if int(crc32c(rows)[0]) != int(sb["checksum"]):
                raise self._fault("the superblock's checksum is wrong")
        if unknown:
            names = [
                on_disk.INCOMPAT_NAMES.get(1 << bit, f"0x{1 << bit:x}")
                for bit in range(32)
                if unknown >> bit & 1
            ]
            raise self._fault(
                f"has features that are not supported: {', '.join(names)}",
                "mount it and map it there",
            )
        if self.incompat & on_disk.INCOMPAT_RECOVER:
            raise self.volume.not_at_rest(
                "its journal needs recovery, so its files cannot be mapped as they lie",
                "mount a copy once, or run e2fsck on one, to replay the journal",
            )
        self._state()

    def _state(self) -> None:
        sb = self.superblock
        state = int(sb["state"])
        if not state & on_disk.STATE_CLEAN:
            self.notes.append("not marked clean: mounted without a journal, or never unmounted")
        if state & on_disk.STATE_ERRORS:
            self.notes.append("the file system recorded errors")
        if self.has_orphans:
            self.notes.append("orphan inodes wait for the next mount to free them")

    def _geometry(self) -> None:
        sb, wide = self.superblock, bool(self.incompat & on_disk.INCOMPAT_64BIT)
        if int(sb["log_block_size"]) > 6:
            raise self._fault(f"has blocks of 2^{10 + int(sb['log_block_size'])} bytes")
        self.block_size = 1024 << int(sb["log_block_size"])
        self.blocks = int(sb["blocks_lo"]) | (int(sb["blocks_hi"]) << 32 if wide else 0)
        self.first_block = int(sb["first_data_block"])
        self.blocks_per_group = int(sb["blocks_per_group"])
        self.inodes_per_group = int(sb["inodes_per_group"])
        revised = int(sb["rev_level"]) >= 1
        self.inode_size = int(sb["inode_size"]) if revised else 128
        self.first_inode = int(sb["first_ino"]) if revised else 11
        self.descriptor_size = int(sb["desc_size"]) if wide else 32
        clusters = bool(self.ro_compat & on_disk.RO_BIGALLOC)
        log_cluster = int(sb["log_cluster_size"]) - int(sb["log_block_size"]) if clusters else 0
        self.cluster = 1 << log_cluster if 0 <= log_cluster <= 16 else 0
        most = 8 * self.block_size
        checks = {
            "cluster size": self.cluster > 0
            and (
                not clusters
                or int(sb["clusters_per_group"]) * self.cluster == self.blocks_per_group
            ),
            "first data block": self.first_block == (self.block_size == 1024 and not clusters),
            "number of blocks": self.blocks > self.first_block,
            "blocks per group": 8 * self.cluster <= self.blocks_per_group <= most * self.cluster
            and self.blocks_per_group % (8 * self.cluster) == 0,
            "inodes per group": 8 <= self.inodes_per_group <= most
            and self.inodes_per_group % 8 == 0,
            "inode size": 128 <= self.inode_size <= self.block_size
            and self.inode_size.bit_count() == 1,
            "descriptor size": self.descriptor_size in (32, 64, 128, 256, 512, 1024)
            and (self.descriptor_size >= 64 or not wide),
        }
        for what, good in checks.items():
            if not good:
                raise self._fault(f"the superblock's {what} is impossible")
        self.size = self.blocks * self.block_size
        if self.size > self.volume.size:
            raise self._fault(
                f"the file system has {self.size} bytes and only {self.volume.size} are here",
                "bring the whole volume; this one was cut short",
            )
        self.groups = -(-(self.blocks - self.first_block) // self.blocks_per_group)
        self.inodes = self.groups * self.inodes_per_group
        if int(sb["inodes_count"]) != self.inodes:
            raise self._fault("the superblock's number of inodes is impossible")

    @property
    def has_orphans(self) -> bool:
        """Whether inodes without a name wait for the next mount to free them."""
        present = self.ro_compat & on_disk.RO_ORPHAN_PRESENT
        return bool(int(self.superblock["last_orphan"]) or present)

    @property
    def has_checksums(self) -> bool:
        """Whether metadata carries CRC-32C checksums (``metadata_csum``)."""
        return bool(self.ro_compat & on_disk.RO_METADATA_CSUM)

    @cached_property
    def checksum_seed(self) -> int:
        """The start value of every checksum but the superblock's."""
        if self.incompat & on_disk.INCOMPAT_CSUM_SEED:
            return int(self.superblock["checksum_seed"])
        uuid = np.frombuffer(self.superblock["uuid"].tobytes(), np.uint8)
        return int(crc32c(uuid[None])[0])

    @property
    def uuid(self) -> str:
        """The file system's UUID in its usual writing."""
        return str(UUID(bytes=self.superblock["uuid"].tobytes()))

    @property
    def kind(self) -> str:
        """``ext2``, ``ext3`` or ``ext4``, told by the features as blkid does."""
        if self.incompat & ~0x0016 or self.ro_compat & ~0x0007:
            return "ext4"
        return "ext3" if self.compat & 0x0004 else "ext2"

    # The groups -----------------------------------------------------------------------------

    def group_start(self, group: Any) -> Any:
        """The block of a superblock at the start of a group, or of an array of them.

        As the kernel's ``descriptor_loc``: with blocks of 1 KiB that count from 0 (bigalloc),
        block 0 is the boot area, and the superblock of group 0 is block 1.
        """
        boot = self.block_size == 1024 and self.first_block == 0
        return self.first_block + group * self.blocks_per_group + boot * (group == 0)

    @cached_property
    def has_superblock(self) -> npt.NDArray[np.bool_]:
        """For each group, whether it holds a copy of the superblock."""
        has = np.zeros(self.groups, np.bool_)
        if self.compat & on_disk.COMPAT_SPARSE_SUPER2:
            copies = [0, *self.superblock["backup_groups"].tolist()]
        elif self.ro_compat & on_disk.RO_SPARSE_SUPER:
            powers = [base**n for base in (3, 5, 7) for n in range(24)]
            copies = [0, 1, *powers]
        else:
            copies = list(range(self.groups))
        has[[group for group in copies if group < self.groups]] = True
        return has

    def descriptor_blocks(self) -> tuple[Blocks, Blocks, Blocks]:
        """Where group descriptors lie: the primary blocks, in order; and all of them, with the
        blocks reserved for more, as first block and count of a range each.
        """
        per_block = self.block_size // self.descriptor_size
        count = -(-self.groups // per_block)
        meta = bool(self.incompat & on_disk.INCOMPAT_META_BG)
        old = min(int(self.superblock["first_meta_bg"]), count) if meta else count
        reserved = 0 if meta else int(self.superblock["reserved_gdt"])
        primary = self.group_start(0) + 1 + np.arange(old, dtype=np.int64)
        group = np.arange(self.groups, dtype=np.int64)
        holders = group[self.has_superblock]
        if meta:
            holders = holders[holders < max(old * per_block, 1)]
        starts = [self.group_start(holders) + 1]
        counts = [np.full(len(holders), old + reserved, np.int64)]
        if meta and old < count:
            first = np.arange(old, count, dtype=np.int64) * per_block
            for member in (first, first + 1, first + per_block - 1):
                member = member[member < self.groups]
                place = self.group_start(member) + self.has_superblock[member]
                starts.append(place)
                counts.append(np.ones(len(member), np.int64))
            place = self.group_start(first) + self.has_superblock[first]
            primary = np.concatenate((primary, place))
        return primary, np.concatenate(starts), np.concatenate(counts)

    def _read_groups(self) -> None:
        primary, _, _ = self.descriptor_blocks()
        if len(primary) and (int(primary.max()) >= self.blocks):
            raise self._fault("its group descriptors lie outside of it")
        rows = self.volume.blocks(primary, self.block_size)
        raw = rows.reshape(-1, self.descriptor_size)[: self.groups]
        self._check_descriptors(raw)
        padded = np.zeros((self.groups, on_disk.GROUP.itemsize), np.uint8)
        width = min(self.descriptor_size, on_disk.GROUP.itemsize)
        padded[:, :width] = raw[:, :width]
        self.descriptors: Any = structure(padded, on_disk.GROUP)
        self.block_bitmap = self._place("block_bitmap", 1)
        self.inode_bitmap = self._place("inode_bitmap", 1)
        self.table_blocks = -(-self.inodes_per_group * self.inode_size // self.block_size)
        self.inode_table = self._place("inode_table", self.table_blocks)
        tracked = self.has_checksums or self.ro_compat & on_disk.RO_GDT_CSUM
        flags = self.descriptors["flags"] if tracked else np.zeros(self.groups, np.uint16)
        self.blocks_uninit = (flags & on_disk.GROUP_BLOCK_UNINIT) != 0
        self.inodes_uninit = (flags & on_disk.GROUP_INODE_UNINIT) != 0

    def _place(self, field: str, length: int) -> Blocks:
        low = self.descriptors[field].astype(np.int64)
        place = low | (self.descriptors[f"{field}_hi"].astype(np.int64) << 32)
        bad = (place < self.first_block) | (place + length > self.blocks)
        if bad.any():
            group = int(np.flatnonzero(bad)[0])
            raise self._fault(f"the {field.replace('_', ' ')} of group {group} lies outside of it")
        return np.asarray(place, np.int64)

    def _check_descriptors(self, raw: npt.NDArray[np.uint8]) -> None:
        number = np.arange(self.groups, dtype="<u4").view(np.uint8).reshape(-1, 4)
        at = on_disk.GROUP.fields["checksum"][1]  # type: ignore[index]
        stored = np.ascontiguousarray(raw[:, at : at + 2]).view("<u2")[:, 0]
        found: npt.NDArray[Any]
        if self.has_checksums:
            blank = raw.copy()
            blank[:, at : at + 2] = 0
            found = np.bitwise_and(crc32c(np.hstack((number, blank)), self.checksum_seed), 0xFFFF)
        elif self.ro_compat & on_disk.RO_GDT_CSUM:
            uuid = np.frombuffer(self.superblock["uuid"].tobytes(), np.uint8)
            start = int(crc16(uuid[None])[0])
            found = crc16(np.hstack((number, raw[:, :at], raw[:, at + 2 :])), start)
        else:
            return
        bad = np.flatnonzero(found != stored)
        if len(bad):
            raise self._fault(f"the descriptor of group {int(bad[0])} has a wrong checksum")

    def bitmaps(self, place: Blocks, bits: int, field: str, skip: Any) -> npt.NDArray[np.uint8]:
        """The bitmaps of all groups, ``bits`` bits of each, as rows of bytes.

        Rows of groups in the mask ``skip`` were never written, and are zero.  Raises
        InputError where a checksum is wrong.
        """
        wanted = np.flatnonzero(~skip)
        rows = np.zeros((self.groups, bits // 8), np.uint8)
        rows[wanted] = self.volume.blocks(place[wanted], self.block_size)[:, : bits // 8]
        if self.has_checksums:
            found = crc32c(rows[wanted], self.checksum_seed)
            stored = self.descriptors[f"{field}_csum"][wanted].astype(np.uint32)
            if self.descriptor_size >= 64:
                stored |= self.descriptors[f"{field}_csum_hi"][wanted].astype(np.uint32) << 16
            else:
                found &= 0xFFFF
            bad = wanted[found != stored]
            if len(bad):
                name = field.replace("_", " ")
                raise self._fault(f"the {name} of group {int(bad[0])} has a wrong checksum")
        return rows

    def _fault(self, fault: str, remedy: str | None = None) -> Exception:
        return self.volume.fault(fault) if remedy is None else self.volume.fault(fault, remedy)
