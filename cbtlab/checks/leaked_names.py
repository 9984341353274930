"""Names of excluded files that are still to be read where no kept file's content lies.

A delete leaves names behind: in the gaps of folders, in records that are free, in the journal.
A name that a kept file has too, or has in its own, is not told, nor is one of few bytes.  Names
are a report beside the check: it is content that must be gone.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from cbtlab.checks.hits import Hits
from cbtlab.checks.material import Material
from cbtlab.checks.needles import Needles
from cbtlab.checks.verdict import EVIDENCE_LIMIT, item
from cbtlab.leftovers.places import Places
from cbtlab.leftovers.table import NAME

SHORTEST = 6  # bytes of a name as it lies; of fewer too many stand somewhere by chance
_LONG_RECORD, _SECOND = 13, slice(5, 11)  # units of a record of FAT that holds a long name
_RECORD = 15  # units of a record of exFAT


class LeakedNames:
    """The names that backup ``k`` excludes, in the forms in which its file system writes them."""

    def __init__(self, m: Material) -> None:
        assert m.before is not None and m.exclusion is not None
        self._m = m
        names = m.before.names
        out = set(m.exclusion.files["path"])
        gone = names["path"].isin(out) & (names["type"] != "directory") & (names["stream"] == 0)
        forms: dict[bytes, str] = {}
        for path, raw in zip(names.loc[gone, "path"], names.loc[gone, "raw"], strict=True):
            for form in written(bytes(raw).rpartition(b"/")[2], m.before.fs):
                forms.setdefault(form, str(path))
        self._forms = list(forms)
        self._paths = list(forms.values())
        self._kept = [bytes(raw).rpartition(b"/")[2] for raw in names.loc[~gone, "raw"]]
        self.needles = Needles.of(self._forms)

    def items(self, hits: Hits, places: Places | None) -> tuple[list[dict[str, Any]], int]:
        """Return evidence for the first places with a name, and how many there are."""
        assert self._m.before is not None
        found = np.unique(hits.number)
        forms = [self._forms[n] for n in found.tolist()]
        also = _within_kept(forms, self._kept, self._m.before.fs)
        hits = hits[~np.isin(hits.number, found[also])]
        order = np.argsort(hits.offset, kind="stable")
        offset, number = hits.offset[order], hits.number[order]
        # One form may hold another: a place is told once, by the longest.
        _, first = np.unique(offset, return_index=True)
        offset, number = offset[first], number[first]
        shown = offset[:EVIDENCE_LIMIT]
        kinds = [(None, None)] * len(shown) if places is None else places.of(shown)
        made = [
            item(
                **{"class": NAME},
                owner=owner,
                block=at // self._m.granularity,
                offset=at,
                length=len(self._forms[n]),
                path=self._paths[n],
                link=self._m.link_of(at) or self._m.link_name,
                note="its name" + (f", in: {kind}" if kind else ""),
            )
            for at, n, (kind, owner) in zip(shown.tolist(), number.tolist(), kinds, strict=False)
        ]
        return made, len(offset)


def written(leaf: bytes, fs: str) -> list[bytes]:
    """The forms in which a name may lie: as it is, in UTF-16, and as records of FAT cut it."""
    found = [leaf]
    try:
        units = leaf.decode().encode("utf-16-le")
    except UnicodeDecodeError:
        units = b""
    found.append(units)
    if fs == "exfat":
        found += [units[at : at + 2 * _RECORD] for at in range(0, len(units), 2 * _RECORD)]
    elif fs.startswith(("fat", "vfat")):
        step = 2 * _LONG_RECORD
        for at in range(0, len(units), step):
            found.append(units[at : at + step][2 * _SECOND.start : 2 * _SECOND.stop])
        stem, dot, ending = leaf.upper().rpartition(b".")
        stem, ending = (stem, ending) if dot else (ending, b"")
        if len(stem) <= 8 and len(ending) <= 3:
            found.append((stem.ljust(8) + ending.ljust(3))[1:].rstrip())  # a delete takes the first
    return [form for form in dict.fromkeys(found) if len(form) >= SHORTEST]


def _within_kept(forms: list[bytes], kept: list[bytes], fs: str) -> np.ndarray[Any, Any]:
    """Which forms a kept name has too, or has within it."""
    also = np.zeros(len(forms), np.bool_)
    if not forms:
        return also
    lines = [*kept, *(form for leaf in kept for form in written(leaf, fs))]
    blob = np.frombuffer(b"\0\0/\0".join(lines), np.uint8)
    _, number = Needles.of(forms).places(blob)
    also[number] = True
    return also
