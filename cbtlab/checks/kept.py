"""kept: every file that no rule names is in the backup, with all that makes it the same file."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

from cbtlab.checks.kept_content import changed_content
from cbtlab.checks.material import Material
from cbtlab.checks.verdict import Verdict, count, item, verdict
from cbtlab.errors import InputError
from cbtlab.exclude import match
from cbtlab.files import VolumeMap

NAME = "kept"
ATTRIBUTES = {
    "type": "type",
    "size": "size",
    "mode": "mode",
    "uid": "owner",
    "gid": "group",
    "nlink": "number of links",
    "mtime_ns": "modification time",
    "atime_ns": "access time",
    "ctime_ns": "change time",
    "crtime_ns": "birth time",
    "flags": "flags",
    "device": "device number",
    "project": "project",
}
_OWN_FLAGS = 0x1000 | 0x40000 | 0x80000 | 0x10000000
"""How the file system stores an inode (index, huge, extents, inline): no attribute of a file."""
_OF_A_PARENT = ("size", "mtime_ns", "atime_ns", "ctime_ns")  # what deleting a name in it changes


def kept(m: Material) -> Verdict:
    """Every kept file of S_k is in R_k: content, attributes, extended attributes and links.

    And R_k has no name that S_k does not have.  Left out are the named effects of
    the delete: size and times of a deleted name's folder, and change time and link
    count of an inode that lost a name.
    """
    if m.unjudged:
        return verdict(NAME, None, m.unjudged)
    if m.before is None:
        return verdict(NAME, None, "no file system was recognised, so no file can be compared")
    try:
        restored = m.restored_map
    except InputError as error:
        evidence = [item(link=m.link_name, note=error.fault)]
        return verdict(NAME, False, f"R_k cannot be mapped: {error.fault}", evidence)
    names, gone = _names(m, m.before)
    evidence = [*_lost_names(names, restored), *_new_names(m.before, restored)]
    inodes = pd.Index(names["inode"].unique())
    evidence += list(_changed_attributes(m.before, restored, names, gone, inodes))
    evidence += list(_changed_xattrs(m.before, restored, names, inodes))
    evidence += list(changed_content(m, restored, names))
    files = int((names["type"] == "file").sum())
    if evidence:
        wrong = len({entry.get("path") for entry in evidence})
        return verdict(NAME, False, f"{count(wrong, 'kept name')} not as on S_k", evidence)
    return verdict(
        NAME,
        True,
        f"{count(len(names), 'kept name')} ({count(files, 'file')}) are in R_k as on S_k: "
        "content, size, owner, mode, times, attributes, links",
    )


def _names(m: Material, before: VolumeMap) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the names of S_k that no rule names, and the others."""
    named = np.asarray(match(list(m.interval.patterns), before), np.bool_)
    return before.names[~named], before.names[named]


def _lost_names(names: pd.DataFrame, restored: VolumeMap) -> Iterator[dict[str, Any]]:
    there = restored.names.drop_duplicates("raw").set_index("raw")["inode"]
    found = there.reindex(names["raw"].to_numpy())
    lost = found.isna().to_numpy()
    for path in names["path"][lost]:
        yield item(path=path, note="is missing")
    moved = ~lost & (found.to_numpy() != names["inode"].to_numpy())
    for path in names["path"][moved]:
        yield item(path=path, note="is a name of another inode")


def _new_names(before: VolumeMap, restored: VolumeMap) -> Iterator[dict[str, Any]]:
    new = ~restored.names["raw"].isin(before.names["raw"])
    for path in restored.names.loc[new, "path"]:
        yield item(path=path, note="is new: S_k does not have it")


def _changed_attributes(
    before: VolumeMap,
    restored: VolumeMap,
    names: pd.DataFrame,
    gone: pd.DataFrame,
    inodes: pd.Index[Any],
) -> Iterator[dict[str, Any]]:
    """Compare the inodes of kept names, attribute by attribute."""
    common = inodes.intersection(restored.inodes.index).intersection(before.inodes.index)
    old, new = before.inodes.loc[common], restored.inodes.loc[common]
    still = set(restored.names["raw"])
    deleted = gone[np.array([raw not in still for raw in gone["raw"]], np.bool_)]
    # A named stream goes without a name of its inode, and without a change of the folder.
    unnamed = deleted[(deleted["type"] != "stream").to_numpy()]
    parents = _parents(before, unnamed)
    is_parent = common.isin(pd.Index(parents.index))
    lost_name = common.isin(pd.Index(deleted["inode"]))
    folders = parents[(unnamed["type"] == "directory").to_numpy()]
    links = old["nlink"].astype("int64").to_numpy(copy=True)
    links -= pd.Index(unnamed["inode"]).value_counts().reindex(common, fill_value=0).to_numpy()
    below = folders.index.value_counts().reindex(common, fill_value=0).to_numpy()
    links -= np.where(links > 1, below, 0)  # a folder with one link does not count those below
    first_name = names.drop_duplicates("inode").set_index("inode")["path"]
    for column, words in ATTRIBUTES.items():
        was = old[column].to_numpy() if column != "nlink" else links
        now = new[column].to_numpy()
        wrong = np.asarray(was != now, np.bool_)
        if column == "flags":
            wrong &= ((was ^ now) & ~np.uint32(_OWN_FLAGS)) != 0
        if column in _OF_A_PARENT:
            wrong &= ~is_parent
        if column == "ctime_ns":
            wrong &= ~lost_name
        for at in np.flatnonzero(wrong).tolist():
            yield item(path=first_name[common[at]], note=_told(column, words, was[at], now[at]))


def _parents(before: VolumeMap, deleted: pd.DataFrame) -> pd.Series[Any]:
    """Return the folder inode (index) of every deleted name."""
    folders = [bytes(raw).rpartition(b"/")[0] or b"/" for raw in deleted["raw"]]
    inode_of = before.names.drop_duplicates("raw").set_index("raw")["inode"]
    found = inode_of.reindex(folders)
    root = found.isna().to_numpy() & (np.array(folders, object) == b"/")
    numbers = np.where(root, before.root, found.fillna(0).to_numpy()).astype(np.uint64)
    return pd.Series(folders, index=pd.Index(numbers, name="inode"))


def _told(column: str, words: str, was: Any, now: Any) -> str:
    if column == "mode":
        return f"{words} is {int(now):o}, and was {int(was):o} on S_k"
    if column == "flags":
        return f"{words} are {int(now):#x}, and were {int(was):#x} on S_k"
    if column == "device":
        pair = [f"{int(number) >> 20}:{int(number) & 0xFFFFF}" for number in (now, was)]
        return f"{words} is {pair[0]}, and was {pair[1]} on S_k"
    if column.endswith("_ns"):
        stamps = [np.datetime_as_string(np.datetime64(int(t), "ns")) for t in (now, was)]
        return f"{words} is {stamps[0]}Z, and was {stamps[1]}Z on S_k"
    return f"{words} is {now}, and was {was} on S_k"


def _changed_xattrs(
    before: VolumeMap, restored: VolumeMap, names: pd.DataFrame, inodes: pd.Index[Any]
) -> Iterator[dict[str, Any]]:
    first_name = names.drop_duplicates("inode").set_index("inode")["path"]
    there = set(restored.inodes.index)
    for inode in inodes.tolist():
        if inode not in there:
            continue
        was, now = before.xattrs(inode), restored.xattrs(inode)
        if was != now:
            odd = sorted(name for name in was.keys() | now.keys() if was.get(name) != now.get(name))
            yield item(path=first_name[inode], note=f"extended attribute {odd[0]} is not as on S_k")
