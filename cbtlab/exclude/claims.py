"""`X_k` of the method: the whole file-system blocks of what the rules name.

Mapped on the snapshot *before* the delete, less what the snapshot after the delete still has
in use.  What goes is a pair of an inode and a stream: a named stream (of NTFS) can go while
its file stays.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from cbtlab.bitmap import Bitmap
from cbtlab.errors import InputError
from cbtlab.exclude.matching import NOBODY, decide, match
from cbtlab.files.extents import HOLE, KINDS, PLACED, Extents, category
from cbtlab.files.names import text
from cbtlab.files.volume_map import FREE, UNKNOWN, VolumeMap

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
_COLUMNS = ["path", "inode", "stream", "size", "gone", "blocks", "linked", "rule"]


@dataclass(frozen=True)
class Exclusion:
    """What the rules of one backup leave out.

    ``files`` has one row a name that a rule gives: ``path``, ``inode``, ``stream`` (empty),
    ``size``, ``gone`` (the name is not on the snapshot after the delete), ``blocks`` (of the
    file system, that the inode held), ``linked`` (a name that no rule gives, so that the
    content stays; or "") and ``rule`` (the number of the line that names it).  ``streams`` has
    the same of named streams, whose path is ``FILE:STREAM``.
    ``pairs`` has ``inode``, ``stream`` (a code of the volume's ``streams``) and ``path`` of what
    goes: the content of a file (code 0), and named streams.
    ``extents`` has ``path``, ``inode``, ``stream``, ``kind``, ``physical``, ``length`` of that;
    resident and inline content too, which lies in records that stay.  ``mask`` is `X_k`.
    ``subtracted`` lists what the snapshot after the delete still has in use: ``offset``,
    ``length``, ``path`` and ``owner``, which is "" where there is none.
    ``remaining`` are excluded names that are still there.
    """

    files: pd.DataFrame
    streams: pd.DataFrame
    pairs: pd.DataFrame
    extents: pd.DataFrame
    mask: Bitmap
    subtracted: pd.DataFrame
    remaining: list[str]


def excluded(before: VolumeMap, after: VolumeMap, lines: Sequence[str]) -> Exclusion:
    """Map what ``lines`` name on the snapshot before (`S_k`) and after (`S_k*`) the delete.

    Regular files, symlinks and special files are excluded; a folder that a rule names stands
    for what is below it, and for its own named streams.  Raises InputError when the two are
    not the same volume.
    """
    _same_volume(before, after)
    named = named_rows(before, lines)
    named["gone"] = ~named["path"].isin(set(after.names["path"])).to_numpy()
    going = Going.of(before, named)
    claim = going.claim(before)
    taken = claim & after.in_use
    mapped = before.arrays[going.extents & (before.arrays.kind != HOLE)]
    return Exclusion(
        files=_part(named, named["code"] == 0),
        streams=_part(named, named["code"] != 0),
        pairs=going.table(),
        extents=_table(before, mapped, going),
        mask=claim - taken,
        subtracted=owned_parts(taken, before.owners(places(taken)), after.owners(places(taken))),
        remaining=_remaining(after, lines, set(named["path"])),
    )


def named_rows(volume: VolumeMap, lines: Sequence[str]) -> pd.DataFrame:
    """The names that the rules give, but for folders: the columns of `Exclusion.files`.

    And ``code``, of the stream; ``gone`` is not known here, and false.
    """
    names = volume.names
    rule = decide(lines, volume)
    leaf = (names["type"] != "directory").to_numpy()
    chosen = (rule != NOBODY) & leaf
    found: pd.DataFrame = names.loc[chosen, ["path", "inode", "stream"]].reset_index(drop=True)
    found = found.rename(columns={"stream": "code"})
    found["rule"] = rule[chosen]
    others = names.loc[~chosen & leaf, ["path", "inode", "stream"]]
    others = others.drop_duplicates(["inode", "stream"]).set_index(["inode", "stream"])["path"]
    wanted = pd.MultiIndex.from_frame(found[["inode", "code"]])
    found["linked"] = others.reindex(wanted).fillna("").to_numpy()
    found["stream"] = [text(volume.streams.names[code]) for code in found["code"].tolist()]
    found["size"] = _sizes(volume, found)
    found["blocks"] = _blocks(volume, found)
    found["gone"] = False
    return found


@dataclass(frozen=True)
class Going:
    """What goes: whole inodes, and single streams of inodes that stay.

    ``inodes`` maps an inode to a path of it, ``streams`` an inode and a code; ``holders`` are
    inodes that serve these alone (values of extended attributes).  ``extents`` marks what of
    the volume's extents belongs to any of them.
    """

    inodes: dict[int, str]
    streams: dict[tuple[int, int], str]
    holders: dict[int, str]
    extents: Bools

    @classmethod
    def of(cls, volume: VolumeMap, named: pd.DataFrame) -> Going:
        """What of the named rows no other name keeps."""
        free = named[named["linked"] == ""]
        whole = free[free["code"] == 0].drop_duplicates("inode")
        inodes = dict(zip(whole["inode"].tolist(), whole["path"].tolist(), strict=True))
        single = free[free["code"] != 0].drop_duplicates(["inode", "code"])
        streams = {
            (inode, code): path
            for inode, code, path in zip(
                *(single[name].tolist() for name in ("inode", "code", "path")), strict=True
            )
        }
        holders = {
            holder: path
            for inode, path in inodes.items()
            for holder in volume.value_holders(inode)
            if holder not in inodes
        }
        mapped = volume.arrays
        part = np.isin(mapped.inode, np.array([*inodes, *holders], np.int64))
        if streams:
            pairs = pd.MultiIndex.from_tuples(list(streams))
            keys = pd.MultiIndex.from_arrays([mapped.inode, mapped.stream.astype(np.int64)])
            part |= np.asarray(keys.isin(pairs), np.bool_)
        return cls(inodes, streams, holders, part)

    def claim(self, volume: VolumeMap) -> Bitmap:
        """The whole blocks of what goes, shared or not."""
        return claimed(volume, volume.arrays[self.extents])

    def table(self) -> pd.DataFrame:
        """`Exclusion.pairs`."""
        rows = [(inode, 0, path) for inode, path in self.inodes.items()]
        rows += [(inode, code, path) for (inode, code), path in self.streams.items()]
        frame: pd.DataFrame = pd.DataFrame(rows, columns=["inode", "stream", "path"])
        return frame.astype({"inode": np.uint64, "stream": np.int32, "path": object})

    def label(self, inode: int, code: int) -> str:
        """The path of what goes and holds an extent."""
        own = self.streams.get((inode, code))
        return own or self.inodes.get(inode) or self.holders[inode]


def claimed(volume: VolumeMap, mapped: Extents) -> Bitmap:
    """The whole blocks that extents hold; what lies inside of records holds none."""
    whole = mapped[np.isin(mapped.kind, PLACED)]
    return Bitmap.from_ranges(
        whole.physical,
        whole.length,
        volume_size=volume.in_use.volume_size,
        granularity=volume.in_use.granularity,
    )


def places(blocks: Bitmap) -> Ints:
    """Where each block of a bitmap begins, in bytes."""
    return blocks.indices().astype(np.int64) * blocks.granularity


def owned_parts(
    taken: Bitmap, path: npt.NDArray[np.object_], owner: npt.NDArray[np.object_]
) -> pd.DataFrame:
    """Blocks with who held them and who holds them now, equal neighbours joined.

    ``offset`` and ``length`` in bytes, ``path``, and ``owner``: "" where there is none.
    """
    block = taken.indices().astype(np.int64)
    same = (np.diff(block) == 1) & (path[1:] == path[:-1]) & (owner[1:] == owner[:-1])
    first = np.flatnonzero(np.concatenate(([True], ~same)))[: len(block)]
    count = np.diff(np.concatenate((first, [len(block)])))
    nobody = np.isin(owner[first].astype(str), (FREE, UNKNOWN))
    table: pd.DataFrame = pd.DataFrame(
        {
            "offset": (block[first] * taken.granularity).astype(np.uint64),
            "length": (count * taken.granularity).astype(np.uint64),
            "path": path[first],
            "owner": np.where(nobody, "", owner[first]),
        }
    )
    return table


# Within -----------------------------------------------------------------------------------------


def _same_volume(before: VolumeMap, after: VolumeMap) -> None:
    for what in ("uuid", "block_size", "size", "offset"):
        first, second = getattr(before, what), getattr(after, what)
        if first != second:
            raise InputError(
                "the snapshot before and after the delete",
                f"differ in {what}: {first} and {second}",
                "give the two images of one snapshot",
            )


def _part(named: pd.DataFrame, which: pd.Series[bool]) -> pd.DataFrame:
    return named.loc[which, _COLUMNS].reset_index(drop=True)


def _sizes(volume: VolumeMap, named: pd.DataFrame) -> Ints:
    size = volume.inodes["size"].reindex(named["inode"], fill_value=0).to_numpy().astype(np.int64)
    for row in np.flatnonzero(named["code"].to_numpy()).tolist():
        at = volume.streams.position(int(named["inode"].iloc[row]), int(named["code"].iloc[row]))
        size[row] = volume.streams.size[at]
    return size


def _blocks(volume: VolumeMap, named: pd.DataFrame) -> Ints:
    """How many blocks each inode holds, and each named stream."""
    mapped = volume.arrays
    mapped = mapped[np.isin(mapped.kind, PLACED)]
    inode = pd.Series(mapped.length).groupby(mapped.inode).sum()
    wanted = named["inode"].to_numpy().astype(np.int64)
    held = inode.reindex(wanted, fill_value=0).to_numpy().astype(np.int64)
    code = named["code"].to_numpy()
    if code.any():
        pairs = pd.Series(mapped.length).groupby([mapped.inode, mapped.stream]).sum()
        single = pairs.reindex(pd.MultiIndex.from_arrays([wanted, code]), fill_value=0)
        held = np.where(code != 0, single.to_numpy(), held)
    return np.asarray(held // volume.block_size, np.int64)


def _table(volume: VolumeMap, mapped: Extents, going: Going) -> pd.DataFrame:
    pairs = mapped.inode * (1 << 20) + mapped.stream  # no volume has a million streams' names
    _, first, which = np.unique(pairs, return_index=True, return_inverse=True)
    inode, code = mapped.inode[first].tolist(), mapped.stream[first].tolist()
    labels = [going.label(n, c) for n, c in zip(inode, code, strict=True)]
    table: pd.DataFrame = pd.DataFrame(
        {
            "path": np.array([*labels, ""], object)[which],
            "inode": mapped.inode.astype(np.uint64),
            "stream": pd.Series(
                [text(volume.streams.names[c]) for c in mapped.stream.tolist()], dtype=object
            ),
            "kind": category(mapped.kind, KINDS),
            "physical": mapped.physical.astype(np.uint64),
            "length": mapped.length.astype(np.uint64),
        }
    )
    return table


def _remaining(after: VolumeMap, lines: Sequence[str], named: set[str]) -> list[str]:
    names = after.names
    leaf = (names["type"] != "directory").to_numpy()
    there = (match(lines, after) | names["path"].isin(named).to_numpy()) & leaf
    return [str(path) for path in names.loc[there, "path"]]
