"""What the template shows, as plain values: bounded lists, sums, sentences."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from typing import Any

from cbtlab.audit import Audit, Backup
from cbtlab.checks.verdict import KEYS
from cbtlab.phases import PHASES, written_by_phase
from cbtlab.report import words
from cbtlab.report.pictures import Pictures, Sample, of_backup, overview, sample
from cbtlab.units import format_bytes

DETAILED = 60  # backups with a section of their own; the tables have all
EVIDENCE = 1_200  # rows of evidence in the whole file
FILES, EXTENTS, SUBTRACTED, SOURCES, NAMES = 60, 6, 20, 400, 20  # rows per list


def contents_of(audit: Audit) -> dict[str, Any]:
    """Return everything that the template needs, of an audit that is finished."""
    document = audit.document()
    pictures = Pictures()
    entries = document["intervals"]
    failing = [
        {"k": entry["k"], **check}
        for entry in entries
        for check in entry["checks"]
        if check["holds"] is False
    ]
    taken = sample(audit.case)
    top = overview(audit, document, taken, pictures)
    chosen = set(_chosen(entries))
    room = _Room(EVIDENCE)
    backups = [
        _backup(audit, backup, entry, pictures, room)
        for backup, entry in zip(audit.backups, entries, strict=True)
        if entry["k"] in chosen
    ]
    return {
        "case": document["case"],
        "policy": document["policy"],
        "rules": document.get("rules", ""),
        "holds": document["holds"],
        "failing": failing,
        "unjudged": _unjudged(entries),
        "checks": words.CHECKS,
        "names": [check["name"] for check in entries[0]["checks"]],
        "entries": entries,
        "backups": backups,
        "sections": {backup["k"] for backup in backups},
        "left_out": len(entries) - len(backups),
        "pictures": top,
        "pictures_left_out": pictures.left_out,
        "surplus": [name for name in words.SURPLUS if _has_surplus(entries, name)],
        "surplus_words": words.SURPLUS,
        "place_words": words.PLACES,
        "facts": _facts(document, taken),
        "notes": document.get("notes", []),
        "sources": document["sources"][:SOURCES],
        "sources_total": len(document["sources"]),
        "sources_same": all(piece["before"] == piece["after"] for piece in document["sources"]),
        "command": shlex.join(document["command"]),
        "versions": document["versions"],
        "recorded": list(_flat(document.get("recorded") or {})),
        "glossary": words.GLOSSARY,
    }


def _chosen(entries: list[dict[str, Any]]) -> list[int]:
    """Return which backups get a section: the failing ones first, then the first ones."""
    bad = [e["k"] for e in entries if any(check["holds"] is False for check in e["checks"])]
    rest = [entry["k"] for entry in entries if entry["k"] not in set(bad)]
    return (bad + rest)[:DETAILED]


def _unjudged(entries: list[dict[str, Any]]) -> int:
    return sum(
        check["holds"] is None and entry["kept"] for entry in entries for check in entry["checks"]
    )


def _has_surplus(entries: list[dict[str, Any]], name: str) -> bool:
    return any((entry["surplus"] or {}).get(name) for entry in entries)


def _facts(document: dict[str, Any], taken: Sample) -> list[tuple[str, str]]:
    size, grain = document["volume_size"], document["granularity"]
    facts = [
        ("Volume", f"{format_bytes(size)} ({size:,} bytes)"),
        ("Tracked in", f"{document['volume_blocks']:,} blocks of {grain:,} bytes"),
        ("Stored in", f"units of {document['unit']:,} bytes"),
        ("Generation", document["generation"]),
    ]
    system = next((e["file_system"] for e in document["intervals"] if "file_system" in e), None)
    if system is not None:
        label = f"{system['kind']}, blocks of {system['block_size']:,} bytes, UUID {system['uuid']}"
        facts.insert(1, ("File system", label))
    if taken.rows:
        first, last = (str(time)[:19].replace("T", " ") for time in (taken.first, taken.last))
        facts.append(("Recorded", f"{taken.rows:,} writes from {first} to {last} UTC"))
    else:
        facts.append(("Recorded", "bitmaps alone, no write sequence"))
    facts.append(("Audited", words.moment(document["started"])))
    return facts


# One backup -------------------------------------------------------------------------------------


class _Room:
    """How many rows of evidence still fit into the file."""

    def __init__(self, rows: int) -> None:
        self._left = rows

    def take(self, items: list[dict[str, Any]]) -> list[dict[str, Any]]:
        taken = items[: self._left]
        self._left -= len(taken)
        return taken


def _backup(
    audit: Audit, backup: Backup, entry: dict[str, Any], pictures: Pictures, room: _Room
) -> dict[str, Any]:
    files = entry.get("excluded_files", [])
    checks = [
        {
            **check,
            "evidence": room.take(check["evidence"]),
            "given": len(check["evidence"]),
            "columns": [key for key in KEYS if any(key in item for item in check["evidence"])],
        }
        for check in entry["checks"]
    ]
    return {
        **entry,
        "checks": checks,
        "story": _story(entry, audit.case.granularity),
        "phases": _phases(backup),
        "files": [
            _file(file)
            for file in sorted(files, key=lambda file: (-file["blocks"], file["path"]))[:FILES]
        ],
        "files_total": entry.get("excluded_files_total", 0),
        "files_size": sum(file["size"] for file in files),
        "subtracted": entry.get("subtracted", [])[:SUBTRACTED],
        "subtracted_total": entry.get("subtracted_total", 0),
        "second_opinion": entry.get("second_opinion"),
        "leaks": _leaks(entry),
        "scrubbed": entry.get("scrubbed"),
        "remarks": list(_remarks(entry)),
        "pictures": of_backup(audit, backup, entry, pictures),
    }


def _leaks(entry: dict[str, Any]) -> dict[str, Any]:
    """Return the counts of traces by class, and the names that are shown."""
    found = {"classes": {}, "names": [], "names_total": 0} | entry.get("leaks", {})
    names = found["names"][:NAMES]
    columns = [key for key in KEYS if any(key in item for item in names)]
    return {**found, "names": names, "columns": columns}


def _file(file: dict[str, Any]) -> dict[str, Any]:
    extents = file["extents"]
    return {**file, "extents": extents[:EXTENTS], "more": max(len(extents) - EXTENTS, 0)}


def _phases(backup: Backup) -> list[dict[str, Any]] | None:
    table = written_by_phase(backup.interval)
    if table is None:
        return None
    return [{"name": PHASES[str(row.pop("index"))], **row} for row in _records(table)]


def _records(table: Any) -> list[dict[str, Any]]:
    return list(table.reset_index().to_dict("records"))


def _story(entry: dict[str, Any], granularity: int) -> list[str]:
    """Tell in sentences how the backup came about, from its counts."""
    n = words.number
    if not entry["kept"]:
        told = ["This backup was thrown away, so it has no link in the chain."]
        if entry["physical_interval"] is not None:
            told.append(
                f"The {n(entry['physical_interval'])} blocks that the running system wrote in "
                "its interval count towards the next backup that is kept; what was written on "
                "its snapshot does not."
            )
        return told
    stored = f"{n(entry['copied'])} units were stored, {format_bytes(entry['bytes_stored'])}"
    if entry["base"] is None:
        held = f"A full backup ({entry['reason']}): everything that it answers for is stored."
        return [held, f"{stored}."]
    j = entry["base"]
    told = [
        f"Since backup {j} the running system wrote to {n(entry['physical'])} blocks. "
        f"On the snapshot, mounting and deleting wrote to {n(entry['snapshot'])}; "
        f"{n(entry['carry'])} are carried over from the delete that backup {j} stored. "
        f"Merged, {n(entry['master'])} blocks of {granularity:,} bytes may have changed."
    ]
    if entry["excluded"]:
        told.append(f"{n(entry['excluded'])} of them touch excluded files.")
    if entry["joined"]:
        stored += f"; {n(entry['joined'])} of them were not written, but were not held before"
    told.append(
        f"{stored}. {n(entry['zeroed'])} units were declared zero. {n(entry['least'])} units "
        f"truly differ from backup {j}."
    )
    return told


def _remarks(entry: dict[str, Any]) -> Iterator[str]:
    """Yield what the recording notes of this backup."""
    yield from (f"Recorded as unusable: {reason}." for reason in entry.get("unusable", []))
    yield from (str(note) for note in entry.get("file_system", {}).get("notes", []))
    log = dict(entry.get("log") or {})
    marks, suspended = entry.get("marks") or [], log.pop("suspended", None)
    yield from _stood_still(marks, suspended, log.pop("frozen_ns", None))
    if isinstance(deleted := log.pop("deleted", None), list):
        yield f"{len(deleted):,} names were deleted on the snapshot."
    yield from _store(log.pop("store", None))
    yield from _writer(log.pop("writer", None))
    yield from (f"{name}: {value}" for name, value in _flat(log))


def _stood_still(marks: list[dict[str, Any]], suspended: Any, frozen: Any) -> Iterator[str]:
    """Yield how long the volume stood still while the snapshot was made."""
    at = {mark.get("name"): mark.get("time_ns") for mark in marks if isinstance(mark, dict)}
    begin, end = at.get("suspend"), at.get("resume")
    if isinstance(begin, int) and isinstance(end, int):
        yield f"The volume was suspended for {(end - begin) / 1e6:.1f} ms to make the snapshot."
    if suspended is False:
        yield "The interval was switched while the volume was running, which loses writes."
    if isinstance(frozen, int):
        yield f"Its queue was frozen for {frozen / 1e6:.1f} ms to switch the interval."


def _store(store: Any) -> Iterator[str]:
    """Yield how full the snapshot's store was after the last read of it."""
    match store:
        case {"valid": bool(valid), "used": int(used), "total": int(total)}:
            state = "was valid" if valid else "was TORN"
            yield (
                f"The snapshot's store {state} after the last read, with {format_bytes(used)} of "
                f"{format_bytes(total)} used."
            )
        case None:
            return
        case _:
            yield f"store: {store}"


def _writer(writer: Any) -> Iterator[str]:
    """Yield what the writer that went on all the time saw."""
    match writer:
        case {"writes": int(writes), "longest": float(longest), "covered": bool(covered)}:
            span = "from before the snapshot until its last block was read"
            yield (
                f"A writer with fsync went on {span}: {writes:,} writes, the longest of "
                f"{longest * 1000:.0f} ms."
                if covered
                else f"A writer with fsync made {writes:,} writes, and did not last {span}."
            )
        case None:
            return
        case _:
            yield f"writer: {writer}"


def _flat(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield names and values of a nested record, in words; lists by their length."""
    for key, value in values.items():
        name = f"{prefix}{str(key).replace('_', ' ')}"
        if isinstance(value, dict):
            yield from _flat(value, f"{name}: ")
        elif isinstance(value, list):
            yield name, ", ".join(map(str, value)) if len(value) < 6 else f"{len(value):,} items"
        elif isinstance(value, int) and not isinstance(value, bool) and key.endswith("_ns"):
            yield name, f"{value:,}"
        else:
            yield name, str(value)
