"""What a file has beside its content: extended attributes, object id, security descriptor.

Extended attributes have their own names; the others are called as NTFS calls them:
``$OBJECT_ID``, ``$REPARSE_POINT``, ``$SECURITY_DESCRIPTOR``, and ``$LOGGED_UTILITY_STREAM:NAME``.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np

from cbtlab.errors import InputError
from cbtlab.files.extents import Array
from cbtlab.files.names import text
from cbtlab.files.ntfs import layout as on_disk
from cbtlab.files.ntfs.owned import Owned
from cbtlab.files.volume import structure

_NAMES = {
    on_disk.OBJECT_ID: "$OBJECT_ID",
    on_disk.SECURITY_DESCRIPTOR: "$SECURITY_DESCRIPTOR",
    on_disk.REPARSE_POINT: "$REPARSE_POINT",
    on_disk.EA: "$EA",
    on_disk.LOGGED_UTILITY_STREAM: "$LOGGED_UTILITY_STREAM",
}
_LONGEST = 16 << 20
_LONGEST_DESCRIPTORS = 1 << 28


class Attributes:
    """The attributes of every file but its content; ``security`` is the id of each file's."""

    def __init__(self, owned: Owned, security: Array) -> None:
        self._owned, self._security = owned, security
        kinds = np.array(list(_NAMES))
        values, whole = owned.scan.resident, owned.whole
        held = np.flatnonzero(np.isin(values.type, kinds) & (owned.value_inode >= 0))
        self._held = held[np.argsort(owned.value_inode[held], kind="stable")]
        self._held_inode = owned.value_inode[self._held]
        self._apart = np.flatnonzero(np.isin(whole.type, kinds))
        self._apart_inode = whole.inode[self._apart]

    def of(self, inode: int) -> dict[str, bytes]:
        """All of one file.  Raises InputError where they are damaged."""
        owned, found = self._owned, dict[str, bytes]()
        values, whole = owned.scan.resident, owned.whole
        low, high = np.searchsorted(self._held_inode, [inode, inode + 1])
        if low < high:
            mine = self._held[low:high]
            for at, value in zip(mine.tolist(), owned.read_values(mine), strict=True):
                self._add(found, int(values.type[at]), int(values.name[at]), value, inode)
        low, high = np.searchsorted(self._apart_inode, [inode, inode + 1])
        for at in self._apart[low:high].tolist():
            value = owned.read_whole(at, _LONGEST)
            self._add(found, int(whole.type[at]), int(whole.name[at]), value, inode)
        key = int(self._security[np.searchsorted(owned.inode, inode)])
        if key in self._descriptors:
            found.setdefault("$SECURITY_DESCRIPTOR", self._descriptors[key])
        return found

    def _add(self, found: dict[str, bytes], kind: int, name: int, value: bytes, inode: int) -> None:
        if kind == on_disk.EA:
            found |= self._extended(value, inode)
            return
        suffix = self._owned.scan.words[name]
        found[_NAMES[kind] + (":" + text(suffix) if suffix else "")] = value

    def _extended(self, value: bytes, inode: int) -> dict[str, bytes]:
        """The extended attributes in the value of ``$EA``."""
        found, at = dict[str, bytes](), 0
        while at + 8 < len(value):
            step = int.from_bytes(value[at : at + 4], "little")
            many, size = value[at + 5], int.from_bytes(value[at + 6 : at + 8], "little")
            start = at + 9 + many
            if start + size > len(value) or (step and step < 8):
                raise self._owned.ntfs.fault(f"inode {inode}: its extended attributes are damaged")
            found[text(value[at + 8 : at + 8 + many])] = value[start : start + size]
            if not step:
                break
            at += step
        return found

    @cached_property
    def _descriptors(self) -> dict[int, bytes]:
        """Security descriptors by id, from ``$Secure``; none where that cannot be read."""
        ntfs = self._owned.ntfs
        try:
            value = ntfs.find(on_disk.SECURE, on_disk.DATA, b"$SDS")
            size = min(value.size, _LONGEST_DESCRIPTORS) if value else 0
            data = value.read(0, size) if value else b""
        except InputError:
            ntfs.notes.append("$Secure cannot be read: security descriptors are not known")
            return {}
        found: dict[int, bytes] = {}
        block = on_disk.DESCRIPTORS
        for start in range(0, len(data), 2 * block):  # every other block is a copy
            at, end = start, min(start + block, len(data))
            while at + on_disk.DESCRIPTOR.itemsize <= end:
                entry = structure(data[at : at + on_disk.DESCRIPTOR.itemsize], on_disk.DESCRIPTOR)
                length = int(entry["length"])
                if length < on_disk.DESCRIPTOR.itemsize or entry["offset"] != at:
                    break
                found[int(entry["id"])] = data[at + on_disk.DESCRIPTOR.itemsize : at + length]
                at = -(-(at + length) // 16) * 16
        return found
