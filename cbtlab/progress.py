"""The one way to show progress: a bar on a terminal, for work longer than two seconds."""

from __future__ import annotations

import io
import sys
from typing import Any

from tqdm import tqdm


def progress(label: str, total: int | None, unit: str = "B") -> tqdm[Any]:
    """Return a bar on standard error; call ``update(n)`` on it, use it with ``with``.

    Nothing is shown when standard error is not a terminal, nor in the first
    two seconds.  ``total`` is in ``unit``; bytes are shown with binary prefixes.
    """
    stream = sys.stderr  # None where the program was started with it closed
    return tqdm(
        desc=label,
        total=total,
        unit=unit,
        unit_scale=unit == "B",
        unit_divisor=1024,
        delay=2,
        disable=stream is None or not stream.isatty(),
        file=stream or io.StringIO(),
        leave=False,
    )
