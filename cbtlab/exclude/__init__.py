"""Rules to files to extents: what a backup leaves out, and where it lies.

A rule is a gitignore pattern, perhaps with conditions behind it (`cbtlab.rules`).
`match` says which names of a volume the rules give; `excluded` gives `X_k` of the method;
`foreseen` says the same before anything is deleted.
"""

from __future__ import annotations

from cbtlab.exclude.claims import Exclusion, excluded
from cbtlab.exclude.foresee import Foreseen, foreseen
from cbtlab.exclude.lists import RuleList, collect_rules, read_rules
from cbtlab.exclude.matching import decide, idle, match
from cbtlab.exclude.sets import RuleSet, rule_set, rule_sets
from cbtlab.rules import Rules

__all__ = [
    "Exclusion",
    "Foreseen",
    "RuleList",
    "RuleSet",
    "Rules",
    "collect_rules",
    "decide",
    "excluded",
    "foreseen",
    "idle",
    "match",
    "read_rules",
    "rule_set",
    "rule_sets",
]
