"""A small writer of exFAT for the tests: files in chosen clusters, on a volume of mkfs.exfat.

It knows as much as a test needs to say what no driver would write.  ``fsck.exfat -n`` holds it
to the format.
"""

from __future__ import annotations

import struct
from pathlib import Path

import fat_images as fat

from cbtlab.files import VolumeMap, map_volume


class Exfat:
    """A volume in memory, ``data``; files go into the root folder or into one of its folders."""

    def __init__(self, path: Path, size: int = 8 * fat.MIB, *options: str) -> None:
        fat.make(path, size, *options, program="mkfs.exfat")
        self.path, self.data = path, bytearray(path.read_bytes())
        fields = struct.unpack_from("<IIIII", self.data, 80)
        shift, more = self.data[108], self.data[109]
        self.sector, self.cluster = 1 << shift, 1 << shift + more
        self.fat, self.heap = fields[0] * self.sector, fields[2] * self.sector
        self.clusters, self.root = fields[3], fields[4]
        self.bitmap = self.at(2)
        self.folders = {"/": [self.root]}
        self.used = {"/": self._records("/")}

    def at(self, cluster: int) -> int:
        return self.heap + (cluster - 2) * self.cluster

    def _records(self, folder: str) -> int:
        data = b"".join(
            self.data[self.at(c) : self.at(c) + self.cluster] for c in self.folders[folder]
        )
        return next(at for at in range(0, len(data), 32) if data[at] == 0)

    def link(self, cluster: int, value: int) -> None:
        struct.pack_into("<I", self.data, self.fat + 4 * cluster, value)

    def mark(self, clusters: list[int], used: bool = True) -> None:
        for cluster in clusters:
            byte, bit = divmod(cluster - 2, 8)
            if used:
                self.data[self.bitmap + byte] |= 1 << bit
            else:
                self.data[self.bitmap + byte] &= ~(1 << bit)

    def chain(self, clusters: list[int]) -> None:
        for one, after in zip(clusters, [*clusters[1:], 0xFFFFFFFF], strict=False):
            self.link(one, after)

    def place(self, offset: int, folder: str = "/") -> int:
        """Where a byte of a folder's records lies."""
        number, within = divmod(offset, self.cluster)
        return self.at(self.folders[folder][number]) + within

    def add(
        self,
        name: str,
        content: bytes = b"",
        clusters: list[int] | None = None,
        *,
        folder: str = "/",
        whole: bool = False,
        valid: int | None = None,
        size: int | None = None,
        attributes: int = 0x20,
        more: bytes = b"",
        flags: int | None = None,
    ) -> int:
        """Write a file and return the place of its first record.

        ``whole``: its clusters need no chain.  ``more`` are further secondary records.
        """
        clusters = clusters or []
        units = name.encode("utf-16-le")
        length = len(units) // 2
        names = [units[at : at + 30].ljust(30, b"\0") for at in range(0, len(units), 30)]
        size = len(content) if size is None else size
        stream = struct.pack(
            "<BBxBHxxQxxxxIQ",
            0xC0,
            (3 if whole else 1) if flags is None else flags,
            length,
            name_hash(name),
            size if valid is None else valid,
            clusters[0] if clusters else 0,
            size,
        )
        rest = stream + b"".join(b"\xc1\0" + part for part in names) + more
        first = struct.pack("<BBHHxxIIIBBBBB7x", 0x85, len(rest) // 32, 0, attributes,
                            STAMP, STAMP, STAMP, 50, 0, 0x80, 0x80, 0x80 | 4)  # fmt: skip
        record = bytearray(first + rest)
        struct.pack_into("<H", record, 2, set_checksum(record))
        start = self.used[folder]
        for at in range(0, len(record), 32):
            place = self.place(start + at, folder)
            self.data[place : place + 32] = record[at : at + 32]
        self.used[folder] += len(record)
        for number, cluster in enumerate(clusters):
            part = content[number * self.cluster : (number + 1) * self.cluster]
            self.data[self.at(cluster) : self.at(cluster) + len(part)] = part
        self.mark(clusters)
        if not whole:
            self.chain(clusters)
        return self.place(start, folder)

    def make_folder(self, name: str, clusters: list[int], whole: bool = False) -> int:
        """Make a folder in the root folder."""
        self.folders[f"/{name}"], self.used[f"/{name}"] = clusters, 0
        empty = bytes(len(clusters) * self.cluster)
        return self.add(name, empty, clusters, whole=whole, attributes=0x10)

    def extend_root(self, clusters: list[int]) -> None:
        """Give the root folder more clusters."""
        self.folders["/"] += clusters
        self.chain(self.folders["/"])
        self.mark(clusters)

    def seal(self) -> None:
        """Write the checksums of both boot regions."""
        for start in (0, 12 * self.sector):
            total = 0
            for at in range(11 * self.sector):
                if at not in (106, 107, 112):
                    total = ((total >> 1 | total << 31) + self.data[start + at]) & 0xFFFFFFFF
            words = struct.pack("<I", total) * (self.sector // 4)
            self.data[start + 11 * self.sector : start + 12 * self.sector] = words

    def check(self) -> None:
        """fsck.exfat finds nothing wrong."""
        self.path.write_bytes(self.data)
        text = fat.run("fsck.exfat", "-n", self.path)
        assert "clean" in text, text

    def mapped(self) -> VolumeMap:
        return map_volume(fat.Memory(self.data))


STAMP = (2024 - 1980) << 25 | 2 << 21 | 29 << 16 | 12 << 11 | 34 << 5 | 28


def set_checksum(record: bytes | bytearray) -> int:
    total = 0
    for at, byte in enumerate(record):
        if at not in (2, 3):
            total = ((total >> 1 | total << 15) + byte) & 0xFFFF
    return total


def name_hash(name: str) -> int:
    """The hash of a name whose letters have capitals of one unit."""
    total = 0
    for byte in name.upper().encode("utf-16-le"):
        total = ((total >> 1 | total << 15) + byte) & 0xFFFF
    return total
