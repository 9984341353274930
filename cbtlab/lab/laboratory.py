"""The scenarios of ``datasets/``, and a run of one: virtual machine, recording, case."""

from __future__ import annotations

import os
import runpy
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pathspec

from cbtlab.case import FOLDERS, MANIFEST, Case
from cbtlab.errors import InputError
from cbtlab.lab import guest, initramfs, kernels, qemu
from cbtlab.lab.file_systems import FILE_SYSTEMS
from cbtlab.lab.packages import require
from cbtlab.lab.packing import pack
from cbtlab.lab.stage import SLOTS, Scenario

_LAB = Path(__file__).parent
# What of the laboratory runs in the guest.
_GUEST_SIDE = (
    *("__init__.py", "content.py", "file_systems.py", "office.py", "stage.py"),
    *("workload.py", "writer.py"),
)
_SLACK = 64 << 20
_MEMORY = 1536  # MiB: the file systems' tools lie in the guest's memory too
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


def described() -> list[Described]:
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
    files["lab/python/cbtlab/rules"] = _LAB.parent / "rules"
    # The guest has no packages; this one is pure Python.
    return {**files, "lab/python/pathspec": Path(pathspec.__file__).parent}


def prepare() -> None:
    """Fetch all that a run needs; InputError names what this machine does not have."""
    qemu.accelerator()
    require("gcc", "make", package="build-essential")
    initramfs.userland()
    for version in kernels.VERSIONS:
        kernels.kernel(version)


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
    unknown name or a kernel without its file system, GuestError for a guest that failed.
    """
    known = {one.name: one for one in described()}
    if name not in known:
        raise InputError("lab run", f"unknown scenario {name}", f"use {', '.join(known)}")
    _check_place(to, force)

    def on_phase(words: str) -> None:
        if say:
            print(words, file=sys.stderr, flush=True)

    scenario = load(known[name].path)
    if kernel not in scenario.kernels:
        raise InputError(
            "lab run",
            f"{name} cannot be recorded on kernel {kernel}",
            f"use --kernel {' or '.join(scenario.kernels)}",
        )
    backups = min(steps or len(scenario.steps), len(scenario.steps))
    qemu.accelerator()
    require("gcc", "make", package="build-essential")
    on_phase(f"kernel {kernel}: fetching and building")
    build = kernels.module(kernels.kernel(kernel))
    result = _record(scenario, known[name].path, kernel, backups, timeout, on_phase)
    on_phase("packing the case")
    facts = {
        "by": f"cbtlab lab run {name} --kernel {kernel}",
        "module": build.digest,
        "accelerator": result.accelerator,
    }
    draft = Path(tempfile.mkdtemp(prefix=f".{to.name}-", dir=to.absolute().parent))
    try:
        pack(result.output, result.disks["images"], draft, facts=facts)
        _place(draft, to)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
        shutil.rmtree(result.output)
        for disk in result.disks.values():
            disk.unlink()
    on_phase(f"the guest's console is kept in {result.console}")
    return Case.open(to)


def _record(
    scenario: Scenario,
    path: Path,
    kernel: str,
    backups: int,
    timeout: float,
    on_phase: Callable[[str], None],
) -> guest.GuestResult:
    """Run the scenario in a guest; GuestError when that fails, and only its console is left."""
    size = scenario.volume_size
    system = FILE_SYSTEMS[scenario.file_system]
    work = Path(tempfile.mkdtemp(prefix=f"cbtlab-{scenario.name}-"))
    try:
        return guest.boot(
            kernel,
            "/lab/busybox insmod /lab/cbt.ko || exit 1\n"
            f"exec python3.11 -m cbtlab.lab.stage /lab/scenario.py {backups}",
            files={**_files(), "lab/scenario.py": path},
            disks={
                "data": size,
                "store": size + _SLACK,
                "images": len(SLOTS) * backups * size,
            },
            modules=(*initramfs.MODULES, *system.modules),
            packages=system.packages,
            memory=_MEMORY,
            timeout=timeout,
            work=work,
            on_phase=on_phase,
        ).check()
    except BaseException:
        for disk in work.glob("*.disk"):
            disk.unlink()
        raise


def _check_place(to: Path, force: bool) -> None:
    """Refuse a place that is taken; with ``force``, one that is no case and no data set."""
    if not to.absolute().parent.is_dir():
        raise InputError(to, "its folder does not exist", "make that first")
    if not to.exists():
        return
    if not force:
        raise InputError(to, "exists", "choose another name, or replace it with --force")
    ours = (MANIFEST, "scenario.py")
    if not to.is_dir() or (any(to.iterdir()) and not any((to / name).exists() for name in ours)):
        raise InputError(to, "exists and is no case", "choose another name")


def _place(draft: Path, to: Path) -> None:
    """Move a case to its place, whole; a data set keeps what is beside the case's pieces."""
    if not to.exists():
        draft.chmod(0o755)
        draft.rename(to)
        return
    (to / MANIFEST).unlink(missing_ok=True)
    for name in FOLDERS:
        shutil.rmtree(to / name, ignore_errors=True)
        if (draft / name).exists():
            (draft / name).rename(to / name)
    (draft / MANIFEST).rename(to / MANIFEST)
