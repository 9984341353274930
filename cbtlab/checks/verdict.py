"""A verdict: whether a thing that must hold does, in one sentence, with its evidence."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

EVIDENCE_LIMIT = 100
NAMES = (
    "complete",
    "tracked",
    "consistent",
    "excluded",
    "kept",
    "restorable",
    "unbroken",
    "minimal",
)
KEYS = ("block", "offset", "length", "time", "path", "class", "owner", "link", "note")


@dataclass(frozen=True)
class Verdict:
    """The answer of one check on one backup.

    ``holds`` is None where there is nothing to judge, which never fails.
    ``evidence`` has at most 100 items with some of the keys ``block`` (of the
    case's granularity), ``offset`` and ``length`` (bytes of the volume),
    ``time`` (ISO 8601), ``path``, ``link`` and ``note``; of a leak also ``class``
    (of `cbtlab.leftovers`) and ``owner``, the place that it lies in.
    ``evidence_total`` counts all that were found.
    """

    name: str
    holds: bool | None
    summary: str
    evidence: list[dict[str, Any]] = field(default_factory=list)
    evidence_total: int = 0

    def document(self) -> dict[str, Any]:
        """Return the verdict as it stands in ``audit.json``."""
        return {
            "name": self.name,
            "holds": self.holds,
            "summary": self.summary,
            "evidence": self.evidence,
            "evidence_total": self.evidence_total,
        }


def verdict(
    name: str,
    holds: bool | None,
    summary: str,
    evidence: Iterable[dict[str, Any]] = (),
    total: int | None = None,
) -> Verdict:
    """Return a verdict with its evidence cut to the limit; ``total`` counts what is left out."""
    items = list(evidence)
    return Verdict(
        name,
        holds,
        summary,
        items[:EVIDENCE_LIMIT],
        len(items) if total is None else total,
    )


def item(**values: Any) -> dict[str, Any]:
    """Return one piece of evidence; what is None is left out, and numbers are plain."""
    unknown = set(values) - set(KEYS)
    if unknown:
        raise ValueError(f"evidence has no {unknown.pop()!r}")
    made: dict[str, Any] = {}
    for key in KEYS:
        value = values.get(key)
        if value is not None:
            made[key] = int(value) if key in ("block", "offset", "length") else str(value)
    return made


def count(number: int, noun: str, nouns: str | None = None) -> str:
    """Return a number with its noun, in words for a person: ``1 block``, ``2,048 blocks``."""
    return f"{number:,} {noun if number == 1 else nouns or noun + 's'}"
