"""Rules to files to extents: what a backup leaves out, and where it lies.

Rules are gitignore patterns, read by pathspec, with git's own meaning: case
counts, the last rule that names a path decides, and below a folder that a rule
names nothing can be taken back.  The oracle is ``git check-ignore``.

`excluded` gives `X_k` of the method: the whole file-system blocks of the files
that the rules name, mapped on the snapshot *before* the delete, less what the
snapshot after the delete still has in use.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
from pathspec import GitIgnoreSpec

from cbtlab.bitmap import Bitmap
from cbtlab.errors import InputError
from cbtlab.files.extents import DATA, HOLE, KINDS, META, UNWRITTEN, Extents, category
from cbtlab.files.volume_map import VolumeMap

__all__ = ["Exclusion", "Rules", "excluded", "idle", "match", "read_rules"]

#: How pathspec ends the expression of a pattern, so that it also matches what lies below; and
#: the end that matches the path itself.  A folder's path ends with a slash here.
_ENDS = (
    ("(?:(?P<ps_d>/)|$)", r"/?\Z"),
    ("(?:(?P<ps_d>/).*)?$", r"/?\Z"),
    ("(?P<ps_d>/).*$", r"/\Z"),
    ("(?P<ps_d>/)", r"/\Z"),
    ("/.*$", "/."),
    ("/", "/."),
)

_MANY_STARS = re.compile(r"(?:(?<=/)|(?<=^!)|^)\*{3,}(?=/|\s*$)")


class Rules:
    """Compiled patterns.  Raises InputError for one that cannot be read."""

    def __init__(self, patterns: Sequence[str]) -> None:
        self._rules: list[tuple[re.Pattern[str], bool]] = []
        self._folders: dict[str, bool] = {"": False}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # re's, about "[" within brackets
            for line in patterns:
                self._add(line)
        self._rules.reverse()

    def _add(self, line: str) -> None:
        try:
            parsed = GitIgnoreSpec.from_lines([_plain(line)]).patterns
        except (ValueError, re.error) as error:
            raise InputError(f"pattern {line!r}", "is not a gitignore pattern") from error
        for pattern in parsed:
            if pattern.include is not None and pattern.regex is not None:
                own = re.compile(_of_the_path_itself(pattern.regex.pattern), re.DOTALL)
                self._rules.append((own, pattern.include))

    def names(self, path: str) -> bool:
        """Whether the rules name this path (without a slash before it; behind it: a folder)."""
        above, _, _ = path.rstrip("/").rpartition("/")
        return self._folder(above) or self._own(path)

    def _folder(self, path: str) -> bool:
        known = self._folders.get(path)
        if known is None:
            above, _, _ = path.rpartition("/")
            known = self._folders[path] = self._folder(above) or self._own(path + "/")
        return known

    def _own(self, path: str) -> bool:
        for expression, include in self._rules:
            if expression.search(path):
                return include
        return False


def _plain(line: str) -> str:
    """The same rule in words that pathspec takes as git does.

    ``***`` is ``**``; ``x/**/`` is every folder below ``x``, and not ``x/``.
    """
    line = _MANY_STARS.sub("**", line)
    bare = line.rstrip()
    return bare + "*/" if bare.endswith("/**/") else line


def _of_the_path_itself(expression: str) -> str:
    for end, own in _ENDS:
        if expression.endswith(end):
            return expression[: -len(end)] + own
    return expression


def read_rules(file: Path | None, more: Sequence[str] = ()) -> list[str]:
    """Return the patterns of a file and then ``more``; each must be one that can be read.

    As git reads it: UTF-8, perhaps with a mark at its start, one pattern a line, which a line
    feed ends and nothing else; a carriage return before it is not part of the pattern.
    """
    patterns: list[str] = []
    if file is not None:
        try:
            lines = file.read_bytes().decode("utf-8-sig").split("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(file, f"cannot be read: {error}", "one pattern a line") from error
        lines = [line.removesuffix("\r") for line in lines]
        patterns += [line for line in lines if line.strip(" \t") and not line.startswith("#")]
    for pattern in more:
        if "\n" in pattern:
            raise InputError(
                f"pattern {pattern!r}", "has a line break", "give every pattern by itself"
            )
    patterns += more
    Rules(patterns)
    return patterns


def match(patterns: Sequence[str], names: pd.DataFrame | Sequence[str]) -> npt.NDArray[np.bool_]:
    """Whether the patterns name each path, folders included; the root is never named.

    ``names`` is ``VolumeMap.names``, or paths that begin with ``/``, a folder's ending with
    ``/``.  Of bytes that are not UTF-8 each is one character, which ``?`` and ``*`` match.
    """
    rules = Rules(patterns)
    if isinstance(names, pd.DataFrame):
        folder = (names["type"] == "directory").tolist()
        paths = [
            raw.decode(errors="surrogateescape") + "/" * below
            for raw, below in zip(names["raw"].tolist(), folder, strict=True)
        ]
    else:
        paths = list(names)
    own = (path.lstrip("/") for path in paths)
    return np.fromiter((path != "" and rules.names(path) for path in own), np.bool_, len(paths))


def idle(patterns: Sequence[str], names: pd.DataFrame) -> list[str]:
    """Return the patterns that by themselves name no file and no folder; comments name nothing.

    Of one that takes back (``!``) it is told whether there is anything to take back.
    """
    paths = [
        raw.decode(errors="surrogateescape").lstrip("/") + "/" * (kind == "directory")
        for raw, kind in zip(names["raw"].tolist(), names["type"].tolist(), strict=True)
    ]
    some = []
    for pattern in dict.fromkeys(patterns):
        if pattern.strip() and not pattern.startswith("#"):
            rules = Rules([pattern.removeprefix("!")])
            if not any(path not in ("", "/") and rules.names(path) for path in paths):
                some.append(pattern)
    return some


@dataclass(frozen=True)
class Exclusion:
    """What the rules of one backup leave out.

    ``files`` has one row a name that a rule gives: ``path``, ``inode``, ``size``, ``gone`` (the
    name is not on the snapshot after the delete), ``blocks`` (of the file system, that the
    inode held) and ``linked`` (a name that no rule gives, so that the content stays; or "").
    ``extents`` has ``path``, ``inode``, ``kind``, ``physical``, ``length`` of those whose content
    goes.  ``mask`` is `X_k`.  ``subtracted`` lists what the snapshot after the delete still has
    in use: ``offset``, ``length``, ``path`` and ``owner``, which is "" where there is none.
    ``remaining`` are excluded names that are still there.
    """

    files: pd.DataFrame
    extents: pd.DataFrame
    mask: Bitmap
    subtracted: pd.DataFrame
    remaining: list[str]


def excluded(before: VolumeMap, after: VolumeMap, patterns: Sequence[str]) -> Exclusion:
    """Map what ``patterns`` name on the snapshot before (`S_k`) and after (`S_k*`) the delete.

    Regular files, symlinks and special files are excluded; a folder that a rule names stands
    for what is below it.  Raises InputError when the two are not the same volume.
    """
    _same_volume(before, after)
    names = before.names
    leaf = (names["type"] != "directory").to_numpy()
    named = match(patterns, names) & leaf
    files = _files(names, named & leaf, after)
    going = files.loc[files["linked"] == "", ["inode", "path"]].drop_duplicates("inode")
    paths = dict(zip(going["inode"].tolist(), going["path"].tolist(), strict=True))
    paths |= {
        holder: path for inode, path in paths.items() for holder in before.value_holders(inode)
    }
    mapped = before.arrays
    mapped = mapped[np.isin(mapped.inode, np.array(list(paths), np.int64))]
    mapped = mapped[mapped.kind != HOLE]
    whole = mapped[np.isin(mapped.kind, (DATA, UNWRITTEN, META))]
    claim = Bitmap.from_ranges(
        whole.physical,
        whole.length,
        volume_size=before.in_use.volume_size,
        granularity=before.in_use.granularity,
    )
    files["blocks"] = _blocks(before, files)
    files["size"] = before.inodes["size"].reindex(files["inode"], fill_value=0).to_numpy()
    taken = claim & after.in_use
    return Exclusion(
        files=files[["path", "inode", "size", "gone", "blocks", "linked"]],
        extents=_table(mapped, paths),
        mask=claim - taken,
        subtracted=_subtracted(before, after, taken),
        remaining=_remaining(after, patterns, set(files["path"])),
    )


def _same_volume(before: VolumeMap, after: VolumeMap) -> None:
    for what in ("uuid", "block_size", "size", "offset"):
        first, second = getattr(before, what), getattr(after, what)
        if first != second:
            raise InputError(
                "the snapshot before and after the delete",
                f"differ in {what}: {first} and {second}",
                "give the two images of one snapshot",
            )


def _files(names: pd.DataFrame, named: npt.NDArray[np.bool_], after: VolumeMap) -> pd.DataFrame:
    found: pd.DataFrame = names.loc[named, ["path", "inode"]].reset_index(drop=True)
    others = names.loc[~named, ["path", "inode"]].drop_duplicates("inode").set_index("inode")
    found["linked"] = others["path"].reindex(found["inode"]).fillna("").to_numpy()
    found["gone"] = ~found["path"].isin(set(after.names["path"])).to_numpy()
    return found


def _blocks(before: VolumeMap, files: pd.DataFrame) -> npt.NDArray[np.int64]:
    """How many blocks the inode of each file holds."""
    mapped = before.arrays
    mapped = mapped[np.isin(mapped.kind, (DATA, UNWRITTEN, META))]
    inode, which = np.unique(mapped.inode, return_inverse=True)
    held = np.bincount(which, weights=mapped.length, minlength=len(inode)) // before.block_size
    index = pd.Series(held, index=inode)
    wanted = files["inode"].astype(np.int64)
    return np.asarray(index.reindex(wanted, fill_value=0), np.int64)


def _table(mapped: Extents, paths: dict[int, str]) -> pd.DataFrame:
    inode, which = np.unique(mapped.inode, return_inverse=True)
    labels = np.array([paths[number] for number in inode.tolist()], object)
    table: pd.DataFrame = pd.DataFrame(
        {
            "path": labels[which] if len(labels) else np.empty(0, object),
            "inode": mapped.inode.astype(np.uint64),
            "kind": category(mapped.kind, KINDS),
            "physical": mapped.physical.astype(np.uint64),
            "length": mapped.length.astype(np.uint64),
        }
    )
    return table


def _subtracted(before: VolumeMap, after: VolumeMap, taken: Bitmap) -> pd.DataFrame:
    """The taken blocks with who held them and who holds them now, equal neighbours joined."""
    block = taken.indices().astype(np.int64)
    offset = block * taken.granularity
    path, owner = before.owners(offset), after.owners(offset)
    same = (np.diff(block) == 1) & (path[1:] == path[:-1]) & (owner[1:] == owner[:-1])
    first = np.flatnonzero(np.concatenate(([True], ~same)))[: len(block)]
    count = np.diff(np.concatenate((first, [len(block)])))
    nobody = np.isin(owner[first].astype(str), ("<free>", "<allocated, no owner>"))
    table: pd.DataFrame = pd.DataFrame(
        {
            "offset": offset[first].astype(np.uint64),
            "length": (count * taken.granularity).astype(np.uint64),
            "path": path[first],
            "owner": np.where(nobody, "", owner[first]),
        }
    )
    return table


def _remaining(after: VolumeMap, patterns: Sequence[str], named: set[str]) -> list[str]:
    names = after.names
    leaf = (names["type"] != "directory").to_numpy()
    there = (match(patterns, names) | names["path"].isin(named).to_numpy()) & leaf
    return [str(path) for path in names.loc[there, "path"]]
