"""excluded: what a rule names is gone, its place is zero, and its content is nowhere."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from cbtlab.checks.image_file import earlier, unseen
from cbtlab.checks.leaked_names import LeakedNames
from cbtlab.checks.leaks import Finds, Leaks
from cbtlab.checks.material import Material
from cbtlab.checks.streams import not_zero, read_ranges, table
from cbtlab.checks.verdict import EVIDENCE_LIMIT, Verdict, count, item, verdict
from cbtlab.exclude import idle
from cbtlab.leftovers import Places

NAME = "excluded"
_STILL = {True: "still on S_k*", False: "on S_k*, and not on S_k"}
_RULES_TOLD = 3
_PLACED = 10_000  # finds whose place is looked up, for the counts by class


def excluded(m: Material) -> Verdict:
    """No excluded file is on S_k*, R_k is zero on X_k, and their content is in neither.

    Looked into are all of R_k and the image file of link k: for whole sectors in
    their places, and, in what of R_k no kept file holds, at every byte for short
    pieces and for parts of sectors: 287 bytes in a row of a file are found there,
    and less may not be.  Each find is told with the class of
    its place and whose that is.  Under other policies free space is kept, so the
    finds are a report.  ``m.leaks`` gets the counts by class, and the names of
    excluded files that are still to be read, which are a report too.
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
    names = LeakedNames(m)
    search = Leaks(m, m.content, names.needles)
    finds = search.finds
    stray = unseen(m, m.content, search.searches)
    places = _places(m) if len(finds.offset) or len(search.named) or len(shown) else None
    m.leaks = _report(m, finds, stray, names.items(search.named, places), places)
    room = EVIDENCE_LIMIT - min(len(present) + len(stray), EVIDENCE_LIMIT // 2)
    some = shown[: max(room - len(finds.offset), room // 2)]
    _place(some, places)
    found = _find_items(m, finds, places, max(room - len(some), 0))
    evidence = [*present, *some, *found, *stray]
    total = len(present) + len(shown) + len(finds.offset) + len(stray)
    files = count(len(m.exclusion.files), "excluded file")
    there = sum(path in known for path in m.exclusion.remaining)
    new = len(present) - there
    told = (
        f"{there:,} of {files} still on S_k*, "
        + (f"{count(new, 'more file')} that a rule names on S_k* alone, " if new else "")
        + f"{count(len(shown), 'block')} of X_k not zero in R_k, "
        f"their content found in {count(len(finds.offset) + len(stray), 'place')}"
        + _by_class(m.leaks["classes"])
    )
    if m.policy != "allocated":
        summary = f"policy {m.policy} keeps free space, so this is a report: {told}{_idle(m)}"
        return verdict(NAME, None, summary, evidence, total)
    if evidence:
        return verdict(NAME, False, told + _idle(m), evidence, total)
    before = earlier(m, m.content)
    summary = (
        f"{files} gone from S_k*, X_k zero in R_k, and none of "
        f"{count(len(m.content.keys), 'sector')} and "
        f"{count(len(m.content.pieces), 'short piece')} of their content found"
    )
    if before:
        kept = len({entry["path"] for entry in before})
        summary += f"; earlier restore points keep {count(kept, 'file')} as they had them"
    return verdict(NAME, True, summary + _idle(m), before)


def _idle(m: Material) -> str:
    """Say which rules name nothing, for a summary: they may be misspelt."""
    assert m.before is not None
    found = idle(m.interval.patterns, m.before)
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


def _place(items: list[dict[str, Any]], places: Places | None) -> None:
    """Add class and owner to evidence of blocks of X_k."""
    kinds = [] if places is None else places.of([entry["offset"] for entry in items])
    for entry, (kind, owner) in zip(items, kinds, strict=False):
        entry |= {"class": kind, "owner": owner}


def _places(m: Material) -> Places | None:
    """Return the places of S_k*, of which R_k is a copy."""
    return None if m.after is None else Places(m.after, m.stored)


def _find_items(
    m: Material, finds: Finds, places: Places | None, room: int
) -> list[dict[str, Any]]:
    """Return evidence for as many finds as there is room for, of every class some."""
    offsets = finds.offset[:_PLACED]
    kinds: Sequence[tuple[Any, Any]] = [(None, None)] * len(offsets)
    kinds = kinds if places is None else places.of(offsets)
    chosen = _of_each(kinds, room)
    kinds = [kinds[n] for n in chosen]
    offsets = offsets[chosen]
    return [
        item(
            **{"class": kind},
            owner=owner,
            block=at // m.granularity,
            offset=at,
            length=finds.length[n],
            path=path,
            link=m.link_of(at) or m.link_name,
            note=_whose(*finds.whose(n)),
        )
        for n, at, path, (kind, owner) in zip(
            chosen, offsets.tolist(), m.owners(offsets), kinds, strict=True
        )
    ]


def _of_each(kinds: Sequence[tuple[Any, Any]], room: int) -> list[int]:
    """Return the positions of the first of each class, then of the second, and so on."""
    seen: Counter[Any] = Counter()
    rank = []
    for kind, _ in kinds:
        rank.append(seen[kind])
        seen[kind] += 1
    return sorted(sorted(range(len(kinds)), key=lambda n: (rank[n], n))[:room])


def _whose(path: str, k: int) -> str:
    return f"content of {path}, which backup {k} excludes"


def _report(
    m: Material,
    finds: Finds,
    stray: list[dict[str, Any]],
    names: tuple[list[dict[str, Any]], int],
    places: Places | None,
) -> dict[str, Any]:
    """Return what ``audit.json`` tells of leaks beside the verdict: counts, and the names."""
    offsets = finds.offset[:_PLACED]
    kinds = [] if places is None else [kind for kind, _ in places.of(offsets)]
    counts = Counter([*kinds, *(entry["class"] for entry in stray)])
    return {
        "classes": dict(sorted(counts.items())),
        "classes_of": len(kinds) + len(stray),
        "names": names[0],
        "names_total": names[1],
    }


def _by_class(classes: dict[str, int]) -> str:
    told = ", ".join(f"{number:,} {name}" for name, number in classes.items())
    return f" ({told})" if told else ""
