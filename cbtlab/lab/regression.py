"""Audits every recorded case and compares counts and verdicts with what is expected.

``python -m cbtlab.lab.regression [--update] [--policy P]… [CASE…]``: without
CASE, every case of ``datasets/``.  ``expected.json`` beside a case says, per
policy, what its audit must give; a changed number is a failure.  ``--update``
writes that file anew, for somebody to read the difference before it is kept.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from cbtlab import audit
from cbtlab.case import MANIFEST, Case
from cbtlab.errors import CbtlabError, InputError
from cbtlab.lab.laboratory import folder

EXPECTED = "expected.json"
POLICIES = ("allocated", "extents", "union")
_COUNTS = (
    *("k", "kept", "base", "kind", "physical", "snapshot", "carry", "master", "excluded"),
    *("copied", "joined", "zeroed", "least", "surplus", "bytes_stored"),
)


def essence(document: dict[str, Any]) -> dict[str, Any]:
    """Return of an audit's document what must not change: its counts and its verdicts."""
    return {
        "holds": document["holds"],
        "intervals": [
            {
                **{key: interval[key] for key in _COUNTS},
                "checks": {check["name"]: _verdict(check) for check in interval["checks"]},
            }
            for interval in document["intervals"]
        ],
    }


def _verdict(check: dict[str, Any]) -> dict[str, Any]:
    return {"holds": check["holds"], "evidence_total": check["evidence_total"]}


def audited(case: Path, policy: str) -> dict[str, Any]:
    """Audit a case into a folder that is thrown away, and return the essence."""
    opened = Case.open(case)
    faults = opened.verify()
    if faults:
        raise InputError(case / faults[0].piece, faults[0].fault, "restore the data set")
    with tempfile.TemporaryDirectory(prefix="cbtlab-regression-") as out:
        result = audit.run(opened, Path(out), policy=policy, force=True)
        return essence(json.loads(json.dumps(result.document())))


def differences(expected: Any, found: Any, place: str = "") -> Iterator[str]:
    """Yield one line for each value that is not as expected, with its place."""
    if isinstance(expected, dict) and isinstance(found, dict):
        for key in sorted(expected.keys() | found.keys()):
            below = f"{place}.{key}" if place else str(key)
            yield from differences(expected.get(key), found.get(key), below)
    elif isinstance(expected, list) and isinstance(found, list) and len(expected) == len(found):
        for number, (one, other) in enumerate(zip(expected, found, strict=True)):
            yield from differences(one, other, f"{place}[{number}]")
    elif expected != found:
        yield f"{place}: {json.dumps(found)}, expected {json.dumps(expected)}"


def check(case: Path, policies: tuple[str, ...] = (), update: bool = False) -> list[str]:
    """Compare a case with its ``expected.json``, or write that; return what differs."""
    path = case / EXPECTED
    known = _known(path, update)
    found = {policy: audited(case, policy) for policy in policies or tuple(known) or POLICIES}
    if update:
        draft = path.with_name(path.name + ".new")
        draft.write_text(json.dumps({"policies": {**known, **found}}, indent=1) + "\n")
        draft.replace(path)
        return []
    return [
        line
        for policy, document in found.items()
        for line in differences(known.get(policy), document, policy)
    ]


def _known(path: Path, update: bool) -> dict[str, Any]:
    if not path.is_file():
        if update:
            return {}
        raise InputError(path, "is missing", "write it with --update")
    try:
        return dict(json.loads(path.read_text())["policies"])
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(path, "is damaged", "write it anew with --update") from error


@click.command()
@click.argument("cases", nargs=-1, type=click.Path(path_type=Path))
@click.option("--policy", "policies", multiple=True, type=click.Choice(POLICIES))
@click.option("--update", is_flag=True, help="Write expected.json anew.")
def main(cases: tuple[Path, ...], policies: tuple[str, ...], update: bool) -> None:
    """Audit every case and compare with what is expected."""
    wrong = 0
    try:
        for case in cases or sorted(path.parent for path in folder().glob(f"*/{MANIFEST}")):
            lines = check(case, policies, update)
            verdict = f"{len(lines)} differences" if lines else "as expected"
            click.echo(f"{case.name}: {'written' if update else verdict}")
            for line in lines:
                click.echo(f"  {line}")
            wrong += bool(lines)
    except CbtlabError as error:
        click.echo(error, err=True)
        sys.exit(2)
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
