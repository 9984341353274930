"""Content that does not lie on the disk as it is read: compressed files, targets of links."""

from __future__ import annotations

from collections.abc import Iterator

from cbtlab.errors import InputError
from cbtlab.files.extents import DATA, Extents
from cbtlab.files.ntfs import layout as on_disk
from cbtlab.files.ntfs.lznt1 import decompress
from cbtlab.files.ntfs.system import Ntfs
from cbtlab.files.volume_map import Chunk

_PIECE = 4 << 20
_LARGEST_UNIT = 1 << 27


def link_target(value: bytes) -> bytes | None:
    """Where a reparse point leads, in UTF-8: of a symlink, a junction or a symlink of WSL."""
    tag = int.from_bytes(value[:4], "little")
    if tag == on_disk.TAG_LX_SYMLINK:
        return value[12:]
    if tag not in (on_disk.TAG_SYMLINK, on_disk.TAG_JUNCTION):
        return None
    offset, length = (int.from_bytes(value[n : n + 2], "little") for n in (8, 10))
    start = (20 if tag == on_disk.TAG_SYMLINK else 16) + offset
    name = value[start : start + length]
    if len(name) != length or length % 2:
        return None
    return name.decode("utf-16-le", "surrogatepass").encode("utf-8", "surrogatepass")


def unpacked(
    ntfs: Ntfs, rows: Extents, unit: int, size: int, valid: int, what: str
) -> Iterator[Chunk]:
    """The content of a compressed stream: ``rows`` are its extents, ``unit`` bytes of a unit.

    Raises InputError for damage in the compressed bytes.
    """
    at, offset = 0, ntfs.volume.offset
    if not 0 < unit <= _LARGEST_UNIT:
        raise ntfs.fault(f"{what} has compression units of {unit} bytes")
    kinds, places = rows.kind.tolist(), rows.physical.tolist()
    logical, length, encoded = rows.logical.tolist(), rows.length.tolist(), rows.encoded.tolist()
    while at < len(kinds):
        start = logical[at]
        if start >= size:
            return
        if encoded[at]:
            packed, block = [], start // unit
            while at < len(kinds) and encoded[at] and logical[at] // unit == block:
                packed.append(ntfs.volume.read(places[at] - offset, length[at]))
                at += 1
            yield _unit(ntfs, b"".join(packed), block * unit, unit, min(size, valid), what)
            start = (block + 1) * unit
            if min(size, start) > valid and valid < start:
                low = max(valid, block * unit)
                if min(size, start) > low:
                    yield low, min(size, start) - low, None
            continue
        yield from _plain(ntfs, kinds[at], start, places[at] - offset, length[at], size, valid)
        at += 1


def _unit(ntfs: Ntfs, packed: bytes, start: int, unit: int, end: int, what: str) -> Chunk:
    count = max(min(unit, end - start), 0)
    try:
        return start, count, decompress(packed, count)
    except ValueError as error:
        raise ntfs.fault(f"{what}: its compressed data is damaged: {error}") from error


def _plain(
    ntfs: Ntfs, kind: int, start: int, place: int, length: int, size: int, valid: int
) -> Iterator[Chunk]:
    end = min(start + length, size)
    written = min(max(valid, start), end) if kind == DATA else start
    for at in range(start, written, _PIECE):
        count = min(_PIECE, written - at)
        yield at, count, ntfs.volume.read(place + at - start, count)
    if written < end:
        yield written, end - written, None


def refused(ntfs: Ntfs, what: str, why: str) -> InputError:
    """The error for content that cannot be read."""
    return ntfs.volume.fault(f"{what} {why}", "leave it to Windows to read it")
