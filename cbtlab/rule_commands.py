"""The commands about rules: ``rules list``, ``rules show`` and ``dry-run``."""

from __future__ import annotations

import time
from pathlib import Path

import click

from cbtlab.console import FOLDER, SIZE, answer, as_json, instant_ns, with_rules
from cbtlab.errors import InputError
from cbtlab.folders import require_regular


@click.command("dry-run")
@click.argument("source", type=FOLDER, metavar="CASE|IMAGE")
@with_rules
@click.option("--offset", type=SIZE, help="Where the file system begins in an image.")
@as_json
def dry_run(
    source: Path,
    exclude: tuple[str, ...],
    exclude_from: Path | None,
    sets: tuple[str, ...],
    instant: str | None,
    offset: int | None,
    as_json: bool,
) -> None:
    """Show what rules would leave out of each backup, and what that saves; nothing is changed.

    Of a case without any rule given: what each backup's own rules do. Ages count
    from the snapshot's instant; of an image, from --instant or now.
    """
    from cbtlab import dry_run as dry
    from cbtlab.case import MANIFEST, Case
    from cbtlab.exclude import collect_rules
    from cbtlab.images import open_image

    if exclude_from is not None:
        require_regular(exclude_from)
    given = bool(exclude or exclude_from or sets)
    rules, at = collect_rules(exclude_from, exclude, sets), instant_ns(instant)
    if (source / MANIFEST).is_file():
        if offset is not None:
            raise InputError("--offset", "is for an image", "a case has no offset")
        result = dry.dry_run(Case.open(source), rules if given else None, instant_ns=at)
    else:
        if not given:
            raise InputError(source, "is an image, and no rule is given", "use --exclude or --set")
        with open_image(source) as image:
            now = time.time_ns() if at is None else at
            result = dry.dry_run_image(image, rules, instant_ns=now, offset=offset or 0)
    answer(result.document(), as_json, result.text)


@click.group()
def rules() -> None:
    """List and show the ready-made sets of rules."""


@rules.command("list")
@as_json
def rules_list(as_json: bool) -> None:
    """List the ready-made sets."""
    from cbtlab.exclude import rule_sets

    sets = rule_sets().values()
    keys = ("name", "title", "description")
    document = {"sets": [{key: one.document()[key] for key in keys} for one in sets]}
    answer(document, as_json, "\n".join(f"{one.name:24} {one.title}" for one in sets))


@rules.command("show")
@click.argument("name")
@as_json
def rules_show(name: str, as_json: bool) -> None:
    """Show the rules of set NAME, as --exclude-from takes them."""
    from cbtlab.exclude import rule_set

    found = rule_set(name)
    answer(found.document(), as_json, found.text)
