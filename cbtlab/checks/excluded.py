"""excluded: what a rule names is gone, its place is zero, and its content is nowhere."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import numpy as np

from cbtlab.checks.content import (
    Content,
    excluded_inodes,
    fingerprints,
    kept_beside,
    kept_ranges,
)
from cbtlab.checks.material import Material, link_name
from cbtlab.checks.pieces import Search
from cbtlab.checks.streams import Bools, Ints, not_zero, read_ranges, rows, table
from cbtlab.checks.verdict import EVIDENCE_LIMIT, Verdict, count, item, verdict
from cbtlab.checks.windows import WIDTH
from cbtlab.exclude import idle
from cbtlab.files.ranges import Ranges
from cbtlab.images import Image, RawImage, RawLayer
from cbtlab.units import SECTOR

NAME = "excluded"
_STILL = {True: "still on S_k*", False: "on S_k*, and not on S_k"}
_RULES_TOLD = 3
_COMPARED = 1000  # finds that are compared byte by byte; 64 bits vouch for the others


@dataclass(frozen=True)
class Finds:
    """Where excluded content was found: offsets, lengths, whose it is, as of which backup."""

    offset: Ints
    length: Ints
    told: list[tuple[str, int]]


def excluded(m: Material) -> Verdict:
    """No excluded file is on S_k*, R_k is zero on X_k, and their content is in neither.

    Looked into are all of R_k and the image file of link k: for whole sectors in
    their places, and at every byte for short pieces; under "allocated" also, in
    what of R_k no kept file holds, for parts of sectors: 287 bytes in a row of a
    file are found there, and less may not be.  Under other policies free space
    is kept, so the finds are a report.
    """
    if m.unjudged:
        return verdict(NAME, None, m.unjudged)
    if m.exclusion is None or m.before is None or m.content is None:
        return verdict(NAME, None, "no file system was recognised, so no file can be excluded")
    m.content.add(m)
    known = set(m.exclusion.files["path"])
    present = [
        item(path=path, note="a rule names it, and it is " + _STILL[path in known])
        for path in m.exclusion.remaining
    ]
    shown = _not_zero(m)
    finds = _found(m, m.content)
    evidence = [*present, *shown[:EVIDENCE_LIMIT], *_find_items(m, finds)]
    total = len(present) + len(shown) + len(finds.offset)
    stray = _stray(m, m.content, finds)
    evidence += stray
    total += len(stray)
    files = count(len(m.exclusion.files), "excluded file")
    there = sum(path in known for path in m.exclusion.remaining)
    new = len(present) - there
    told = (
        f"{there:,} of {files} still on S_k*, "
        + (f"{count(new, 'more file')} that a rule names on S_k* alone, " if new else "")
        + f"{count(len(shown), 'block')} of X_k not zero in R_k, "
        f"their content found in {count(len(finds.offset) + len(stray), 'place')}"
    )
    if m.policy != "allocated":
        summary = f"policy {m.policy} keeps free space, so this is a report: {told}{_idle(m)}"
        return verdict(NAME, None, summary, evidence, total)
    if evidence:
        return verdict(NAME, False, told + _idle(m), evidence, total)
    earlier = _earlier(m, m.content)
    summary = (
        f"{files} gone from S_k*, X_k zero in R_k, and none of "
        f"{count(len(m.content.keys), 'sector')} and "
        f"{count(len(m.content.pieces), 'short piece')} of their content found"
    )
    if earlier:
        summary += f"; earlier restore points keep {count(len(earlier), 'file')} as they had them"
    return verdict(NAME, True, summary + _idle(m), earlier)


def _idle(m: Material) -> str:
    """Say which rules name nothing, for a summary: they may be misspelt."""
    assert m.before is not None
    found = idle(m.interval.patterns, m.before.names)
    if not found:
        return ""
    shown = ", ".join(f"{pattern!r}" for pattern in found[:_RULES_TOLD])
    more = f" and {len(found) - _RULES_TOLD:,} more" if len(found) > _RULES_TOLD else ""
    return f"; {count(len(found), 'rule')} {'names' if len(found) == 1 else 'name'} " + (
        f"nothing on S_k: {shown}{more}"
    )


def _not_zero(m: Material) -> list[dict[str, Any]]:
    """Return evidence for every block of X_k that R_k shows."""
    assert m.exclusion is not None and m.restored is not None
    mask = m.exclusion.mask
    offset, length = (array.astype(np.int64) for array in mask.extents())
    found = [np.zeros(0, np.int64)]
    for start, _, part in read_ranges(m.restored, offset, length):
        if part is not None:
            blocks = not_zero(table(part, mask.granularity))
            found.append(start + np.flatnonzero(blocks) * mask.granularity)
    offsets = np.concatenate(found)
    paths = m.owners(offsets[:EVIDENCE_LIMIT]) + [None] * max(0, len(offsets) - EVIDENCE_LIMIT)
    return [
        item(
            block=at // m.granularity,
            offset=at,
            length=min(mask.granularity, m.size - at),
            path=path,
            link=m.link_of(at),
            note="a block of an excluded file, and not zero in R_k",
        )
        for at, path in zip(offsets.tolist(), paths, strict=True)
    ]


def _found(m: Material, content: Content) -> Finds:
    """Search R_k, and forget what turns out to be a kept file's content too."""
    assert m.restored is not None
    offset, key = _sectors(m.restored, content)
    pieces = list(content.pieces)
    spots = np.array(list(Search(pieces).find(m.restored)), np.int64).reshape(-1, 2)
    place, number = spots[:, 0], spots[:, 1]
    long = np.array([len(piece) for piece in pieces], np.int64)
    kept = kept_ranges(m)
    common = np.zeros(len(content.keys), np.bool_)
    mine = _within(kept, offset, np.full(len(offset), SECTOR))
    common[_same_sectors(m.snapshot, content, offset[mine], key[mine])] = True
    shared = {
        pieces[n]
        for at, n in spots[_within(kept, place, long[number])].tolist()
        if m.snapshot.read(at, len(pieces[n])) == pieces[n]
    }
    found = np.array(sorted({n for _, n in spots.tolist()}), np.int64)
    beside = kept_beside(m) if len(found) else b""
    shared |= {pieces[n] for n in found.tolist() if pieces[n] in beside}
    loose, told_of_loose = _unaligned(m, content, kept, offset)
    real = ~common[key]
    offset, key = offset[real], key[real]
    real = _identical(m, content, offset, key)
    told = [(content.path_of(i), int(content.origin[i])) for i in key[real].tolist()]
    rest = np.array([pieces[n] not in shared for n in number.tolist()], np.bool_)
    rest = rest.reshape(-1)  # no find gives an empty array of another shape
    told += [
        (content.pieces[pieces[n]][1], content.pieces[pieces[n]][0]) for n in number[rest].tolist()
    ]
    finds = Finds(
        np.concatenate([offset[real], place[rest], loose]),
        np.concatenate(
            [np.full(int(real.sum()), SECTOR), long[number[rest]], np.full(len(loose), WIDTH)]
        ),
        told + told_of_loose,
    )
    content.drop(common, shared)
    return finds


def _unaligned(
    m: Material, content: Content, kept: Ranges, aligned: Ints
) -> tuple[Ints, list[tuple[str, int]]]:
    """Search what no kept file holds for parts of sectors, at every byte.

    ``aligned`` are the sectors that were found whole, and are not told again.
    """
    assert m.restored is not None
    windows = content.windows
    place, number = windows.find(m.restored, kept)
    new = ~np.isin(place // SECTOR * SECTOR, aligned)
    place, number = place[new], number[new]
    if not len(place):
        return place, []
    chosen = np.unique(number)
    parts = _parts(m, content, chosen)
    spots = np.array(list(Search(parts).find(m.snapshot)), np.int64).reshape(-1, 2)
    shared = spots[_within(kept, spots[:, 0], np.full(len(spots), WIDTH)), 1]
    beside = kept_beside(m)
    also = np.array([part in beside for part in parts], np.bool_)
    also[shared] = True
    real = ~np.isin(number, chosen[also])
    place, number = place[real], number[real]
    told = [
        (content.sources[k].path_at(at), k)
        for k, at in zip(
            windows.origin[number].tolist(), windows.place[number].tolist(), strict=True
        )
    ]
    gone = np.zeros(len(windows.keys), np.bool_)
    gone[chosen[also]] = True
    windows.drop(gone)
    return place, told


def _parts(m: Material, content: Content, numbers: Ints) -> list[bytes]:
    """Read windows where they were taken from."""
    windows, parts = content.windows, [b""] * len(numbers)
    for k in np.unique(windows.origin[numbers]).tolist():
        with m.case.interval(int(k)).snapshot() as image:
            for n in np.flatnonzero(windows.origin[numbers] == k).tolist():
                parts[n] = image.read(int(windows.place[numbers[n]]), WIDTH)
    return parts


def _sectors(image: Image, content: Content) -> tuple[Ints, Ints]:
    """Return the offsets of the image's sectors that are content, and the key of each."""
    offsets, keys = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    if len(content.keys):
        for offset, data in image.chunks():
            sectors = rows(data, SECTOR)
            if sectors is None:
                continue
            seen = fingerprints(sectors)
            at = np.minimum(np.searchsorted(content.keys, seen), len(content.keys) - 1)
            hit = np.flatnonzero(content.keys[at] == seen)
            offsets.append(offset + hit * SECTOR)
            keys.append(at[hit])
    return np.concatenate(offsets), np.concatenate(keys)


def _within(ranges: Ranges, offset: Ints, length: Ints) -> Bools:
    """Return which spans lie whole in one of the ranges."""
    at = np.searchsorted(ranges.start, offset, side="right") - 1
    if not len(ranges.end):
        return np.zeros(len(offset), np.bool_)
    return np.asarray((at >= 0) & (offset + length <= ranges.end[np.maximum(at, 0)]))


def _same_sectors(image: Image, content: Content, offset: Ints, key: Ints) -> Ints:
    """Return which keys S_k itself has at these offsets: there a kept file holds them."""
    if not len(offset):
        return key
    order = np.argsort(offset)
    offset, key = offset[order], key[order]
    seen = [
        np.zeros(length // SECTOR, np.uint64) if part is None else fingerprints(table(part, SECTOR))
        for _, length, part in read_ranges(image, offset, np.full(len(offset), SECTOR))
    ]
    same = content.keys[key] == np.concatenate(seen)
    return np.asarray(key[same])


def _identical(m: Material, content: Content, offset: Ints, key: Ints) -> Bools:
    """Compare the first finds with what they are said to be, byte by byte."""
    assert m.restored is not None
    same = np.ones(len(offset), np.bool_)
    images: dict[int, Image] = {}
    try:
        for n, (at, i) in enumerate(zip(offset[:_COMPARED].tolist(), key.tolist(), strict=False)):
            origin = int(content.origin[i])
            if origin not in images:
                images[origin] = m.case.interval(origin).snapshot()
            want = images[origin].read(int(content.place[i]), SECTOR)
            same[n] = m.restored.read(at, SECTOR) == want
    finally:
        for image in images.values():
            image.close()
    return same


def _find_items(m: Material, finds: Finds) -> list[dict[str, Any]]:
    order = np.argsort(finds.offset, kind="stable")[:EVIDENCE_LIMIT]
    offsets = finds.offset[order]
    return [
        item(
            block=at // m.granularity,
            offset=at,
            length=finds.length[n],
            path=path,
            link=m.link_of(at) or m.link_name,
            note=_whose(*finds.told[n]),
        )
        for at, path, n in zip(offsets.tolist(), m.owners(offsets), order.tolist(), strict=True)
    ]


def _whose(path: str, k: int) -> str:
    return f"content of {path}, which backup {k} excludes"


def _stray(m: Material, content: Content, finds: Finds) -> list[dict[str, Any]]:
    """Search the image file of link k for content that R_k does not show."""
    assert m.chain is not None
    path = m.chain / m.link_name
    with RawImage(RawLayer(os.open(path, os.O_RDONLY | os.O_CLOEXEC), str(path))) as image:
        offset, key = _sectors(image, content)
        pieces = list(content.pieces)
        spots = list(Search(pieces).find(image))
    shown = {told[0] for told in finds.told}
    found = [
        (at, SECTOR, content.path_of(i), int(content.origin[i]))
        for at, i in zip(offset.tolist(), key.tolist(), strict=True)
    ]
    found += [
        (at, len(pieces[n]), content.pieces[pieces[n]][1], content.pieces[pieces[n]][0])
        for at, n in spots
    ]
    return [
        item(
            link=m.link_name,
            length=length,
            note=f"{_whose(whose, k)}, at byte {at} of the image file",
        )
        for at, length, whose, k in found
        if whose not in shown
    ]


def _earlier(m: Material, content: Content) -> list[dict[str, Any]]:
    """List the excluded files that earlier restore points kept, and note what this one keeps."""
    assert m.before is not None and m.exclusion is not None
    inodes = m.before.inodes
    files = inodes[inodes["type"] == "file"]
    born = files.set_index("crtime_ns", append=True).index
    out = files.index.isin(excluded_inodes(m))
    names = m.before.names.drop_duplicates("inode").set_index("inode")["path"]
    listed: dict[int, list[int]] = {}
    for k, kept in content.kept.items():
        for inode in files.index[out & born.isin(kept)].tolist():
            listed.setdefault(inode, []).append(k)
    content.kept[m.k] = born[~out]
    return [
        item(
            path=names[inode],
            link=link_name(backups[-1]),
            note="kept until then by restore point " + ", ".join(map(str, backups)),
        )
        for inode, backups in listed.items()
    ]
