"""The VolumeMap of ext2, ext3 and ext4, put together from their structures."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from bitarray import bitarray

from cbtlab.files.ext import layout as on_disk
from cbtlab.files.ext.alloc import Structures, allocated, rests, structures
from cbtlab.files.ext.block_map import Mapper
from cbtlab.files.ext.folders import Folders
from cbtlab.files.ext.folders import names as find_names
from cbtlab.files.ext.inodes import (
    TYPES,
    Inodes,
    read_inodes,
    sizes,
    table,
    used_inodes,
)
from cbtlab.files.ext.superblock import Ext
from cbtlab.files.ext.xattr import holders, inline_tails, read_xattrs
from cbtlab.files.extents import (
    INLINE,
    META,
    NOWHERE,
    RESERVED,
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

_COMPAT_JOURNAL = 0x0004


def map_ext(volume: Volume, *, names: bool = True) -> VolumeMap:
    """Map the file system at the volume's start.  Raises InputError."""
    ext = Ext(volume)
    own = structures(ext)
    bits = allocated(ext, own)
    mapper, inline, columns, folders = Mapper(ext), [], [], []
    for part in read_inodes(ext, used_inodes(ext)):
        small, mapped = _places(ext, part)
        inline.append(_inline(ext, part, small))
        mapper.add(part, mapped)
        columns.append(table(ext, part))
        kind = part.type == on_disk.TYPE_DIRECTORY
        folders.append(Folders(part.number[kind], sizes(ext, part)[kind], part.seed[kind]))
    if not columns:
        raise volume.fault("has no inode in use")
    inodes = _frame(columns)
    if on_disk.ROOT_INODE not in _folders(folders).inode:
        raise volume.fault("its root is not a folder")
    found = mapper.extents()
    special = _special(ext)
    if ext.cluster > 1:
        found = _with_rests(ext, found, own)
    bits = _in_use(ext, bits, found, inodes, mapper.damaged, special)
    has_holders = ext.incompat & on_disk.INCOMPAT_EA_INODE
    notes = [*ext.notes, *(f"inode {n}: {why}" for n, why in sorted(mapper.damaged.items())[:20])]
    everything = _bytes(ext, found, inline, inodes)
    result = VolumeMap(
        volume=volume,
        fs=ext.kind,
        uuid=ext.uuid,
        block_size=ext.block_size,
        size=ext.size,
        in_use=over_image(volume, bits, ext.size, ext.block_size),
        inodes=inodes,
        extents=everything,
        regions=_regions(ext, own, found),
        special=special,
        root=on_disk.ROOT_INODE,
        xattrs=lambda number: read_xattrs(ext, number, result.read_file),
        holders=lambda number: holders(ext, number) if has_holders else [],
        notes=notes,
        damaged=mapper.damaged,
    )
    if names:
        number = inodes.index.to_numpy().astype(np.int64)
        walked = find_names(ext, everything, _folders(folders), number)
        linked = (inodes["nlink"].to_numpy() > 0) | (not ext.has_orphans)
        linked &= number >= ext.first_inode
        linked &= (inodes["flags"].to_numpy() & on_disk.FL_EA_INODE) == 0
        linked &= ~np.isin(number, [*special, *walked.inodes.tolist()])
        nameless = [f"inode {n} is in use and has no name" for n in number[linked][:20].tolist()]
        result.set_names(walked.paths, walked.inodes, walked.faults + nameless)
    return result


def _places(ext: Ext, part: Inodes) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Which inodes hold their content themselves, and which have a block map."""
    kind = part.type
    inline = part.has(on_disk.FL_INLINE_DATA)
    # As the kernel's ext4_inode_is_fast_symlink.
    size = part.fields["size"]
    fast = (kind == on_disk.TYPE_SYMLINK) & (size < on_disk.I_BLOCK_BYTES)
    fast &= ~part.has(on_disk.FL_EXTENTS)
    holds = np.isin(kind, (on_disk.TYPE_REGULAR, on_disk.TYPE_DIRECTORY, on_disk.TYPE_SYMLINK))
    holds |= part.number == on_disk.BAD_BLOCKS_INODE
    return holds & (inline | fast), holds & ~inline & ~fast


def _inline(ext: Ext, part: Inodes, small: npt.NDArray[np.bool_]) -> Extents:
    """Content inside inodes, in bytes of the image: in ``i_block``, the rest in an attribute."""
    rows = np.flatnonzero(small & (sizes(ext, part) > 0))
    number, size = part.number[rows], sizes(ext, part)[rows]
    place = part.place[rows] + ext.volume.offset
    head = np.minimum(size, on_disk.I_BLOCK_BYTES)
    first = Extents.of(number, INLINE, 0, place + on_disk.I_BLOCK_OFFSET, head)
    where, many = inline_tails(ext, part, rows)
    many = np.minimum(many, size - head)
    more = many > 0
    rest = Extents.of(number[more], INLINE, head[more], (place + where)[more], many[more])
    return Extents.join([first, rest])


def _with_rests(ext: Ext, found: Extents, own: Structures) -> Extents:
    """The extents, and as ``reserved`` what of their clusters nobody maps."""
    taken = Ranges.union(
        np.concatenate((found.physical, own.start)), np.concatenate((found.length, own.count))
    )
    which, begin, end = rests(ext, found.physical, found.length, taken)
    inode = found.inode[which]
    more = Extents.of(inode, RESERVED, NOWHERE, begin, end - begin)
    return Extents.join([found, more]).ordered()


def _folders(parts: list[Folders]) -> Folders:
    """All parts as one."""
    return Folders(
        np.concatenate([part.inode for part in parts]),
        np.concatenate([part.size for part in parts]),
        np.concatenate([part.seed for part in parts]),
    )


def _frame(columns: list[dict[str, npt.NDArray[Any]]]) -> pd.DataFrame:
    names = list(columns[0])
    data = {name: np.concatenate([part[name] for part in columns]) for name in names}
    data["type"] = category(data["type"], TYPES)  # type: ignore[assignment]
    index = pd.Index(data.pop("inode"), name="inode")
    frame: pd.DataFrame = pd.DataFrame(data, index=index)
    return frame


def _special(ext: Ext) -> dict[int, str]:
    """Inodes that serve the file system itself, and what to call them."""
    names = {on_disk.BAD_BLOCKS_INODE: "<bad blocks>", on_disk.RESIZE_INODE: "<resize inode>"}
    for field, name, present in (
        ("journal_inode", "<journal>", ext.compat & _COMPAT_JOURNAL),
        ("user_quota_inode", "<user quota>", True),
        ("group_quota_inode", "<group quota>", True),
        ("project_quota_inode", "<project quota>", True),
        ("orphan_file_inode", "<orphan file>", ext.compat & on_disk.COMPAT_ORPHAN_FILE),
    ):
        inode = int(ext.superblock[field])
        if present and inode:
            names[inode] = name
    return names


def _in_use(
    ext: Ext,
    bits: bitarray,
    found: Extents,
    inodes: pd.DataFrame,
    damaged: dict[int, str],
    special: dict[int, str],
) -> bitarray:
    """`A_k` over the file system's blocks: what reading can return.

    Of a sound regular file, unwritten extents and whole blocks past its end are left out
    (but not of one with fs-verity, whose hash tree lies there); a block that anybody else
    maps as data or metadata stays in use.
    """
    kind, flags = inodes["type"].cat.codes.to_numpy(), inodes["flags"].to_numpy()
    number = inodes.index.to_numpy().astype(np.int64)
    plain = (kind == 0) & ((flags & on_disk.FL_VERITY) == 0)
    plain &= ~np.isin(number, [*damaged, *special]) & (number >= ext.first_inode)
    limit = np.where(plain, -(-inodes["size"].to_numpy() // ext.block_size), 1 << 62)
    row = np.searchsorted(number, found.inode)
    end = found.physical + found.length
    readable = np.clip(limit[row] - found.logical, 0, found.length)
    readable = np.where(found.kind == META, found.length, readable)
    readable = np.where(found.kind == RESERVED, 0, readable)
    readable = np.where((found.kind == UNWRITTEN) & plain[row], 0, readable)
    cut = found.physical + readable
    for start, stop in Ranges.union(cut, end - cut).pairs():
        bits[start:stop] = False
    kept = Ranges.union(found.physical, readable)
    before = bits.count()
    for start, stop in kept.pairs():
        bits[start:stop] = True
    shared = bits.count() - before
    if shared:
        ext.notes.append(f"{shared} blocks in use are free, or not readable, for another owner")
    return bits


def _bytes(ext: Ext, found: Extents, inline: list[Extents], inodes: pd.DataFrame) -> Extents:
    """Everything in bytes of the image, with the holes of regular files."""
    size, offset = ext.block_size, ext.volume.offset
    logical = np.where(found.logical == NOWHERE, NOWHERE, found.logical * size)
    physical = found.physical * size + offset
    mapped = replace(found, logical=logical, physical=physical, length=found.length * size)
    everything = Extents.join([mapped, *inline]).ordered()
    number = inodes.index.to_numpy().astype(np.int64)
    plain = (inodes["type"].cat.codes.to_numpy() == 0) & (number >= ext.first_inode)
    files, sizes_ = number[plain], inodes["size"].to_numpy()[plain].astype(np.int64)
    mine = everything[np.isin(everything.inode, files)]
    return Extents.join([everything, holes(mine, files, sizes_)]).ordered()


def _regions(ext: Ext, own: Structures, found: Extents) -> Regions:
    start, count = own.start, own.count
    name = np.array(Structures.NAMES, object)[own.name]
    if ext.block_size == 1024:
        start, count = np.append(start, 0), np.append(count, 1)
        name = np.append(name, "<boot area>")
    if ext.cluster > 1:
        taken = Ranges.union(
            np.concatenate((start, found.physical)), np.concatenate((count, found.length))
        )
        _, rest, end = rests(ext, start, count, taken)
        start, count = np.append(start, rest), np.append(count, end - rest)
        name = np.append(name, np.full(len(rest), "<rest of a cluster>", object))
    order = np.argsort(start, kind="stable")
    offset, size = ext.volume.offset, ext.block_size
    begin: Array = start[order] * size + offset
    return Regions(begin, begin + count[order] * size, name[order])
