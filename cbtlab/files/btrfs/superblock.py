"""The superblock of btrfs, its state and features, checked before anything is read by it."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import numpy as np

from cbtlab.errors import InputError
from cbtlab.files.btrfs import layout as on_disk
from cbtlab.files.btrfs.checksum import KINDS, right
from cbtlab.files.volume import Volume, structure

REMEDY = "check a copy with btrfs check --readonly"


class Btrfs:
    """One file system on one device.  Sizes are bytes; ``size`` is what the device gives it.

    ``notes`` collects what a reader should know.  Raises NotAtRest for a log that must be
    replayed or a change that was not ended, and InputError for damage, for features that are
    not known and for a file system on several devices.
    """

    def __init__(self, volume: Volume) -> None:
        self.volume = volume
        self.notes: list[str] = []
        self.raw = self._read()
        self.superblock: Any = structure(self.raw, on_disk.SUPERBLOCK)
        self._features()
        self._geometry()
        self._state()
        self._mirrors()

    def _read(self) -> bytes:
        place = on_disk.SUPERBLOCKS[0]
        if self.volume.size < place + on_disk.SUPERBLOCK_BYTES:
            raise self.fault("is too small for a superblock")
        raw = self.volume.read(place, on_disk.SUPERBLOCK_BYTES)
        sb = structure(raw, on_disk.SUPERBLOCK)
        if int(sb["csum_type"]) >= len(KINDS):
            raise self.fault(f"names an unknown kind of checksum, {int(sb['csum_type'])}")
        if not _valid(raw, place, int(sb["csum_type"])):
            raise self.fault(
                "the superblock's checksum or place is wrong",
                "put a good mirror back on a copy with btrfs rescue super-recover",
            )
        return raw

    def _features(self) -> None:
        sb = self.superblock
        self.incompat, self.compat_ro = int(sb["incompat"]), int(sb["compat_ro"])
        self.csum_type = int(sb["csum_type"])
        unknown = [
            on_disk.INCOMPAT_NAMES.get(1 << bit, f"0x{1 << bit:x}")
            for bit in range(64)
            if (self.incompat & ~on_disk.INCOMPAT_KNOWN) >> bit & 1
        ]
        # What is only to be read may be unknown to a reader, but not to one who counts what is
        # allocated.
        rest = self.compat_ro & ~on_disk.COMPAT_RO_KNOWN
        unknown += [f"compat_ro 0x{rest:x}"] if rest else []
        if unknown:
            raise self.fault(
                f"has features that are not supported: {', '.join(unknown)}",
                "there is no way to map it",
            )
        if int(sb["num_devices"]) != 1:
            raise self.fault(
                f"lies on {int(sb['num_devices'])} devices", "only one on a single device is mapped"
            )
        flags = int(sb["flags"])
        for flag, what in on_disk.SUPER_REFUSED.items():
            if flags & flag:
                raise self.fault(what, "there is no way to map it")

    def _geometry(self) -> None:
        sb = self.superblock
        self.sectorsize, self.nodesize = int(sb["sectorsize"]), int(sb["nodesize"])
        self.devid, self.size = int(sb["devid"]), int(sb["device_bytes"])
        self.generation = int(sb["generation"])
        checks = {
            "sector size": self.sectorsize in (4096, 8192, 16384, 32768, 65536),
            "node size": self.sectorsize <= self.nodesize <= 65536
            and self.nodesize.bit_count() == 1,
            "device size": self.size >= on_disk.RESERVED and self.size < 1 << 62,
            "array of chunks": int(sb["sys_chunk_array_size"]) <= on_disk.SYS_CHUNK_ARRAY_BYTES,
        }
        for what, good in checks.items():
            if not good:
                raise self.fault(f"the superblock's {what} is impossible")
        self.size -= self.size % self.sectorsize
        if self.size > self.volume.size:
            raise self.fault(
                f"the file system has {self.size} bytes and only {self.volume.size} are here",
                "bring the whole volume; this one was cut short",
            )
        other = self.incompat & on_disk.INCOMPAT_METADATA_UUID
        self.fsid: bytes = sb["metadata_uuid" if other else "fsid"].tobytes()

    def _state(self) -> None:
        sb, flags = self.superblock, int(self.superblock["flags"])
        if int(sb["log_root"]):
            raise self.volume.not_at_rest(
                "its log tree waits for a replay, so its files cannot be mapped as they lie",
                "mount a copy once, for writing, to replay the log",
            )
        if flags & on_disk.SUPER_CHANGING:
            raise self.volume.not_at_rest(
                "a change of the whole file system by btrfstune was not ended",
                "run btrfstune on a copy again, to end it",
            )
        if flags & on_disk.SUPER_ERROR:
            self.notes.append("the file system recorded errors")

    def _mirrors(self) -> None:
        for place in self.mirrors:
            raw = self.volume.read(place, on_disk.SUPERBLOCK_BYTES)
            sb = structure(raw, on_disk.SUPERBLOCK)
            if not _valid(raw, place, self.csum_type):
                self.notes.append(f"the superblock's mirror at {place} is damaged")
            elif sb["fsid"].tobytes() != self.superblock["fsid"].tobytes():
                self.notes.append(f"the superblock's mirror at {place} is of another file system")
            elif int(sb["generation"]) != self.generation:
                # A power cut between the writes of the two; a mount goes by the first.
                which = "newer" if int(sb["generation"]) > self.generation else "older"
                self.notes.append(
                    f"the superblock's mirror at {place} is {which} than it, which is what counts"
                )

    @property
    def mirrors(self) -> list[int]:
        """Where the superblock's mirrors lie, as many as the device has room for."""
        return [at for at in on_disk.SUPERBLOCKS[1:] if at + on_disk.SUPERBLOCK_BYTES < self.size]

    @property
    def uuid(self) -> str:
        """The file system's UUID in its usual writing."""
        return str(UUID(bytes=self.superblock["fsid"].tobytes()))

    def fault(self, fault: str, remedy: str = REMEDY) -> InputError:
        """The error to raise for something wrong with this file system."""
        return self.volume.fault(fault, remedy)


def _valid(raw: bytes, place: int, kind: int) -> bool:
    sb = structure(raw, on_disk.SUPERBLOCK)
    rows = np.frombuffer(raw, np.uint8)[None]
    return (
        sb["magic"].tobytes() == on_disk.MAGIC
        and int(sb["bytenr"]) == place
        and bool(right(rows, kind)[0])
    )
