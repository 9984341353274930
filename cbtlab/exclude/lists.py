"""Lists of rules: from a file, from the command line, from ready-made sets, in their order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cbtlab.errors import InputError
from cbtlab.exclude.sets import rule_set
from cbtlab.rules import Rules


@dataclass(frozen=True)
class RuleList:
    """Rules in their order.  ``sets`` says which of them came from which ready-made set.

    Each entry of ``sets`` has ``name``, ``first`` (a number of a rule) and ``count``.
    """

    rules: tuple[str, ...]
    sets: tuple[dict[str, Any], ...] = ()

    def set_of(self, number: int) -> str:
        """The ready-made set that a rule came from; empty for none."""
        for entry in self.sets:
            if entry["first"] <= number < entry["first"] + entry["count"]:
                return str(entry["name"])
        return ""


def collect_rules(
    file: Path | None = None, more: Sequence[str] = (), sets: Sequence[str] = ()
) -> RuleList:
    """The rules of the sets, then of a file, then ``more``: a later one can take back.

    Raises InputError for a rule that cannot be read, and for an unknown set.
    """
    rules: list[str] = []
    taken = []
    for name in dict.fromkeys(sets):
        found = rule_set(name).patterns
        taken.append({"name": name, "first": len(rules), "count": len(found)})
        rules += found
    rules += read_rules(file, more)
    return RuleList(tuple(rules), tuple(taken))


def read_rules(file: Path | None, more: Sequence[str] = ()) -> list[str]:
    """Return the rules of a file and then ``more``; each must be one that can be read.

    As git reads it: UTF-8, perhaps with a mark at its start, one rule a line, which a line
    feed ends and nothing else; a carriage return before it is not part of the rule.
    """
    rules: list[str] = []
    if file is not None:
        try:
            lines = file.read_bytes().decode("utf-8-sig").split("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(file, f"cannot be read: {error}", "one pattern a line") from error
        lines = [line.removesuffix("\r") for line in lines]
        rules += [line for line in lines if line.strip(" \t") and not line.startswith("#")]
    for rule in more:
        if "\n" in rule:
            raise InputError(
                f"pattern {rule!r}", "has a line break", "give every pattern by itself"
            )
    rules += more
    Rules(rules)
    return rules
