"""Runs the programs of ``guest/`` in a virtual machine, with the writers and the judge in C."""

from __future__ import annotations

import hashlib
import json
import subprocess
from pathlib import Path
from typing import Any

from cbtlab.lab import guest
from cbtlab.lab.cache import cache_dir, filled
from cbtlab.lab.initramfs import MODULES

GUEST = Path(__file__).parent / "guest"
FILE_SYSTEM_PACKAGES = ("btrfs-progs", "dosfstools", "xfsprogs")
FILE_SYSTEM_MODULES = ("xfs", "btrfs", "vfat", "nls_cp437", "nls_utf8", "nls_ascii")
# What a run left as JSON, and the folder of the rest.
Switched = tuple[dict[str, Any], Path]

_TOOLS = {"load": ("load.c", "load_uring.c", "load.h"), "truth": ("truth.c",)}


def boot(kernel: str, program: str, work: Path, **options: Any) -> guest.GuestResult:
    """Run one of the programs in ``guest/``, with its arguments, after inserting the module."""
    return guest.boot(
        kernel,
        f"insmod /lab/cbt.ko && PYTHONPATH=/lab/python:/tests python3.11 -B /tests/{program}",
        files={"tests": GUEST, "tests/bin": tools()},
        work=work,
        **options,
    ).check()


def switches(kernel: str, plan: dict[str, dict[str, int]], work: Path, **options: Any) -> Switched:
    """Run a plan of ``guest/switches.py`` (file system to part to count) on a kernel."""
    done = boot(
        kernel,
        f"switches.py '{json.dumps(plan)}'",
        work,
        disks={"volume": 64 << 20, "store": 96 << 20},
        packages=FILE_SYSTEM_PACKAGES,
        modules=[*MODULES, *FILE_SYSTEM_MODULES],
        memory=2048,
        **options,
    )
    return json.loads((done.output / "switches.json").read_text()), done.output


def tools() -> Path:
    """Return the folder of the static tools, compiled when their sources are new."""
    digest = hashlib.sha256()
    for name in (name for sources in _TOOLS.values() for name in sources):
        digest.update((GUEST / name).read_bytes())
    return filled(cache_dir() / "tools" / digest.hexdigest()[:16], _compile)


def _compile(draft: Path) -> None:
    for name, sources in _TOOLS.items():
        words = ["gcc", "-static", "-O2", "-Wall", "-Wextra", "-Werror", "-o", str(draft / name)]
        words += [str(GUEST / source) for source in sources if source.endswith(".c")]
        subprocess.run(words, check=True)
