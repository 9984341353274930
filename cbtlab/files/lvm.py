"""LVM physical volumes: the logical volumes that lie in one piece of this image.

The text of the metadata is read as it stands; LVM itself is not asked.  Source: the man pages
``lvm`` and ``pvck``, and the files that ``vgcfgbackup`` writes.
"""

from __future__ import annotations

import re
import struct
import zlib
from typing import Any

from cbtlab.files.volume import Volume

_SECTOR = 512
_LABEL, _TYPE = b"LABELONE", b"LVM2 001"
_MAGIC = b" LVM2 x[5A%r0N*>"
_HEADER = 512  # of a metadata area; the text runs round behind it
_LARGEST_TEXT = 4 << 20
_CHECKSUM_START = 0xF597A6CF
_DEEPEST = 16
_TOKEN = re.compile(
    r'\s+|#[^\n]*|(?P<text>"(?:[^"\\]|\\.)*")|(?P<number>-?\d+)'
    r"|(?P<name>[A-Za-z0-9_.+/-]+)|(?P<mark>[{}=\[\],])",
)
Logical = tuple[str, "int | None", int, str]


def is_there(volume: Volume) -> bool:
    """Whether an LVM physical volume begins here: a label in one of its first four sectors."""
    return _label(volume) is not None


def _label(volume: Volume) -> bytes | None:
    for number in range(4):
        if (number + 1) * _SECTOR <= volume.size:
            sector = volume.read(number * _SECTOR, _SECTOR)
            if sector[:8] == _LABEL and sector[24:32] == _TYPE:
                return sector
    return None


def logical_volumes(volume: Volume) -> list[Logical]:
    """Name, offset in bytes from the start of the physical volume, size, and reason of each.

    The offset is None, with a reason, for those that do not lie in one piece here.  Raises
    InputError for metadata that cannot be read.
    """
    sector = _label(volume)
    if sector is None:
        raise volume.fault("holds no label of LVM", "")
    uuid, areas = _header(volume, sector)
    for offset, size in areas:
        text = _text(volume, offset, size)
        if text:
            break
    else:
        raise volume.fault("its LVM metadata lie on another physical volume", "")
    groups = [(n, v) for n, v in _parse(volume, text).items() if isinstance(v, dict)]
    if len(groups) != 1:
        raise volume.fault("its LVM metadata name no volume group", "")
    name, group = groups[0]
    try:
        return _logical(name, group, uuid)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError):
        raise volume.fault("its LVM metadata are damaged", "") from None


def _header(volume: Volume, sector: bytes) -> tuple[str, list[tuple[int, int]]]:
    """The physical volume's UUID, and its metadata areas as offset and size."""
    checksum, at = struct.unpack_from("<II", sector, 16)
    if checksum != _checksum(sector[20:]) or not 32 <= at <= _SECTOR - 40:
        raise volume.fault("its LVM label is damaged", "")
    uuid = sector[at : at + 32].decode("ascii", "replace")
    lists: list[list[tuple[int, int]]] = [[]]
    at += 40
    while at + 16 <= _SECTOR and len(lists) < 3:
        offset, size = struct.unpack_from("<QQ", sector, at)
        if offset:
            lists[-1].append((offset, size))
        else:
            lists.append([])
        at += 16
    return uuid, lists[1] if len(lists) > 1 else []


def _text(volume: Volume, offset: int, size: int) -> str:
    """The newest text of a metadata area; empty where there is none."""
    head = volume.read(offset, _HEADER)
    if head[4:20] != _MAGIC:
        raise volume.fault("its LVM metadata area is damaged", "")
    start, length, checksum = struct.unpack_from("<QQI", head, 40)
    if not start or not length:
        return ""
    if not _HEADER <= start < size or not length <= min(size - _HEADER, _LARGEST_TEXT):
        raise volume.fault("its LVM metadata area is damaged", "")
    first = min(length, size - start)
    data = volume.read(offset + start, first)
    data += volume.read(offset + _HEADER, length - first)
    if _checksum(data) != checksum:
        raise volume.fault("the checksum of its LVM metadata is wrong", "")
    return data.rstrip(b"\0").decode("utf-8", "replace")


def _checksum(data: bytes) -> int:
    """CRC-32 with a start of LVM's own, and not inverted."""
    return zlib.crc32(data, _CHECKSUM_START ^ 0xFFFFFFFF) ^ 0xFFFFFFFF


def _parse(volume: Volume, text: str) -> dict[str, Any]:
    """The text as sections, numbers, strings and lists."""
    stack: list[dict[str, Any]] = [{}]
    key, at, target = "", 0, None
    values: list[Any] | None = None
    while at < len(text):
        found = _TOKEN.match(text, at)
        if not found or len(stack) > _DEEPEST:
            raise volume.fault("its LVM metadata cannot be read", "")
        at = found.end()
        mark, kind = found["mark"], found.lastgroup
        if mark == "{":
            stack[-1][key] = {}
            stack.append(stack[-1][key])
        elif mark == "}" and len(stack) > 1:
            stack.pop()
        elif mark == "=":
            target = key
        elif mark == "[":
            values = []
        elif mark == "]" and target is not None:
            stack[-1][target], values, target = values, None, None
        elif kind in ("text", "number") and (target is not None or values is not None):
            value = int(found[kind]) if kind == "number" else found[kind][1:-1]
            if values is not None:
                values.append(value)
            elif target is not None:
                stack[-1][target], target = value, None
        elif kind in ("name", "number"):
            key = found[kind]
    return stack[0]


def _logical(name: str, group: dict[str, Any], uuid: str) -> list[Logical]:
    extent = group["extent_size"] * _SECTOR
    here = {
        label: pv["pe_start"] * _SECTOR
        for label, pv in group["physical_volumes"].items()
        if pv["id"].replace("-", "") == uuid
    }
    if not here or extent <= 0:
        raise ValueError
    found: list[Logical] = []
    for label, logical in group.get("logical_volumes", {}).items():
        if "VISIBLE" not in logical["status"]:
            continue
        segments = [
            logical[f"segment{number}"] for number in range(1, int(logical["segment_count"]) + 1)
        ]
        size = sum(part["extent_count"] for part in segments) * extent
        offset, reason = _place(segments, here, extent)
        found.append((f"{name}/{label}", offset, size, reason))
    return found


def _place(
    segments: list[dict[str, Any]], here: dict[str, int], extent: int
) -> tuple[int | None, str]:
    """Where a logical volume begins on this physical volume, or why it has no such place."""
    start, expected = None, 0
    for part in segments:
        if part["type"] != "striped":
            return None, f"no single offset: it is of the type {part['type'][:40]!r}"
        if part["stripe_count"] != 1:
            return None, f"no single offset: it has {part['stripe_count']} stripes"
        device, first = part["stripes"]
        if device not in here:
            return None, "no single offset: it lies on another physical volume"
        place = here[device] + first * extent
        if place < 0 or part["extent_count"] <= 0:
            raise ValueError
        if start is None:
            start = place
        elif place != expected:
            return None, f"no single offset: it lies in {len(segments)} segments"
        expected = place + part["extent_count"] * extent
    return start, ""
