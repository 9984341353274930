"""The scenarios of ``datasets/``, and a run of one: virtual machine, recording, case."""

from __future__ import annotations

import os
import runpy
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pathspec

from cbtlab.case import Case
from cbtlab.errors import InputError
from cbtlab.lab import guest, kernels
from cbtlab.lab.packing import pack
from cbtlab.lab.stage import Scenario

_LAB = Path(__file__).parent
# What of the laboratory runs in the guest.
_GUEST_SIDE = ("__init__.py", "content.py", "stage.py", "workload.py", "writer.py")
_SLACK = 64 << 20
SECONDS = 900.0


@dataclass(frozen=True)
class Described:
    """A scenario: its name, one line about it, and its file."""

    name: str
    title: str
    path: Path


def folder() -> Path:
    """Return the folder of the data sets."""
    named = os.environ.get("CBTLAB_DATASETS")
    place = Path(named) if named else _LAB.parents[1] / "datasets"
    if not place.is_dir():
        raise InputError(
            place,
            "the data sets are not here",
            "run from a clone of the repository, or set CBTLAB_DATASETS to its folder datasets",
        )
    return place


def scenarios() -> list[Described]:
    """Return the scenarios that ``run`` knows, by name."""
    found = []
    for path in sorted(folder().glob("*/scenario.py")):
        scenario = load(path)
        found.append(Described(scenario.name, scenario.title, path))
    return found


def load(path: Path) -> Scenario:
    """Return the ``SCENARIO`` that a file defines."""
    scenario = runpy.run_path(str(path)).get("SCENARIO")
    if not isinstance(scenario, Scenario):
        raise InputError(path, "defines no SCENARIO")
    return scenario


def _files() -> dict[str, Path]:
    """Return what the guest needs beside the recorder, by its place there."""
    files = {f"lab/python/cbtlab/lab/{name}": _LAB / name for name in _GUEST_SIDE}
    # The guest has no packages; this one is pure Python.
    return {**files, "lab/python/pathspec": Path(pathspec.__file__).parent}


def run(
    name: str,
    kernel: str,
    to: Path,
    force: bool = False,
    *,
    steps: int | None = None,
    timeout: float = SECONDS,
    say: bool = True,
) -> Case:
    """Record scenario ``name`` on ``kernel`` ("6.1", "6.12") and pack it into the case ``to``.

    ``steps`` records only the first so many backups.  ``timeout``, in seconds,
    ends a guest that hangs.  Phases go to standard error.  InputError for an
    unknown name, GuestError for a guest that failed.
    """
    known = {described.name: described for described in scenarios()}
    if name not in known:
        raise InputError("lab run", f"unknown scenario {name}", f"use {', '.join(known)}")
    if to.exists() and not force:
        raise InputError(to, "exists", "choose another name, or replace it with --force")

    def on_phase(words: str) -> None:
        if say:
            print(words, file=sys.stderr, flush=True)

    scenario = load(known[name].path)
    size, backups = scenario.volume_size, len(scenario.steps)
    backups = min(steps or backups, backups)
    on_phase(f"kernel {kernel}: fetching and building")
    kernels.module(kernels.kernel(kernel))
    work = Path(tempfile.mkdtemp(prefix=f"cbtlab-{name}-"))
    result = guest.boot(
        kernel,
        "/lab/busybox insmod /lab/cbt.ko || exit 1\n"
        "exec python3.11 -m cbtlab.lab.stage /lab/scenario.py " + str(backups),
        files={**_files(), "lab/scenario.py": known[name].path},
        disks={"data": size, "store": size + _SLACK, "images": 2 * backups * size},
        timeout=timeout,
        work=work,
        on_phase=on_phase,
    ).check()
    on_phase("packing the case")
    images = result.disks["images"]
    facts = {
        "by": f"cbtlab lab run {name} --kernel {kernel}",
        "module": kernels.module(kernels.kernel(kernel)).digest,
        "accelerator": result.accelerator,
    }
    case = pack(result.output, images, to, facts=facts, force=force)
    for disk in result.disks.values():
        disk.unlink()
    on_phase(f"the guest's console is kept in {result.console}")
    return case
