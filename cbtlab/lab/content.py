"""Content for scenarios: text from a seed, different in every sector; stdlib only.

Text compresses well, so that recorded cases stay small, and every line begins
with a tag and a number that stand nowhere else, so that a search for leaked
content means something.
"""

from __future__ import annotations

import random

_SYLLABLES = [
    first + second
    for first in ("b", "c", "d", "f", "g", "l", "m", "n", "r", "s", "t", "v")
    for second in ("a", "e", "i", "o", "u")
]


def _phrases(count: int) -> list[str]:
    source = random.Random(1)
    words = ["".join(source.choices(_SYLLABLES, k=source.randint(1, 4))) for _ in range(500)]
    return [" ".join(source.choices(words, k=7)) for _ in range(count)]


_PHRASES = _phrases(64)


def text(seed: str, size: int) -> bytes:
    """Return ``size`` bytes of text; the same for the same ``seed``."""
    source = random.Random(seed)
    tag = f"{source.getrandbits(40):010x}"
    lines, total, number = [], 0, 0
    while total < size:
        # Lines are a third of a sector: every sector holds a tag and a number.
        line = f"{tag} {number} {', '.join(source.choices(_PHRASES, k=3))}\n"
        lines.append(line)
        total += len(line)
        number += 1
    return "".join(lines).encode()[:size]
