"""The long form of the crashes: at least 50 kills a kernel, and power cuts.

    python tests/vm/crashes.py [--kills N] [--cuts N] [--kernel 6.1]… [--seed N] [--to DIR]

Kills are explained in ``crash_lives.py``, power cuts in ``crash_cuts.py``.
Progress goes to stderr, the figures as tables in Markdown to stdout, and with
``--to`` also to ``crashes.md`` and ``crashes.json``.
Exit status: 0 the state was right every time, 1 it was not, 2 a guest could
not be run, or complained.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import crash_cuts
import crash_lives
from crash_lives import Life, Step

from cbtlab.errors import CbtlabError
from cbtlab.lab.kernels import VERSIONS

_CUTS_A_ROUND = 8


def say(text: str) -> None:
    """Tell how far it is."""
    print(text, file=sys.stderr, flush=True)


def crash(kernel: str, options: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Run both kinds on one kernel; return the figures of each, and the faults."""
    rng = Random(f"{options.seed} {kernel}")
    lives: list[Life] = []
    for life in crash_lives.live(kernel, crash_lives.aims(options.kills, rng), rng, work):
        lives.append(life)
        say(f"{kernel} life {len(lives)}: {life}")
    told: list[Step] = []
    rounds = max(4, options.cuts // _CUTS_A_ROUND)
    for step in crash_cuts.cuts(kernel, rounds, options.cuts, rng, work):
        told.append(step)
        say(f"{kernel} cut {len(told)}: {step.figures}")
    return {
        "kills": crash_lives.figures(lives),
        "cuts": crash_cuts.figures(told),
        "faults": crash_lives.faults(lives) + crash_cuts.faults(told),
    }


def words(value: object) -> str:
    """Return a figure as it stands in a table."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {count}" for name, count in value.items())
    return str(value)


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Return the rows, which have the same keys, as a table in Markdown."""
    lines = [" | ".join(rows[0]), " | ".join("---" for _ in rows[0])]
    lines += [" | ".join(words(value) for value in row.values()) for row in rows]
    return "".join(f"| {line} |\n" for line in lines)


def main() -> int:
    """Run the long form."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=60, help="for each kernel")
    parser.add_argument("--cuts", type=int, default=96, help="for each kernel")
    parser.add_argument("--kernel", action="append", choices=VERSIONS)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--to", type=Path)
    options = parser.parse_args()
    results = {}
    with tempfile.TemporaryDirectory(prefix="cbtlab-crashes-") as folder:
        try:
            for kernel in options.kernel or VERSIONS:
                results[kernel] = crash(kernel, options, Path(folder))
        except CbtlabError as error:
            say(str(error))
            return 2
    text = "\n".join(
        table([{"kernel": kernel, **result[part]} for kernel, result in results.items()])
        for part in ("kills", "cuts")
    )
    print(text, end="")
    if options.to:
        options.to.mkdir(parents=True, exist_ok=True)
        (options.to / "crashes.md").write_text(text)
        (options.to / "crashes.json").write_text(json.dumps(results, indent=1) + "\n")
    bad = [fault for result in results.values() for fault in result["faults"]]
    for fault in bad:
        say(f"WRONG: {fault}")
    return int(bool(bad))


if __name__ == "__main__":
    sys.exit(main())
