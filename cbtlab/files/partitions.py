"""The volumes inside an image: partitions of an MBR or a GPT, and logical volumes of LVM in them.

Found, not asked for: each with where it begins, how large it is and what it holds, so that a
partitioned image can be refused with the offsets to use.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

from cbtlab.errors import InputError
from cbtlab.files import lvm
from cbtlab.files.signatures import peek, signature
from cbtlab.files.volume import Readable, Volume

_SECTOR = 512
_MOST = 1024  # partitions, and links of a chain of logical ones
_EXTENDED = (0x05, 0x0F, 0x85)
_PROTECTIVE = 0xEE
_NOTHING = "nothing that is known"


class Found(NamedTuple):
    """A volume: where it begins and how long it is, in bytes of the image, and what it holds.

    ``kind`` is the file system (``ext``, ``fat``, …) or, in words, what else is there;
    ``where`` names the partition or logical volume.  ``offset`` is None, and ``kind`` the reason,
    where the bytes of a volume do not lie in one piece of this image.
    """

    offset: int | None
    size: int
    kind: str
    where: str


def find_volumes(image: Readable, offset: int = 0) -> list[Found]:
    """Every partition of what begins at ``offset``, and every logical volume of LVM in it.

    None if it is not divided.  A partition that holds LVM comes before its logical volumes.
    """
    volume = Volume(image, offset)
    if lvm.is_there(volume):
        return list(_logical_volumes(volume, "this physical volume"))
    found: list[Found] = []
    for start, size, where in partitions(volume):
        part = Volume(image, offset + start)
        is_lvm = lvm.is_there(part)
        kind = "an LVM physical volume" if is_lvm else signature(part)
        found.append(Found(part.offset, size, kind or _NOTHING, where))
        if is_lvm:
            found += _logical_volumes(part, where)
    return found


def _logical_volumes(part: Volume, where: str) -> Iterator[Found]:
    try:
        logical = lvm.logical_volumes(part)
    except InputError as error:
        yield Found(None, part.size, f"LVM that cannot be read: {error.fault}", where)
        return
    for name, offset, size, reason in logical:
        label = f"logical volume {name} in {where}"
        if offset is None:
            yield Found(None, size, reason, label)
        elif part.offset + offset + size > part.image.size:
            yield Found(None, size, "it lies behind the end of this image", label)
        else:
            place = part.offset + offset
            kind = signature(Volume(part.image, place)) or _NOTHING
            yield Found(place, size, kind, label)


def told(found: list[Found]) -> str:
    """What to say of an image that holds these volumes: the offsets to use, and what each is."""
    places = [volume for volume in found if volume.offset is not None]
    usable = [volume for volume in places if "LVM" not in volume.kind] or places
    known = ", ".join(str(volume.offset) for volume in usable[:16])
    each = [
        f"{volume.where}{'' if volume.offset is None else f' at {volume.offset}'}, "
        f"{volume.size} bytes: {volume.kind}"
        for volume in found[:16]
    ]
    more = f"; and {len(found) - 16} more" if len(found) > 16 else ""
    advice = f"give one of the offsets {known} " if known else "none can be given by an offset "
    return f"{advice}({'; '.join(each)}{more})"


def partitions(volume: Volume) -> list[tuple[int, int, str]]:
    """The partitions of an MBR or GPT: start and size in bytes of the volume, and a name."""
    table = peek(volume, 0, _SECTOR)
    found: list[tuple[int, int, str]] = []
    if table[510:] == b"\x55\xaa":
        records = list(_records(table))
        if any(kind == _PROTECTIVE for _, kind, _, _ in records):
            found = list(_gpt(volume))
        found = found or list(_mbr(volume, records))
    return [
        (start, min(size, volume.size - start), where)
        for start, size, where in found[:_MOST]
        if 0 < start < volume.size
    ]


def _mbr(
    volume: Volume, records: list[tuple[int, int, int, int]]
) -> Iterator[tuple[int, int, str]]:
    for number, kind, start, size in records:
        if kind in _EXTENDED:
            for at, (begin, length) in enumerate(_logical(volume, start), start=5):
                yield begin, length, f"partition {at} of the MBR"
        else:
            yield start, size, f"partition {number} of the MBR"


def _records(table: bytes) -> Iterator[tuple[int, int, int, int]]:
    """Number, kind, start and size in bytes of the four records of a table."""
    for number, at in enumerate(range(446, 510, 16), start=1):
        status, kind = table[at], table[at + 4]
        start, length = struct.unpack_from("<II", table, at + 8)
        if kind and length and start and status in (0, 0x80):
            yield number, kind, start * _SECTOR, length * _SECTOR


def _logical(volume: Volume, extended: int) -> Iterator[tuple[int, int]]:
    """Logical partitions: a linked list of tables, followed as far as it goes forward."""
    at = extended
    for _ in range(_MOST):
        table = peek(volume, at, _SECTOR)
        if table[510:] != b"\x55\xaa":
            return
        after = None
        for _, kind, start, size in _records(table):
            if kind in _EXTENDED:
                after = extended + start
            else:
                yield at + start, size
        if after is None or after <= at:
            return
        at = after


def _gpt(volume: Volume) -> Iterator[tuple[int, int, str]]:
    """The partitions of the first GPT that is there: behind the MBR, or at the end."""
    for sector in (512, 4096):
        for place in (sector, volume.size // sector * sector - sector):
            header = peek(volume, place, 92)
            if header[:8] != b"EFI PART":
                continue
            table, count, size = struct.unpack_from("<QII", header, 72)
            if not 128 <= size <= 4096:
                continue
            for number in range(min(count, _MOST)):
                entry = peek(volume, table * sector + number * size, 128)
                start, last = struct.unpack_from("<QQ", entry, 32)
                if entry[:16].strip(b"\0") and last >= start:
                    yield start * sector, (last + 1 - start) * sector, _name(entry, number + 1)
            return


def _name(entry: bytes, number: int) -> str:
    label = entry[56:128].decode("utf-16-le", "replace").partition("\0")[0]
    label = "".join(letter for letter in label if letter.isprintable() and letter not in '";')
    return f"partition {number} of the GPT" + (f' "{label}"' if label else "")
