"""The VolumeMap of NTFS, put together from its structures.

An inode is the number of a base record in $MFT.  ``uid`` is the id of the file's security
descriptor (0 before version 3.0), as NTFS has owners of no number; ``flags`` are the file
attributes; ``nlink`` counts names, 8.3 forms beside a long one not.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

from cbtlab.errors import InputError
from cbtlab.files.extents import (
    PLACED,
    Array,
    Extents,
    category,
)
from cbtlab.files.in_use import over_image
from cbtlab.files.ntfs import layout as on_disk
from cbtlab.files.ntfs.alloc import in_use, regions
from cbtlab.files.ntfs.content import link_target, refused, unpacked
from cbtlab.files.ntfs.index import Indexes
from cbtlab.files.ntfs.owned import Owned
from cbtlab.files.ntfs.paths import Links, Paths, links, paths, system_files
from cbtlab.files.ntfs.places import Content, choose_content, extents, streams
from cbtlab.files.ntfs.records import Mask
from cbtlab.files.ntfs.scan import scan
from cbtlab.files.ntfs.state import asleep, check_state
from cbtlab.files.ntfs.system import Ntfs
from cbtlab.files.ntfs.values import Attributes
from cbtlab.files.volume import Volume
from cbtlab.files.volume_map import Chunk, Streams, VolumeMap

_TYPES = ("file", "directory", "symlink", "other")
_HIBERNATION = b"hiberfil.sys"
_LONGEST_LINK = 1 << 16
_LATEST = np.iinfo(np.int64).max // 100 - 1


def map_ntfs(volume: Volume, *, names: bool = True) -> VolumeMap:
    """Map the file system at the volume's start.  Raises InputError."""
    ntfs = Ntfs(volume)
    ntfs.version = check_state(ntfs)
    files = _Files(ntfs)
    own = system_files(files.owned, files.links)
    found = files.extents(own)
    files.blame_shared(found)
    size = min(volume.size, ntfs.boot.managed + ntfs.boot.sector)
    bits = in_use(ntfs, found, np.array([*files.owned.damaged, *own], np.int64), size)
    named = paths(files.owned, files.links, files.folder)
    result = VolumeMap(
        volume=volume,
        fs="ntfs",
        uuid=f"{ntfs.boot.serial:016X}",
        block_size=ntfs.cluster,
        size=size,
        in_use=over_image(volume, bits, size, ntfs.cluster),
        inodes=files.inodes(),
        extents=found,
        regions=regions(ntfs, size),
        special=named.own,
        root=on_disk.ROOT,
        xattrs=files.attributes.of,
        holders=lambda inode: [],
        notes=ntfs.notes,
        damaged=files.owned.damaged,
        streams=files.streams,
        decoded=lambda inode, stream: files.decoded(found, inode, stream),
    )
    files.name(result, named, names=names)
    return result


class _Files:
    """All files of the volume, and how to read what is not stored as it is read."""

    def __init__(self, ntfs: Ntfs) -> None:
        self.ntfs = ntfs
        self.owned = owned = Owned(ntfs, scan(ntfs))
        flags = owned.scan.records.flags[owned.row]
        self.folder: Mask = flags & on_disk.RECORD_FOLDER != 0
        self.links: Links = links(owned, self.folder)
        self._read_links()
        self.content: Content = choose_content(owned, self.folder & ~self.symlink, self.symlink)
        self.streams: Streams = streams(owned, self.content)
        self.attributes = Attributes(owned, self._information("security"))
        self._check_asleep()

    # Columns --------------------------------------------------------------------------------

    def inodes(self) -> pd.DataFrame:
        """The table of inodes."""
        owned = self.owned
        size, valid = self._sizes()
        count = len(owned.inode)
        kind = np.where(self.folder, 1, 0)
        kind[np.isin(self._tag, on_disk.TAGS_SPECIAL)] = 3
        kind[self.symlink] = 2
        zero = np.zeros(count, np.uint32)

        def time(name: str) -> Array:
            stored = self._information(name).astype(np.int64) - on_disk.EPOCH
            return np.clip(stored, -_LATEST, _LATEST) * 100

        frame: pd.DataFrame = pd.DataFrame(
            {
                "type": category(kind, _TYPES),
                "size": size,
                "valid": valid,
                "mode": zero,
                "uid": self._information("security").astype(np.uint32),
                "gid": zero,
                "nlink": self.links.count(owned.inode).astype(np.uint32),
                "mtime_ns": time("modified"),
                "atime_ns": time("accessed"),
                "ctime_ns": time("changed"),
                "crtime_ns": time("created"),
                "flags": self._information("attributes").astype(np.uint32),
                "device": zero,
                "project": zero,
            },
            index=pd.Index(owned.inode.astype(np.uint64), name="inode"),
        )
        return frame

    def _information(self, field: str) -> Any:
        """A field of $STANDARD_INFORMATION of each file; 0 where a file has none."""
        info, owned = self.owned.scan.information, self.owned
        inode = owned.owner(info.record)
        known = inode >= 0
        empty = 0 if field in ("attributes", "security") else on_disk.EPOCH
        column = np.full(len(owned.inode), empty, info.fields[field].dtype)
        column[np.searchsorted(owned.inode, inode[known])] = info.fields[field][known]
        return column

    def _sizes(self) -> tuple[Array, Array]:
        owned, content, values = self.owned, self.content, self.owned.scan.resident
        size, valid = np.zeros((2, len(owned.inode)), np.int64)
        apart = np.flatnonzero(content.stream_whole == 0)
        at = np.searchsorted(owned.inode, owned.whole.inode[apart])
        size[at], valid[at] = owned.whole.size[apart], owned.whole.valid[apart]
        held = np.flatnonzero(content.stream_value == 0)
        at = np.searchsorted(owned.inode, owned.value_inode[held])
        size[at] = valid[at] = values.length[held]
        for inode, target in self._targets.items():
            row = int(np.searchsorted(owned.inode, inode))
            size[row] = valid[row] = len(target)
        return size, valid

    # Reparse points -------------------------------------------------------------------------

    def _read_links(self) -> None:
        """Find the tag of each file's reparse point, and the targets of links."""
        owned, values, whole = self.owned, self.owned.scan.resident, self.owned.whole
        self._tag = np.zeros(len(owned.inode), np.int64)
        held = np.flatnonzero((values.type == on_disk.REPARSE_POINT) & (owned.value_inode >= 0))
        self._tag[np.searchsorted(owned.inode, owned.value_inode[held])] = values.tag[held]
        leads = (on_disk.TAG_JUNCTION, on_disk.TAG_SYMLINK, on_disk.TAG_LX_SYMLINK)
        some = held[np.isin(values.tag[held], leads)]
        found = list(zip(owned.value_inode[some].tolist(), owned.read_values(some), strict=True))
        for at in np.flatnonzero(whole.type == on_disk.REPARSE_POINT).tolist():
            inode = int(whole.inode[at])
            try:
                value = owned.read_whole(at, _LONGEST_LINK)
            except InputError:
                owned.damaged.setdefault(inode, "its reparse point is damaged")
                continue
            tag = int.from_bytes(value[:4], "little")
            self._tag[np.searchsorted(owned.inode, inode)] = tag
            if tag in leads:
                found.append((inode, value))
        self._targets: dict[int, bytes] = {}
        for inode, value in found:
            target = link_target(value)
            if target is None:
                owned.damaged.setdefault(inode, "its reparse point is damaged")
            else:
                self._targets[inode] = target
        self.symlink: Mask = np.isin(owned.inode, list(self._targets))
        self._elsewhere = owned.inode[np.isin(self._tag, (on_disk.TAG_WOF, on_disk.TAG_DEDUP))]
        if len(self._elsewhere):
            self.ntfs.notes.append(
                f"{len(self._elsewhere)} files have their content compressed by Windows in another "
                "stream, or in its store of equal pieces"
            )

    # Extents --------------------------------------------------------------------------------

    def extents(self, own: Array) -> Extents:
        """Everything in bytes of the image."""
        owned = self.owned
        whole = np.isin(owned.whole.inode, np.concatenate((own, list(owned.damaged))))
        folders = owned.inode[self.folder]
        whole |= np.isin(owned.whole.inode, folders) & (self.content.stream_whole == 0)
        return extents(owned, self.content, whole, self._elsewhere)

    def blame_shared(self, found: Extents) -> None:
        """Files that have a cluster of another are damaged, and so is the other."""
        placed = found[np.isin(found.kind, PLACED)]
        order = np.argsort(placed.physical, kind="stable")
        start, inode = placed.physical[order], placed.inode[order]
        end = start + placed.length[order]
        reach = np.maximum.accumulate(end) if len(end) else end
        holder = np.maximum.accumulate(np.where(end == reach, np.arange(len(end)), 0))
        clash = np.flatnonzero(start[1:] < reach[:-1]) + 1
        both = np.unique(np.concatenate((inode[clash], inode[holder[clash - 1]])))
        for number in both.tolist():
            self.owned.damaged.setdefault(number, "it has clusters that another file has")

    # Content --------------------------------------------------------------------------------

    def decoded(self, found: Extents, inode: int, stream: int) -> Iterator[Chunk]:
        """The content of a stream that is not stored as it is read; ``found`` are all extents.

        Raises InputError where it cannot be read.
        """
        what = f"inode {inode}"
        if stream == 0 and inode in self._targets:
            target = self._targets[inode]
            yield 0, len(target), target
            return
        if stream == 0 and inode in self._elsewhere:
            raise refused(self.ntfs, what, "has its content in another place")
        whole = self.owned.whole
        low, high = np.searchsorted(whole.inode, [inode, inode + 1])
        at = int(low + np.flatnonzero(self.content.stream_whole[low:high] == stream)[0])
        flags, unit = int(whole.flags[at]), int(whole.unit[at])
        if flags & on_disk.ENCRYPTED:
            raise refused(self.ntfs, what, "is encrypted")
        if flags & on_disk.COMPRESSED != 1:
            raise refused(self.ntfs, what, f"is compressed by the unknown method {flags & 0xFF}")
        rows = found.rows_of(inode)
        rows = rows[rows.stream == stream]
        size, valid = int(whole.size[at]), int(whole.valid[at])
        width = self.ntfs.cluster << min(unit, 20)
        yield from unpacked(self.ntfs, rows, width, size, valid, what)

    def _check_asleep(self) -> None:
        """Raise NotAtRest for a Windows that sleeps."""
        for inode in self.links.named(on_disk.ROOT, _HIBERNATION):
            value = self.ntfs.find(inode, on_disk.DATA)
            error = value and asleep(self.ntfs, value.read(0, min(value.size, 4)))
            if error:
                raise error

    # Names ----------------------------------------------------------------------------------

    def name(self, result: VolumeMap, named: Paths, *, names: bool) -> None:
        """Give the map its names, and tell what is odd about them."""
        owned, broken = self.owned, self.owned.scan.broken
        hidden = [f"record {n} of $MFT is in use and cannot be read" for n in broken[:20].tolist()]
        if len(broken) > 20:
            hidden.append(f"{len(broken)} records of $MFT are in use and cannot be read")
        if names:
            index = Indexes(owned, self.folder & ~self.symlink)
            self.ntfs.notes += index.notes
            result.set_names(named.paths, named.inodes, [*hidden, *named.hidden, *index.hidden])
        self.ntfs.notes += hidden
        told = sorted(owned.damaged.items())[:20]
        self.ntfs.notes += [f"inode {number}: {why}" for number, why in told]
