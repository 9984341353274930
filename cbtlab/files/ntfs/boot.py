"""The boot sector of NTFS: sizes of sectors, clusters, records and index blocks."""

from __future__ import annotations

from dataclasses import dataclass

from cbtlab.errors import InputError
from cbtlab.files.ntfs import layout as on_disk
from cbtlab.files.volume import Volume, structure

_LARGEST_CLUSTER = 2 << 20
REMEDY = "check a copy with ntfsfix -n or chkdsk"


@dataclass(frozen=True)
class Boot:
    """What the boot sector says, sizes in bytes; ``mft`` and ``mirror`` are clusters.

    ``sectors`` does not count the last sector of the partition, which holds a copy of this one.
    """

    sector: int
    cluster: int
    record: int
    index_block: int
    sectors: int
    mft: int
    mirror: int
    serial: int

    @property
    def clusters(self) -> int:
        """How many clusters are managed; a rest of sectors is not."""
        return self.sectors * self.sector // self.cluster

    @property
    def managed(self) -> int:
        """The bytes of all sectors, without the copy of the boot sector."""
        return self.sectors * self.sector


def fault(volume: Volume, words: str) -> InputError:
    """The error to raise for damage to an NTFS volume."""
    return volume.fault(words, REMEDY)


def read_boot(volume: Volume) -> Boot:
    """Read and check the boot sector.  Raises InputError."""
    raw = structure(volume.read(0, 512), on_disk.BOOT)
    sector = int(raw["bytes_per_sector"])
    if sector not in (256, 512, 1024, 2048, 4096):
        raise fault(volume, f"its boot sector has sectors of {sector} bytes")
    per_cluster = int(raw["sectors_per_cluster"])
    # Above 128 sectors, the byte is a negative power of two.
    per_cluster = per_cluster if per_cluster <= 128 else 1 << min(256 - per_cluster, 32)
    cluster = per_cluster * sector
    if per_cluster & (per_cluster - 1) or not 512 <= cluster <= _LARGEST_CLUSTER:
        raise fault(volume, f"its boot sector has clusters of {cluster} bytes")
    boot = Boot(
        sector=sector,
        cluster=cluster,
        record=_size(int(raw["record"]), cluster),
        index_block=_size(int(raw["index_block"]), cluster),
        sectors=int(raw["sectors"]),
        mft=int(raw["mft"]),
        mirror=int(raw["mirror"]),
        serial=int(raw["serial"]),
    )
    for name, size in (("records", boot.record), ("index blocks", boot.index_block)):
        if size & (size - 1) or not 512 <= size <= 1 << 16:
            raise fault(volume, f"its boot sector has {name} of {size} bytes")
    if boot.sectors <= 0 or boot.managed > volume.size:
        raise fault(
            volume, f"has {volume.size} bytes, its file system {boot.managed}: it was cut short"
        )
    if not 0 < boot.mft < boot.clusters or not 0 < boot.mirror < boot.clusters:
        raise fault(volume, "its boot sector has $MFT outside of the volume")
    return boot


def _size(stored: int, cluster: int) -> int:
    """A size as the boot sector has it: clusters, or a negative power of two in bytes."""
    return stored * cluster if stored > 0 else 1 << min(-stored, 31)
