"""Rules: gitignore patterns with conditions, as the package and the recorders read them.

The standard library and pathspec suffice, so the same code judges a path of an image
(`cbtlab.exclude`) and a name that the delete meets on the mounted snapshot.
"""

from __future__ import annotations

from cbtlab.rules.conditions import Condition, Facts, parse, with_instant
from cbtlab.rules.patterns import Rules

__all__ = ["Condition", "Facts", "Rules", "parse", "with_instant"]
