"""Ready-made sets of rules, as files beside this module.

A file ``NAME.rules`` is a list of rules like any other, and can be given to
``--exclude-from`` as it is.  Its comments name a title, a description, and the public pages
that the facts are from::

    # Title: Trash folders
    # Description: What people have thrown away and not yet emptied.
    # Source: https://…
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from cbtlab.errors import InputError

_SUFFIX = ".rules"


@dataclass(frozen=True)
class RuleSet:
    """A ready-made set: its name, what it is for, where its facts are from, and its rules."""

    name: str
    title: str
    description: str
    sources: tuple[str, ...]
    patterns: tuple[str, ...]

    def document(self) -> dict[str, Any]:
        """Return the set as ``cbtlab rules show --json`` prints it."""
        return {
            "name": self.name,
            "title": self.title,
            "description": self.description,
            "sources": list(self.sources),
            "patterns": list(self.patterns),
        }

    def text(self) -> str:
        """Return the set as a list of rules with its comments: what ``--exclude-from`` takes."""
        head = [f"# {self.title}", f"# {self.description}", *(f"# {s}" for s in self.sources)]
        return "\n".join([*head, *self.patterns])


@cache
def rule_sets() -> dict[str, RuleSet]:
    """All sets, by name."""
    found = {}
    for entry in sorted(resources.files(__name__).iterdir(), key=lambda one: one.name):
        if entry.name.endswith(_SUFFIX):
            name = entry.name.removesuffix(_SUFFIX)
            found[name] = _read(name, entry.read_text(encoding="utf-8"))
    return found


def rule_set(name: str) -> RuleSet:
    """One set by its name; InputError for an unknown one."""
    known = rule_sets()
    if name not in known:
        raise InputError(f"set {name!r}", "is not known", f"there are {', '.join(known)}")
    return known[name]


def _read(name: str, text: str) -> RuleSet:
    told: dict[str, list[str]] = {"Title": [], "Description": [], "Source": []}
    rules = []
    for line in text.splitlines():
        if line.startswith("#"):
            word, _, rest = line.removeprefix("#").strip().partition(": ")
            if word in told:
                told[word].append(rest)
        elif line.strip():
            rules.append(line)
    return RuleSet(
        name,
        " ".join(told["Title"]),
        " ".join(told["Description"]),
        tuple(told["Source"]),
        tuple(rules),
    )
