"""Content for scenarios: text from a seed, different in every sector; stdlib only.

Text compresses well, so that recorded cases stay small.  Every line begins with a tag
and a number that stand nowhere else, and its phrases are those of its seed alone, so
that a search for leaked content means something wherever in a text it looks.
"""

from __future__ import annotations

import random

_SYLLABLES = [
    first + second
    for first in ("b", "c", "d", "f", "g", "l", "m", "n", "r", "s", "t", "v")
    for second in ("a", "e", "i", "o", "u")
]


_PHRASES = 12


def _phrases(source: random.Random) -> list[str]:
    words = ["".join(source.choices(_SYLLABLES, k=source.randint(1, 4))) for _ in range(40)]
    return [" ".join(source.choices(words, k=7)) for _ in range(_PHRASES)]


def text(seed: str, size: int) -> bytes:
    """Return ``size`` bytes of text; the same for the same ``seed``."""
    source = random.Random(seed)
    tag, phrases = f"{source.getrandbits(40):010x}", _phrases(source)
    lines, total, number = [], 0, 0
    while total < size:
        # Lines are a third of a sector: every sector holds a tag and a number.
        line = f"{tag} {number} {', '.join(source.choices(phrases, k=3))}\n"
        lines.append(line)
        total += len(line)
        number += 1
    return "".join(lines).encode()[:size]
