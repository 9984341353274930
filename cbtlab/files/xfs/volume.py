"""The VolumeMap of XFS, put together from its structures."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from bitarray import bitarray

from cbtlab.files.extents import (
    DATA,
    INLINE,
    META,
    NOWHERE,
    UNWRITTEN,
    Array,
    Extents,
    category,
    holes,
)
from cbtlab.files.in_use import over_image
from cbtlab.files.ranges import Ranges
from cbtlab.files.volume import Volume
from cbtlab.files.volume_map import Regions, VolumeMap
from cbtlab.files.xfs import layout as on_disk
from cbtlab.files.xfs.folders import Entries, in_blocks, short_form, walk
from cbtlab.files.xfs.forks import Mapper
from cbtlab.files.xfs.inodes import TYPES, Inodes, read_inodes, table
from cbtlab.files.xfs.log import Log
from cbtlab.files.xfs.sharing import claimed_twice
from cbtlab.files.xfs.space import Space, read_space, used_inodes
from cbtlab.files.xfs.superblock import Xfs
from cbtlab.files.xfs.xattr import read_xattrs

_TOLD = 20


@dataclass
class _Read:
    """What was read of all inodes."""

    columns: list[dict[str, npt.NDArray[Any]]] = field(default_factory=list)
    inline: list[Extents] = field(default_factory=list)
    short: list[Entries] = field(default_factory=list)
    blocks: list[Array] = field(default_factory=list)
    folders: dict[int, int] = field(default_factory=dict)  # those with blocks, and their sizes
    faults: list[str] = field(default_factory=list)


def map_xfs(volume: Volume, *, names: bool = True) -> VolumeMap:
    """Map the file system at the volume's start.  Raises InputError.

    NotAtRest when its log must be replayed, or when it is marked as in need of repair.
    """
    xfs = Xfs(volume)
    log = Log(xfs)
    log.must_be_clean()
    xfs.read_groups()
    space = read_space(xfs, log)
    mapper, read = Mapper(xfs), _Read()
    for numbers, blocks in used_inodes(xfs, space.chunks):
        read.blocks.append(blocks)
        if len(numbers):
            _add(xfs, read_inodes(xfs, numbers), mapper, read, names)
    if not read.columns:
        raise xfs.fault("has no inode in use")
    inodes = _frame(read.columns)
    found = mapper.extents()
    special = _special(xfs)
    _must_have_root(xfs, inodes)
    _compare(xfs, space, read.blocks, found, inodes, mapper.damaged)
    bits = _in_use(xfs, space, found, inodes, mapper.damaged, special)
    _tell(xfs, inodes, mapper.damaged)
    everything = _bytes(xfs, found, read.inline, inodes, mapper.damaged, special)
    result = VolumeMap(
        volume=volume,
        fs="xfs",
        uuid=xfs.uuid,
        block_size=xfs.block_size,
        size=xfs.size,
        in_use=over_image(volume, bits, xfs.size, xfs.block_size),
        inodes=inodes,
        extents=everything,
        regions=_regions(xfs, space, read.blocks),
        special=special,
        root=xfs.root,
        xattrs=lambda number: read_xattrs(xfs, number),
        holders=lambda number: [],
        notes=xfs.notes,
        damaged=mapper.damaged,
    )
    if names:
        _name(xfs, result, read, found, special)
    return result


def _add(xfs: Xfs, part: Inodes, mapper: Mapper, read: _Read, names: bool) -> None:
    """Take some inodes: their maps, what lies in them, and the names in short folders."""
    mapper.add(part)
    read.columns.append(table(xfs, part))
    local = part.sound & (part.fields["format"] == on_disk.FORMAT_LOCAL)
    fits = part.size <= np.where(
        part.fields["fork_offset"] == 0,
        xfs.inode_size - xfs.core,
        np.minimum(part.fields["fork_offset"].astype(np.int64) * 8, xfs.inode_size - xfs.core),
    )
    folder = part.sound & (part.type == on_disk.TYPE_DIRECTORY)
    link = part.sound & (part.type == on_disk.TYPE_SYMLINK)
    rows = np.flatnonzero(local & fits & (folder | link) & (part.size > 0))
    place = part.place[rows] + xfs.core + xfs.volume.offset
    read.inline.append(Extents.of(part.number[rows], INLINE, 0, place, part.size[rows]))
    if not names:
        return
    short = np.flatnonzero(folder & local & fits)
    read.short.append(short_form(xfs, part, short, read.faults))
    rows = np.flatnonzero(folder & ~(local & fits))
    read.folders |= dict(zip(part.number[rows].tolist(), part.size[rows].tolist(), strict=True))


def _frame(columns: list[dict[str, npt.NDArray[Any]]]) -> pd.DataFrame:
    names = list(columns[0])
    data = {name: np.concatenate([part[name] for part in columns]) for name in names}
    data["type"] = category(data["type"], TYPES)  # type: ignore[assignment]
    index = pd.Index(data.pop("inode"), name="inode")
    frame: pd.DataFrame = pd.DataFrame(data, index=index)
    return frame


def _must_have_root(xfs: Xfs, inodes: pd.DataFrame) -> None:
    kind = inodes["type"].get(np.uint64(min(xfs.root, (1 << 63) - 1)))
    if kind != "directory":
        raise xfs.fault("its root is not a folder")


def _special(xfs: Xfs) -> dict[int, str]:
    """Inodes that serve the file system itself, and what to call them."""
    fields = [
        ("realtime_bitmap_inode", "<realtime bitmap>"),
        ("realtime_summary_inode", "<realtime summary>"),
    ]
    if xfs.has_quota:
        fields += [("user_quota_inode", "<user quota>"), ("group_quota_inode", "<group quota>")]
        if xfs.has_checksums:
            fields.append(("project_quota_inode", "<project quota>"))
    found = {int(xfs.superblock[name]): called for name, called in fields}
    return {n: called for n, called in found.items() if n not in (0, on_disk.NO_INODE)}


def _tell(xfs: Xfs, inodes: pd.DataFrame, damaged: dict[int, str]) -> None:
    """Notes on what is odd: damage, and inodes that the next mount frees."""
    xfs.notes += [f"inode {n}: {why}" for n, why in sorted(damaged.items())[:_TOLD]]
    lists = int((xfs.agi["unlinked"] != on_disk.NO_BLOCK).sum())
    waiting = int((inodes["nlink"] == 0).sum())
    if lists or waiting:
        xfs.notes.append(f"{waiting} inodes without a name wait for the next mount to free them")


def _compare(
    xfs: Xfs,
    space: Space,
    inode_blocks: list[Array],
    found: Extents,
    inodes: pd.DataFrame,
    damaged: dict[int, str],
) -> None:
    """Tell of inodes that claim blocks of another owner."""
    heads = np.arange(xfs.ag_count, dtype=np.int64) * xfs.ag_blocks
    chunks = np.unique(np.concatenate(inode_blocks))
    start = np.concatenate((space.start, heads, chunks))
    length = np.ones(len(start), np.int64)
    length[: len(space.start)] = space.count
    length[len(space.start) : len(space.start) + len(heads)] = xfs.head_blocks
    flags = inodes["flags"].to_numpy() >> 16
    row = np.searchsorted(inodes.index.to_numpy().astype(np.int64), found.inode)
    may_share = (flags[row] & on_disk.FLAG2_REFLINK) != 0
    for inode in claimed_twice(found, may_share, start, length).tolist():
        damaged.setdefault(inode, "it claims blocks of another owner")


def _limits(
    xfs: Xfs, inodes: pd.DataFrame, damaged: dict[int, str], special: dict[int, str]
) -> tuple[Array, npt.NDArray[np.bool_]]:
    """The numbers of the inodes; and which are sound regular files, that people read."""
    number = inodes.index.to_numpy().astype(np.int64)
    plain = inodes["type"].cat.codes.to_numpy() == 0
    return number, plain & ~np.isin(number, [*damaged, *special])


def _in_use(
    xfs: Xfs,
    space: Space,
    found: Extents,
    inodes: pd.DataFrame,
    damaged: dict[int, str],
    special: dict[int, str],
) -> bitarray:
    """`A_k` over the file system's blocks: what reading can return.

    Left out is what is free, what is set apart for trees and for copy on write, and of sound
    regular files unwritten extents and whole blocks past the end; a block that anybody else
    maps as data or metadata stays in use.
    """
    bits = bitarray(xfs.blocks, endian="little")
    bits.setall(1)
    number, plain = _limits(xfs, inodes, damaged, special)
    limit = np.where(plain, -(-inodes["size"].to_numpy() // xfs.block_size), 1 << 62)
    row = np.searchsorted(number, found.inode)
    end = found.physical + found.length
    readable = np.clip(limit[row] - found.logical, 0, found.length)
    readable = np.where(found.kind == META, found.length, readable)
    readable = np.where((found.kind == UNWRITTEN) & plain[row], 0, readable)
    cut = found.physical + readable
    for away in (space.unread, Ranges.union(cut, end - cut), space.free):
        for start, stop in away.pairs():
            bits[start:stop] = False
    before = bits.count()
    for start, stop in Ranges.union(found.physical, readable).pairs():
        bits[start:stop] = True
    shared = bits.count() - before
    if shared:
        xfs.notes.append(f"{shared} blocks in use are free, or not readable, for another owner")
    return bits


def _bytes(
    xfs: Xfs,
    found: Extents,
    inline: list[Extents],
    inodes: pd.DataFrame,
    damaged: dict[int, str],
    special: dict[int, str],
) -> Extents:
    """Everything in bytes of the image, with the holes of regular files."""
    size, offset = xfs.block_size, xfs.volume.offset
    logical = np.where(found.logical == NOWHERE, NOWHERE, found.logical * size)
    physical = found.physical * size + offset
    mapped = replace(found, logical=logical, physical=physical, length=found.length * size)
    kind = inodes["type"].cat.codes.to_numpy()
    number = inodes.index.to_numpy().astype(np.int64)
    if xfs.has_checksums:
        mapped = _without_heads(xfs, mapped, number[kind == TYPES.index("symlink")], damaged)
    everything = Extents.join([mapped, *inline]).ordered()
    plain = (kind == 0) & ~np.isin(number, list(special))
    files, sizes = number[plain], inodes["size"].to_numpy()[plain].astype(np.int64)
    mine = everything[np.isin(everything.inode, files)]
    return Extents.join([everything, holes(mine, files, sizes)]).ordered()


def _without_heads(xfs: Xfs, found: Extents, links: Array, damaged: dict[int, str]) -> Extents:
    """The extents of long symlinks, each of which begins with a head that is no content."""
    mine = np.isin(found.inode, links) & (found.kind == DATA)
    rest, link = found[~mine], found[mine].ordered()
    if not len(link):
        return found
    head = on_disk.REMOTE.itemsize
    first = np.append(True, np.diff(link.inode) != 0)
    before = np.cumsum(link.length - head) - (link.length - head)
    logical = before - np.repeat(
        before[first], np.diff(np.append(np.flatnonzero(first), len(link)))
    )
    tops = Extents.of(link.inode, META, NOWHERE, link.physical, head)
    body = replace(link, logical=logical, physical=link.physical + head, length=link.length - head)
    return Extents.join([rest, tops, body])


def _regions(xfs: Xfs, space: Space, inode_blocks: list[Array]) -> Regions:
    """The file system's own structures, in bytes of the image."""
    size, sector = xfs.block_size, xfs.sector_size
    base = np.arange(xfs.ag_count, dtype=np.int64) * xfs.ag_blocks * size
    chunks = np.unique(np.concatenate(inode_blocks))
    inodes = Ranges.union(chunks, np.ones(len(chunks), np.int64))
    parts = [
        (base + n * sector, base + (n + 1) * sector, name)
        for n, name in enumerate(("<superblock>", "<AGF>", "<AGI>", "<AGFL>"))
    ]
    rest = xfs.head_blocks * size
    if rest > 4 * sector:
        parts.append((base + 4 * sector, base + rest, "<rest of an allocation group's headers>"))
    parts.append((inodes.start * size, inodes.end * size, "<inodes>"))
    start = np.concatenate([space.start * size, *(part[0] for part in parts)])
    end = np.concatenate([(space.start + space.count) * size, *(part[1] for part in parts)])
    name = np.concatenate([space.name, *(np.full(len(part[0]), part[2], object) for part in parts)])
    order = np.argsort(start, kind="stable")
    offset = xfs.volume.offset
    return Regions(start[order] + offset, end[order] + offset, name[order])


def _name(
    xfs: Xfs, result: VolumeMap, read: _Read, found: Extents, special: dict[int, str]
) -> None:
    """Give the map its names, and tell of inodes that should have one."""
    mine = found[np.isin(found.inode, list(read.folders))]
    parts = [*read.short, *in_blocks(xfs, mine, read.folders, read.faults)]
    number = result.inodes.index.to_numpy().astype(np.int64)
    types = result.inodes["type"].cat.codes.to_numpy()
    walked = walk(xfs, parts, number, types, read.faults)
    nameless = number[result.inodes["nlink"].to_numpy() > 0]
    nameless = nameless[~np.isin(nameless, [*special, xfs.root])]
    nameless = nameless[~np.isin(nameless, walked.inodes)]
    faults = [f"inode {n} is in use and has no name" for n in nameless[:_TOLD].tolist()]
    result.set_names(walked.paths, walked.inodes, walked.faults + faults)
