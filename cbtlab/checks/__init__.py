"""What must hold of a backup: one check per file, each giving a verdict with its evidence.

``judge`` runs the eight of them over one backup.  Each reads a `Material`,
never another check, and nothing repairs what it finds.
"""

from __future__ import annotations

from collections.abc import Callable

from cbtlab.checks.complete import complete
from cbtlab.checks.consistent import consistent
from cbtlab.checks.content import Content
from cbtlab.checks.excluded import excluded
from cbtlab.checks.kept import kept
from cbtlab.checks.material import Material, mapped
from cbtlab.checks.minimal import Cost, cost, minimal
from cbtlab.checks.restorable import restorable
from cbtlab.checks.tracked import tracked
from cbtlab.checks.unbroken import unbroken
from cbtlab.checks.verdict import EVIDENCE_LIMIT, NAMES, Verdict

CHECKS: dict[str, Callable[[Material], Verdict]] = {
    "complete": complete,
    "tracked": tracked,
    "consistent": consistent,
    "excluded": excluded,
    "kept": kept,
    "restorable": restorable,
    "unbroken": unbroken,
    "minimal": minimal,
}

__all__ = [
    "CHECKS",
    "EVIDENCE_LIMIT",
    "NAMES",
    "Content",
    "Cost",
    "Material",
    "Verdict",
    "cost",
    "mapped",
    *NAMES,
]
