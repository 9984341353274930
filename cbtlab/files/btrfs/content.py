"""The content of files with compressed extents, and the values of extended attributes."""

from __future__ import annotations

import zlib
from collections.abc import Iterator

import numpy as np
import zstandard

from cbtlab.files.btrfs import layout as on_disk
from cbtlab.files.btrfs import lzo
from cbtlab.files.btrfs.mapping import Mapping
from cbtlab.files.extents import Array
from cbtlab.files.names import text
from cbtlab.files.volume import structure
from cbtlab.files.volume_map import Chunk

_CHUNK = 4 << 20


def chunks(mapping: Mapping, inode: int, size: int) -> Iterator[Chunk]:
    """The content of a file up to its size, in order; see ``VolumeMap.file_chunks``."""
    low, high = np.searchsorted(mapping.rows["inode"], [inode, inode + 1]).tolist()
    reached = 0
    for row in range(low, high):
        start = int(mapping.rows["logical"][row])
        end = min(start + int(mapping.rows["num_bytes"][row]), size)
        if start >= end:
            continue
        if start > reached:
            yield reached, start - reached, None
        if mapping.unwritten[row]:
            yield start, end - start, None
        else:
            for at in range(start, end, _CHUNK):
                count = min(_CHUNK, end - at)
                yield at, count, _piece(mapping, row, at - start, count)
        reached = end
    if reached < size:
        yield reached, size - reached, None


def _piece(mapping: Mapping, row: int, skip: int, count: int) -> bytes:
    """Bytes of one file extent."""
    rows, volume = mapping.rows, mapping.btrfs.volume
    if mapping.inline[row]:
        place = int(rows["inline"][row])
    else:
        place = int(mapping.chunks.places(mapping.start[row : row + 1], 1)[0, 0])
    if not mapping.encoded[row]:
        return volume.read(place + skip, count)
    raw = volume.read(place, int(rows["disk_num_bytes"][row]))
    size, kind = int(rows["ram_bytes"][row]), int(rows["compression"][row])
    try:
        whole = _unpack(raw, size, kind, mapping.btrfs.sectorsize)
    except (zlib.error, zstandard.ZstdError, lzo.DamagedError) as error:
        raise mapping.btrfs.fault(
            f"inode {int(rows['inode'][row])}: a compressed extent is damaged: {error}"
        ) from error
    skip += int(rows["offset"][row])
    # What a compressed extent is short of, zeros stand for.
    return whole[skip : skip + count].ljust(count, b"\0")


def _unpack(raw: bytes, size: int, kind: int, sector: int) -> bytes:
    """What the bytes of a compressed extent stand for; those behind its end are no part of it."""
    if kind == on_disk.ZLIB:
        return zlib.decompressobj().decompress(raw, size)
    if kind == on_disk.LZO:
        return lzo.unpack(raw, size, sector)
    limit = 1 << 20  # the kernel takes windows of 128 KiB
    reader = zstandard.ZstdDecompressor(max_window_size=limit).stream_reader(raw)
    return bytes(reader.read(size))


def attributes(mapping: Mapping, table: Array, inode: int) -> dict[str, bytes]:
    """Extended attributes by full name; ``table`` has rows of inode, place and size, by inode."""
    low, high = np.searchsorted(table[:, 0], [inode, inode + 1]).tolist()
    found: dict[str, bytes] = {}
    head = on_disk.DIR_ITEM.itemsize
    for _, place, size in table[low:high].tolist():
        item, at = mapping.btrfs.volume.read(place, size), 0
        while at < size:
            if at + head > size:
                raise mapping.btrfs.fault(f"an attribute of inode {inode} is damaged")
            entry = structure(item[at:], on_disk.DIR_ITEM)
            middle = at + head + int(entry["name_len"])
            end = middle + int(entry["data_len"])
            if end > size:
                raise mapping.btrfs.fault(f"an attribute of inode {inode} is damaged")
            found.setdefault(text(item[at + head : middle]), item[middle:end])
            at = end
    return found
