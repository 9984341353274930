"""What the rules would leave out, before anything is deleted: from the snapshot alone.

The blocks that stay although a rule names a file on them are told with their owner: a name
that no rule gives (a hard link), another file on the same blocks (a reflink), an inode that
is open and has no name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from cbtlab.bitmap import Bitmap
from cbtlab.exclude.claims import Going, Ints, claimed, named_rows, owned_parts, places
from cbtlab.files.extents import NOWHERE, PLACED, Extents
from cbtlab.files.volume_map import VolumeMap

LINK, SHARED = "hard link", "shared blocks"


@dataclass(frozen=True)
class Foreseen:
    """What a delete by these rules would free on one snapshot.

    ``named`` has one row a name that a rule gives: ``path``, ``inode``, ``stream``, ``size``,
    ``blocks``, ``linked``, ``rule``, as in `Exclusion.files`.  ``mask`` is what would be free.
    ``staying`` lists blocks of named files that stay: ``path``, ``owner``, ``why`` (a hard
    link, or shared blocks), ``bytes``.  ``unnamed`` lists inodes without a name that hold
    blocks, which no rule can name: ``inode``, ``size``, ``bytes``.
    """

    named: pd.DataFrame
    mask: Bitmap
    staying: pd.DataFrame
    unnamed: pd.DataFrame
    rules: dict[int, Bitmap]
    """What of ``mask`` each line frees, by its number."""


def foreseen(volume: VolumeMap, lines: Sequence[str]) -> Foreseen:
    """Judge the rules on a snapshot that nothing was deleted on."""
    named = named_rows(volume, lines)
    going = Going.of(volume, named)
    claim = going.claim(volume)
    staying = volume.arrays[~going.extents]
    shared = claim & claimed(volume, staying)
    mask = claim - shared
    return Foreseen(
        named=named.drop(columns=["gone"]),
        mask=mask,
        staying=_staying(volume, named, shared, going, staying),
        unnamed=_unnamed(volume),
        rules=_by_rule(volume, named, going, mask),
    )


def holders(extents: Extents, offsets: Ints) -> Ints:
    """An inode of ``extents`` that maps each byte, or -1."""
    placed = extents[np.isin(extents.kind, PLACED)]
    if not len(placed):
        return np.full(len(offsets), NOWHERE, np.int64)
    placed = placed[np.argsort(placed.physical, kind="stable")]
    end = placed.physical + placed.length
    # Of all that begin before a byte, the one that reaches farthest holds it if any does.
    reach = np.maximum.accumulate(end)
    farthest = np.maximum.accumulate(np.where(end == reach, np.arange(len(end)), 0))
    last = np.searchsorted(placed.physical, offsets, side="right") - 1
    at = farthest[np.maximum(last, 0)]
    hit = (last >= 0) & (end[at] > offsets)
    return np.where(hit, placed.inode[at], NOWHERE)


# Within -----------------------------------------------------------------------------------------


def _staying(
    volume: VolumeMap, named: pd.DataFrame, shared: Bitmap, going: Going, staying: Extents
) -> pd.DataFrame:
    linked = named[named["linked"] != ""].drop_duplicates(["inode", "code"])
    links: pd.DataFrame = pd.DataFrame(
        {
            "path": linked["path"],
            "owner": linked["linked"],
            "why": LINK,
            "bytes": linked["blocks"] * volume.block_size,
        }
    )
    at = places(shared)
    path = _labels(volume, holders(volume.arrays[going.extents], at))
    parts = owned_parts(shared, path, _labels(volume, holders(staying, at)))
    both = parts.groupby(["path", "owner"], as_index=False, sort=True)[["length"]].sum()
    others: pd.DataFrame = pd.DataFrame(
        {"path": both["path"], "owner": both["owner"], "why": SHARED, "bytes": both["length"]}
    )
    whole: pd.DataFrame = pd.concat([links, others], ignore_index=True)
    return whole.astype({"bytes": np.int64})


def _labels(volume: VolumeMap, inodes: Ints) -> npt.NDArray[np.object_]:
    numbers, which = np.unique(inodes, return_inverse=True)
    labels = [volume.label(n) if n != NOWHERE else "" for n in numbers.tolist()]
    return np.array([*labels, ""], object)[which]


def _unnamed(volume: VolumeMap) -> pd.DataFrame:
    """Inodes that nobody can reach by a name, and that hold blocks: open when the snapshot was."""
    mapped = volume.arrays
    mapped = mapped[np.isin(mapped.kind, PLACED)]
    held = pd.Series(mapped.length).groupby(mapped.inode).sum()
    inodes = volume.inodes
    without = ~np.isin(inodes.index, volume.names["inode"].unique())
    without &= inodes["type"].isin(["file", "symlink"]).to_numpy()
    numbers = inodes.index[without]
    numbers = numbers[[volume.label(int(n)).startswith("<inode ") for n in numbers]]
    bytes_ = held.reindex(numbers.astype(np.int64), fill_value=0).to_numpy()
    frame: pd.DataFrame = pd.DataFrame(
        {
            "inode": numbers.astype(np.uint64),
            "size": inodes.loc[numbers, "size"].to_numpy(),
            "bytes": bytes_,
        }
    )
    return frame[frame["bytes"] > 0].reset_index(drop=True)


def _by_rule(
    volume: VolumeMap, named: pd.DataFrame, going: Going, mask: Bitmap
) -> dict[int, Bitmap]:
    """The blocks of what goes by the line that names it first, at the mask's granularity."""
    mapped = volume.arrays[going.extents]
    columns = (named[name].tolist() for name in ("inode", "code", "path", "rule"))
    rule_of: dict[Any, int] = {}
    for inode, code, path, rule in zip(*columns, strict=True):
        rule_of.setdefault((inode, code), rule)
        rule_of.setdefault(path, rule)
    pairs, which = np.unique(
        np.stack([mapped.inode, mapped.stream.astype(np.int64)]), axis=1, return_inverse=True
    )
    numbers = [
        rule_of.get((inode, code), rule_of[going.label(inode, code)])
        for inode, code in pairs.T.tolist()
    ]
    rules = np.array(numbers, np.int64)[which.reshape(-1)]
    return {
        int(number): claimed(volume, mapped[rules == number]) & mask
        for number in np.unique(rules).tolist()
    }
