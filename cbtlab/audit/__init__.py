"""The main job: replay, exclude, plan, write the chain, restore it, and run every check.

``run`` judges the chain that a case's record as it stands would make; it never
repairs.  Its output folder appears whole or not at all.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cbtlab import __version__
from cbtlab.audit.backup import Auditor, Backup
from cbtlab.audit.rules import RULES, Rules
from cbtlab.case import MANIFEST, Case
from cbtlab.chain.layout import MANIFEST as CHAIN_MANIFEST
from cbtlab.chain.layout import own_name
from cbtlab.errors import InputError
from cbtlab.folders import exchange
from cbtlab.manifest import file_digest
from cbtlab.plan import POLICIES
from cbtlab.units import format_time

AUDIT, REPORT, CHAIN = "audit.json", "report.html", "chain"
_PAGES = (REPORT, f"{REPORT}.part", f".{REPORT}.part", f"{AUDIT}.part")
_WORK = re.compile(r"w[a-z0-9_]{8}")  # the restores of an audit that was killed
_WORK_FILE = re.compile(r"\.?\d{4,6}\.raw(\.\d+\.part)?")

__all__ = ["AUDIT", "CHAIN", "REPORT", "RULES", "Audit", "Backup", "Rules", "run"]


@dataclass
class Audit:
    """What an audit found: the backups of a case with their counts and verdicts."""

    case: Case
    policy: str
    out: Path
    backups: list[Backup] = field(default_factory=list)
    sources: list[dict[str, str]] = field(default_factory=list)
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def holds(self) -> bool:
        """Return whether no check of any backup fails; what could not be judged fails nothing."""
        return not any(
            verdict.holds is False for backup in self.backups for verdict in backup.checks
        )

    def document(self) -> dict[str, Any]:
        """Return ``audit.json``."""
        return {
            "case": self.case.name,
            "policy": self.policy,
            "granularity": self.case.granularity,
            "volume_blocks": self.case.blocks,
            "holds": self.holds,
            "intervals": [backup.document() for backup in self.backups],
            "volume_size": self.case.volume_size,
            "generation": self.case.generation,
            "sources": self.sources,
            **self.extra,
        }

    def text(self) -> str:
        """Return the verdicts as a table in plain characters, and what failed in sentences."""
        names = [verdict.name for verdict in self.backups[0].checks]
        lines = ["backup    copied  zeroed   least  " + "  ".join(names)]
        for backup in self.backups:
            counts = (backup.copied, backup.zeroed, backup.least)
            numbers = "".join(f"{'-' if n is None else n:>8}" for n in counts)
            marks = "  ".join(
                f"{_word(verdict.holds):<{len(verdict.name)}}" for verdict in backup.checks
            )
            lines.append(f"{backup.k:>6}  {numbers}  {marks}".rstrip())
        for backup in self.backups:
            for verdict in backup.checks:
                if verdict.holds is False:
                    lines.append(f"backup {backup.k}, {verdict.name}: {verdict.summary}")
        held = "every check holds" if self.holds else "not every check holds"
        lines.append(f"{self.case.name}, policy {self.policy}: {held}")
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        from html import escape

        names = [verdict.name for verdict in self.backups[0].checks]
        head = "".join(f"<th>{name}</th>" for name in ("backup", "copied", "zeroed", *names))
        body = ""
        for backup in self.backups:
            cells = [str(backup.k), _dash(backup.copied), _dash(backup.zeroed)]
            row = "".join(f"<td>{cell}</td>" for cell in cells)
            for verdict in backup.checks:
                title = escape(verdict.summary, quote=True)
                row += f'<td title="{title}">{_word(verdict.holds)}</td>'
            body += f"<tr>{row}</tr>"
        held = "every check holds" if self.holds else "<b>not every check holds</b>"
        told = f"<p>{escape(self.case.name)}, policy {self.policy}: {held}</p>"
        return f"<table><tr>{head}</tr>{body}</table>{told}"


def _word(holds: bool | None) -> str:
    return {True: "holds", False: "FAILS", None: "-"}[holds]


def _dash(number: int | None) -> str:
    return "-" if number is None else f"{number:,}"


def run(
    case: Case,
    out: str | os.PathLike[str],
    policy: str = "allocated",
    force: bool = False,
    *,
    scrub: bool = False,
    rules: Rules = RULES,
    report: Callable[[Audit, Path], None] | None = None,
) -> Audit:
    """Audit a case into the folder ``out``: ``audit.json``, ``chain/``, and a ``report.html``.

    ``report`` writes the page (``cbtlab.report.write``); without it there is none.
    ``scrub`` overwrites, in what each link stores, what no reading of its files returns.
    ``rules`` replaces the merge or the plan, to show what wrong ones lead to.
    Raises InputError when the case cannot be used, one of its pieces was
    altered, or ``out`` exists and ``force`` is not set; then ``out`` is as it was.
    """
    out = Path(out)
    if policy not in POLICIES:
        raise InputError("policy", f"{policy!r} is unknown", "use one of " + ", ".join(POLICIES))
    if not case.intervals:
        raise InputError(case.path, "has no backup", "add one with: cbtlab case add")
    if not any(interval.kept for interval in case.intervals):
        raise InputError(
            case.path, "has no backup that was kept", "add one with cbtlab case add, not --not-kept"
        )
    _check_output(case, out, force)
    started = time.time_ns()
    before = _sources(case)
    with _folder(out) as folder, ExitStack() as opened:
        work = Path(opened.enter_context(tempfile.TemporaryDirectory(prefix="w", dir=folder)))
        audit = Audit(case, policy, out)
        auditor = Auditor(case, folder / CHAIN, work, policy, rules, opened, scrub)
        audit.backups = list(auditor.backups())
        opened.close()
        after = _sources(case)
        audit.sources = [
            {"piece": name, "before": digest, "after": after.get(name, "missing")}
            for name, digest in before.items()
        ]
        if before != after:
            changed = next(name for name in before if before[name] != after.get(name))
            raise InputError(case.path / changed, "changed while it was audited", "audit it again")
        audit.extra = _about(case, policy, rules, started, auditor)
        _write(folder / AUDIT, audit.document())
        if report is not None:
            report(audit, folder / REPORT)
        _replace(folder, out, case)
    return audit


def _sources(case: Case) -> dict[str, str]:
    """Return the SHA-256 of every piece of the case; raises InputError for one that is wrong."""
    digests = {MANIFEST: file_digest(case.path / MANIFEST)}
    for name, path, wanted in case.pieces():
        if not path.is_file():
            raise InputError(path, "is missing", "take the case from a good copy")
        digests[name] = file_digest(path)
        if digests[name] != wanted:
            raise InputError(
                path,
                "was altered: its SHA-256 is not the recorded one",
                "take the case from a good copy",
            )
    return digests


def _about(case: Case, policy: str, rules: Rules, started: int, auditor: Auditor) -> dict[str, Any]:
    import numpy as np

    command = ["cbtlab", "audit", str(case.path), "--policy", policy]
    command += ["--scrub"] if auditor.scrub else []
    return {
        "rules": rules.name,
        "scrub": auditor.scrub,
        "unit": auditor.unit,
        "notes": auditor.notes,
        "recorded": case.recorded,
        "versions": {
            "cbtlab": __version__,
            "python": sys.version.split()[0],
            "numpy": np.__version__,
        },
        "command": command,
        "started": format_time(started),
        "seconds": round((time.time_ns() - started) / 1e9, 3),
    }


def _write(path: Path, document: dict[str, Any]) -> None:
    with path.open("w", encoding="utf-8") as file:
        json.dump(document, file, indent=1, allow_nan=False)
        file.write("\n")


# The output folder -------------------------------------------------------------------------------


def _check_output(case: Case, out: Path, force: bool) -> None:
    """Refuse an output that would overwrite something that is no audit."""
    if not out.name or out.name == "..":
        raise InputError(out, "cannot be an output folder", "name a new one")
    if out.resolve().is_relative_to(case.path.resolve()):
        raise InputError(out, "lies in the folder of the case", "choose another --out")
    if not (out.exists() or out.is_symlink()):
        return
    if not force:
        raise InputError(out, "exists", "choose another --out, or replace it with --force")
    if not out.is_dir() or out.is_symlink():
        raise InputError(out, "exists and is no folder", "choose another --out")
    if case.path.resolve().is_relative_to(out.resolve()):
        raise InputError(out, "holds the case itself", "choose another --out")
    if any(out.iterdir()) and not (out / AUDIT).is_file():
        raise InputError(out, "exists and is no earlier audit", "choose another --out")
    foreign = _foreign(out)
    if foreign is not None:
        fault = f"is no earlier audit: it holds {foreign.relative_to(out)}"
        raise InputError(out, fault, "move that away, or choose another --out")


def _foreign(out: Path) -> Path | None:
    """Return the first entry of a folder that no audit wrote, or None."""
    for entry in sorted(out.iterdir()):
        plain = entry.is_file() and not entry.is_symlink()
        folder = entry.is_dir() and not entry.is_symlink()
        if folder and entry.name == CHAIN:
            names = (inside for inside in sorted(entry.iterdir()) if not _of_chain(inside))
        elif folder and _WORK.fullmatch(entry.name):
            names = (inside for inside in entry.iterdir() if not _WORK_FILE.fullmatch(inside.name))
        elif plain and (entry.name in _PAGES or (entry.name == AUDIT and _is_audit(entry))):
            continue
        else:
            return entry
        if (inside := next(names, None)) is not None:
            return inside
    return None


def _of_chain(path: Path) -> bool:
    named = path.name == CHAIN_MANIFEST or own_name(path.name)
    return named and path.is_file() and not path.is_symlink()


def _is_audit(path: Path) -> bool:
    """Return whether an ``audit.json`` is an audit's, be it cut; another program's is not."""
    with path.open("rb") as file:
        head = file.read(1 << 12).lstrip()
    return not head or (head.startswith(b"{") and b'"case"' in head and b'"policy"' in head)


@contextmanager
def _folder(out: Path) -> Iterator[Path]:
    """Make a folder beside ``out``; what is left of it at the end is removed."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    except OSError as error:
        raise InputError(out, f"cannot be written: {error.strerror}") from error
    try:
        made.chmod(0o777 & ~_umask())
        yield made
    except OSError as error:
        raise InputError(out, f"cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def _replace(folder: Path, out: Path, case: Case) -> None:
    """Put the finished folder in its place; an earlier audit changes places with it, and goes."""
    if out.exists() or out.is_symlink():
        _check_output(case, out, force=True)  # what came into it while the audit ran is kept
        exchange(folder, out)
    else:
        folder.rename(out)
