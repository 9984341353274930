"""Audits a recording for a test, and finds a verdict in it."""

from __future__ import annotations

from pathlib import Path

import factory

from cbtlab import audit
from cbtlab.checks import Verdict


def judged(
    recording: factory.Recording,
    folder: Path,
    policy: str = "allocated",
    *,
    bitmaps: bool = True,
    sequences: bool = True,
    rules: audit.Rules = audit.RULES,
) -> audit.Audit:
    """Return the audit of a recording."""
    case = recording.case(folder / "case", bitmaps=bitmaps, sequences=sequences)
    return audit.run(case, folder / "audit", policy, rules=rules)


def verdict(found: audit.Audit, k: int, name: str) -> Verdict:
    """Return one verdict."""
    return next(check for check in found.backups[k].checks if check.name == name)


def failing(found: audit.Audit) -> dict[int, set[str]]:
    """Return the names of the checks that fail, by backup; backups without any are left out."""
    names = {
        backup.k: {check.name for check in backup.checks if check.holds is False}
        for backup in found.backups
    }
    return {k: failed for k, failed in names.items() if failed}
