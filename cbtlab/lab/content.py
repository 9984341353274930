"""Content for scenarios: text from a seed, different in every sector; stdlib only.

Text compresses well, so that recorded cases stay small, and every line has
words that stand nowhere else, so that a search for leaked content means
something.
"""

from __future__ import annotations

import random

_SYLLABLES = [
    first + second
    for first in ("b", "c", "d", "f", "g", "l", "m", "n", "r", "s", "t", "v")
    for second in ("a", "e", "i", "o", "u")
]


def _vocabulary(size: int) -> list[str]:
    source = random.Random(1)
    return ["".join(source.choices(_SYLLABLES, k=source.randint(1, 4))) for _ in range(size)]


_WORDS = _vocabulary(700)


def text(seed: str, size: int) -> bytes:
    """Return ``size`` bytes of text; the same for the same ``seed``."""
    source = random.Random(seed)
    tag = f"{source.getrandbits(40):010x}"
    lines, total, number = [], 0, 0
    while total < size:
        # One line a third of a sector: every sector holds a tag and a number.
        line = f"{tag} {number} {' '.join(source.choices(_WORDS, k=22))}\n"
        lines.append(line)
        total += len(line)
        number += 1
    return "".join(lines).encode()[:size]
