"""The long form of the switches: at least 200 a kernel, over every file system.

    python tests/vm/soak.py [--switches N] [--kernel 6.1]… [--file-system ext4]… [--to DIR]

Boots a kernel for each file system and runs ``guest/switches.py`` in it with N
switches (default 50) of the right order, a tenth of that of the wrong one, and
a fifth on discarding volumes.  Progress goes to stderr; the figures, as a table
in Markdown, to stdout, and with ``--to`` also to ``soak.md`` and ``soak.json``.
Exit status: 0 no block missed, and the wrong order caught on every kernel; 1
otherwise; 2 a guest could not be run.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from programs import switches

from cbtlab.errors import CbtlabError
from cbtlab.lab.kernels import VERSIONS

FILE_SYSTEMS = ("ext4", "xfs", "btrfs", "vfat", "raw")
_SECONDS_A_SWITCH = 15  # by far, also on a busy machine without KVM
_COLUMNS = ("changed", "marked", "missed", "surplus")


def plan(count: int) -> dict[str, int]:
    """Return how many switches of each part make ``count`` of the main one."""
    return {"snapshots": count, "late": max(2, count // 10), "discards": max(2, count // 5)}


def figures(kernel: str, results: dict[str, Any]) -> list[dict[str, Any]]:
    """Return a row of sums for each part."""
    rows = []
    for part in results["parts"]:
        judged = [*part["rows"], *(row["under"] for row in part["rows"] if "under" in row)]
        sums = {name: sum(row[name] for row in judged) for name in _COLUMNS}
        rows.append(
            {
                "kernel": kernel,
                "release": results["release"],
                "file_system": part["file_system"],
                "part": part["part"],
                "switches": len(part["rows"]),
                **sums,
                "longest_frozen_us": max(row["frozen_us"] for row in part["rows"]),
                "seconds": round(part["seconds"], 1),
            }
        )
    return rows


def faults(rows: list[dict[str, Any]], kernels: list[str]) -> list[str]:
    """Return a sentence for each thing that must not be."""
    found = [
        f"{row['kernel']} {row['file_system']} {row['part']}: {row['missed']} blocks missed"
        for row in rows
        if row["missed"] and row["part"] != "late"
    ]
    for kernel in kernels:
        late = sum(r["missed"] for r in rows if r["kernel"] == kernel and r["part"] == "late")
        if not late:
            found.append(f"{kernel}: the wrong order was not caught")
    return found


def table(rows: list[dict[str, Any]]) -> str:
    """Return the rows as a table in Markdown."""
    names = ("kernel", "file_system", "part", "switches", *_COLUMNS, "longest_frozen_us")
    lines = [" | ".join(name.replace("_", " ") for name in names), " | ".join("---" for _ in names)]
    lines += [" | ".join(str(row[name]) for name in names) for row in rows]
    return "".join(f"| {line} |\n" for line in lines)


def main() -> int:
    """Run the plan of the command line."""
    parser = argparse.ArgumentParser(description="Switches under writers, many of them.")
    parser.add_argument("--switches", type=int, default=50, help="a file system and kernel")
    parser.add_argument("--kernel", action="append", choices=VERSIONS)
    parser.add_argument("--file-system", action="append", choices=FILE_SYSTEMS)
    parser.add_argument("--to", type=Path, help="a folder for soak.md and soak.json")
    given = parser.parse_args()
    if given.switches < 1:
        parser.error("--switches: at least 1")
    kernels = given.kernel or list(VERSIONS)
    rows: list[dict[str, Any]] = []
    for kernel in kernels:
        for name in given.file_system or FILE_SYSTEMS:
            counts = plan(given.switches)
            seconds = 120 + _SECONDS_A_SWITCH * sum(counts.values())
            with tempfile.TemporaryDirectory(prefix="cbtlab-soak-") as work:
                try:
                    results, _ = switches(
                        kernel, {name: counts}, Path(work), timeout=seconds,
                        on_phase=lambda told, k=kernel: print(f"{k}: {told}", file=sys.stderr),
                    )  # fmt: skip
                except CbtlabError as error:
                    print(f"soak: {error}", file=sys.stderr)
                    return 2
            rows += figures(kernel, results)
            print(table(rows[-len(counts) :]), file=sys.stderr)
    print(table(rows), end="")
    if given.to:
        given.to.mkdir(parents=True, exist_ok=True)
        (given.to / "soak.md").write_text(table(rows))
        (given.to / "soak.json").write_text(json.dumps(rows, indent=1) + "\n")
    for fault in (found := faults(rows, kernels)):
        print(f"soak: {fault}", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
