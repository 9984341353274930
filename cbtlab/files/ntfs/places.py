"""The extents of every attribute of every file, in bytes of the image.

Content (unnamed and named data, and a folder's index) has logical places; every
other attribute outside of its record is ``meta``.  The compression units of NTFS: one with
all its clusters is not compressed, one with none is a hole, and else it is.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cbtlab.files.extents import (
    DATA,
    HOLE,
    INLINE,
    META,
    NOWHERE,
    RESERVED,
    UNWRITTEN,
    Array,
    Extents,
)
from cbtlab.files.ntfs import layout as on_disk
from cbtlab.files.ntfs.owned import Owned
from cbtlab.files.ntfs.records import Mask
from cbtlab.files.ntfs.runs import HOLE as NO_PLACE
from cbtlab.files.volume_map import Streams

INDEX = b"$I30"
_BAD = b"$Bad"


@dataclass(frozen=True)
class Content:
    """What of the attributes is content: of those outside of records, and of the resident.

    ``stream`` is the code of the stream for each of ``Owned.whole`` and of ``Scan.resident``; -1
    means that the attribute is not content.
    """

    stream_whole: Array
    stream_value: Array
    names: tuple[bytes, ...]


def choose_content(owned: Owned, folder: Mask, symlink: Mask) -> Content:
    """Tell content from the rest; ``folder`` and ``symlink`` have one bool a file.

    A folder's content is its index, a symlink's its target, though it has data too.
    """
    scan, whole = owned.scan, owned.whole
    position = np.searchsorted(owned.inode, whole.inode)
    index = scan.words.index(INDEX) if INDEX in scan.words else -1
    data = whole.type == on_disk.DATA
    data &= (whole.name != 0) | ~(folder | symlink)[position]
    entries = (whole.type == on_disk.INDEX_ALLOCATION) & (whole.name == index) & folder[position]
    known = owned.value_inode >= 0
    links = symlink[position]
    position = np.searchsorted(owned.inode, np.where(known, owned.value_inode, owned.inode[0]))
    entries |= (whole.type == on_disk.REPARSE_POINT) & links
    held = known & (scan.resident.type == on_disk.DATA)
    held &= (scan.resident.name != 0) | ~(folder | symlink)[position]
    target = known & (scan.resident.type == on_disk.REPARSE_POINT) & symlink[position]
    used = np.unique(np.concatenate((whole.name[data], scan.resident.name[held], [0])))
    code = np.full(len(scan.words), -1, np.int64)
    code[used] = np.arange(len(used))
    return Content(
        np.where(data, code[whole.name], np.where(entries, 0, -1)),
        np.where(held, code[scan.resident.name], np.where(target, 0, -1)),
        tuple(scan.words[name] for name in used.tolist()),
    )


def streams(owned: Owned, content: Content) -> Streams:
    """The named streams of all files."""
    whole, values = owned.whole, owned.scan.resident
    apart, held = content.stream_whole > 0, content.stream_value > 0
    inode = np.concatenate((whole.inode[apart], owned.value_inode[held]))
    code = np.concatenate((content.stream_whole[apart], content.stream_value[held]))
    size = np.concatenate((whole.size[apart], values.length[held]))
    valid = np.concatenate((whole.valid[apart], values.length[held]))
    order = np.lexsort((code, inode))
    return Streams(content.names, inode[order], code[order], size[order], valid[order])


def extents(owned: Owned, content: Content, whole_files: Mask, elsewhere: Array) -> Extents:
    """All extents, `ordered` and `merged`.

    ``whole_files`` says of each of ``Owned.whole`` that nothing of it counts as unwritten (the
    file system's own files, damaged ones); ``elsewhere`` are inodes whose unnamed data is only
    a place holder for content that lies in another place.
    """
    whole, cluster, attribute = owned.whole, owned.ntfs.cluster, owned.attribute
    packed = (whole.flags & on_disk.COMPRESSED != 0) & (content.stream_whole >= 0)
    vcn, lcn, length, encoded = owned.vcn, owned.lcn, owned.length, None
    if packed.any():
        attribute, vcn, lcn, length, encoded = _units(owned, packed)
    stream = content.stream_whole[attribute]
    if encoded is None:
        encoded = np.zeros(len(attribute), np.bool_)
    is_content = content.stream_whole >= 0
    hidden = is_content & (whole.flags & on_disk.ENCRYPTED != 0)
    hidden |= is_content & (whole.type == on_disk.REPARSE_POINT)
    hidden |= (content.stream_whole == 0) & np.isin(whole.inode, elsewhere)
    encoded = encoded | hidden[attribute]
    hole = lcn == NO_PLACE
    inside = is_content[attribute]
    logical, length = vcn * cluster, length * cluster
    length = np.where(hole, np.minimum(length, whole.size[attribute] - logical), length)
    keep = np.where(hole, inside & (length > 0), True)
    kind = np.where(hole, HOLE, np.where(inside, DATA, META))
    kind = np.where(~hole & _bad_clusters(owned)[attribute], RESERVED, kind)
    kind, logical = kind[keep], np.where(inside & (kind != RESERVED), logical, NOWHERE)[keep]
    place = np.where(hole, NOWHERE, lcn * cluster + owned.ntfs.volume.offset)[keep]
    attribute = attribute[keep]
    found = Extents.of(
        whole.inode[attribute],
        kind,
        logical,
        place,
        length[keep],
        np.maximum(stream, 0)[keep],
        encoded[keep],
    )
    limit = -(-whole.valid // cluster) * cluster
    limit = np.where(whole_files | packed | hidden, np.iinfo(np.int64).max, limit)
    found = _cut(found, limit[attribute])
    return Extents.join([found, _inline(owned, content)]).ordered().merged()


def _bad_clusters(owned: Owned) -> Mask:
    """Which attribute lists the bad clusters: they cannot be read, and are in use by nobody."""
    whole, words = owned.whole, owned.scan.words
    code = words.index(_BAD) if _BAD in words else -1
    return (whole.inode == on_disk.BAD_CLUSTERS) & (whole.name == code)


def _cut(found: Extents, limit: Array) -> Extents:
    """What lies behind ``limit`` bytes of content was never written."""
    plain = found.kind == DATA
    written = np.where(plain, np.clip(limit - found.logical, 0, found.length), found.length)
    rest = written < found.length
    if not rest.any():
        return found
    more, skip, first = found[rest], written[rest], written > 0
    behind = Extents.of(
        more.inode,
        UNWRITTEN,
        more.logical + skip,
        more.physical + skip,
        more.length - skip,
        more.stream,
    )
    head = found[first]
    head = Extents(
        head.inode,
        head.kind,
        head.logical,
        head.physical,
        written[first],
        head.stream,
        head.encoded,
    )
    return Extents.join([head, behind])


def _units(owned: Owned, packed: Mask) -> tuple[Array, Array, Array, Array, Mask]:
    """The runs, those of compressed attributes cut where units begin and end.

    Also tells which of them belong to a compressed unit; the holes of such units are left out.
    """
    unit = np.where(packed, 1 << np.minimum(owned.whole.unit, 20), 1)[owned.attribute]
    mine = packed[owned.attribute]
    vcn, end = owned.vcn, owned.vcn + owned.length
    # A run is the end of one unit, whole units, and the start of another.
    low = np.minimum(np.where(mine, -(-vcn // unit) * unit, vcn), end)
    high = np.maximum(np.where(mine, end // unit * unit, end), low)
    starts, ends = np.concatenate((vcn, low, high)), np.concatenate((low, high, end))
    run = np.tile(np.arange(len(vcn)), 3)
    partial = np.repeat((True, False, True), len(vcn)) & mine[run]
    keep = np.flatnonzero(ends > starts)
    keep = keep[np.lexsort((starts[keep], owned.attribute[run[keep]]))]
    run, start, length, partial = run[keep], starts[keep], (ends - starts)[keep], partial[keep]
    attribute, hole = owned.attribute[run], owned.lcn[run] == NO_PLACE
    group = np.cumsum(
        np.concatenate(
            (
                [True],
                (attribute[1:] != attribute[:-1])
                | ~(partial[1:] & partial[:-1])
                | (start[1:] // unit[run][1:] != start[:-1] // unit[run][:-1]),
            )
        )
    )[: len(run)]
    total = np.bincount(group, weights=length)
    real = np.bincount(group, weights=np.where(hole, 0, length))
    encoded = partial & (real[group] > 0) & (real[group] < total[group])
    lcn = np.where(hole, NO_PLACE, owned.lcn[run] + start - owned.vcn[run])
    keep = ~(encoded & hole)
    return attribute[keep], start[keep], lcn[keep], length[keep], encoded[keep]


def _inline(owned: Owned, content: Content) -> Extents:
    """Content in records.  The last two bytes of every 512 lie in the update sequence."""
    ntfs, values = owned.ntfs, owned.scan.resident
    which = np.flatnonzero((content.stream_value >= 0) & (values.length > 0))
    start = values.at[which]
    end = start + values.length[which]
    stride = on_disk.STRIDE
    # Pieces alternate: up to the two bytes, and these.
    first, last = start // stride, (end - 1) // stride
    many = 2 * (last - first + 1)
    owner = np.repeat(np.arange(len(which)), many)
    within = np.arange(len(owner)) - np.repeat(np.cumsum(many) - many, many)
    block, tail = first[owner] + within // 2, within % 2
    low = np.maximum(block * stride + tail * (stride - 2), start[owner])
    high = np.minimum(block * stride + np.where(tail, stride, stride - 2), end[owner])
    keep = high > low
    owner, block, tail, low, high = (a[keep] for a in (owner, block, tail, low, high))
    record = values.record[which][owner]
    offset = low
    moved = np.flatnonzero(tail)
    if len(moved):
        array = _update_sequence(owned, record[moved])
        offset = low.copy()
        offset[moved] = array + 2 * (block[moved] + 1) + (low[moved] - block[moved] * stride - 510)
    place = ntfs.mft.places(record * ntfs.boot.record + offset) + ntfs.volume.offset
    target = values.type[which] == on_disk.REPARSE_POINT
    return Extents.of(
        owned.value_inode[which][owner],
        INLINE,
        low - start[owner],
        place,
        high - low,
        content.stream_value[which][owner],
        target[owner],
    )


def _update_sequence(owned: Owned, record: Array) -> Array:
    """Where in each record its update sequence array lies."""
    found, position = np.unique(record, return_inverse=True)
    at = np.searchsorted(owned.scan.records.number, found)
    return owned.scan.records.update[at][position]
