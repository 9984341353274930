"""Boots a kernel to one command and brings back its status, its console and its files."""

from __future__ import annotations

import re
import tarfile
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cbtlab.lab import initramfs, kernels, qemu
from cbtlab.lab.initramfs import Content
from cbtlab.lab.qemu import GuestError

_RESULTS_SIZE = 4 << 30  # a sparse file: what the guest does not write takes no space
_PYTHON = Path(__file__).parents[1]
# What of the package runs on the guest's bare Python.
_GUEST_PIECES = ("__init__.py", "errors.py", "record")
# The kernel's own lines begin with their time; a program's "WARNING:" is not a report.
# A trace alone is none either: fault injection and failed allocations print one.
_REPORTS = re.compile(
    r"\[ *\d+\.\d{6}\].*("
    r"BUG[: ]|WARNING: |Oops|Kernel panic|general protection|invalid opcode"
    r"|UBSAN: |ODEBUG: |LOCKUP|duplicate filename|huh, entered|unreferenced object"
    r"|INFO: (task|rcu_|trying to register|lockdep is turned off)|: rcu_\w+ (self-)?detected"
    r"|kmemleak: (?!.*(initialized|scanning thread|scan area))"
    r")"
)


@dataclass(frozen=True)
class GuestResult:
    """What a guest left: the command's ``exit_status``, and where the rest lies.

    ``console`` is the file of its serial console, ``output`` the folder that
    was ``/out`` in the guest, ``disks`` the raw images of its disks by name,
    ``reports`` the lines in which the kernel complained.
    """

    exit_status: int
    console: Path
    output: Path
    disks: dict[str, Path]
    seconds: float
    accelerator: str
    release: str
    reports: list[str]

    def check(self) -> GuestResult:
        """Return self; raise GuestError when the command failed or the kernel complained."""
        if self.exit_status != 0 or self.reports:
            what = self.reports[0] if self.reports else "its last words: " + self._last_words()
            raise GuestError(
                self.console,
                f"the guest ended with status {self.exit_status}: {what}",
                "its console is in that file",
            )
        return self

    def _last_words(self) -> str:
        lines = self.console.read_text(errors="replace").splitlines()
        told = [line for line in lines if line.strip() and not line.startswith(("cbtlab", "["))]
        return told[-1].strip() if told else "none"


def boot(
    kernel: str,
    command: str,
    *,
    files: Mapping[str, Content] | None = None,
    disks: Mapping[str, int | Path] | None = None,
    timeout: float = 300,
    module: bool = True,
    modules: Sequence[str] = initramfs.MODULES,
    packages: Sequence[str] = (),
    memory: int = 1024,
    cpus: int = 2,
    work: Path | None = None,
    options: Sequence[str] = (),
    count_instructions: bool = False,
    on_phase: Callable[[str], None] | None = None,
) -> GuestResult:
    """Boot ``kernel`` and run the shell script ``command``.

    The kernel is Debian's cloud kernel "6.1" or "6.12", or "6.1-debug", the one
    that looks for faults; what it finds is in ``reports``.

    In the guest: ``files`` (place in the guest to text, bytes, or a file or
    folder of the host), ``cbtlab.record`` for ``python3.11``, the built module
    as ``/lab/cbt.ko`` (not inserted) with ``cbtctl`` in the path, and ``disks``
    (name to size in bytes of a new one, or to a raw image) as ``/dev/lab/NAME``,
    and Debian's ``packages`` beside the bare userland.
    What the command leaves in ``/out`` comes back.  Lines that it prints as
    ``cbtlab: …`` go to ``on_phase`` at once.  ``work`` gets console, output
    and disks; without it a new temporary folder.  ``timeout`` is in seconds,
    ``memory`` in MiB.  ``count_instructions``: see ``qemu.arguments``.

    GuestError when the guest hangs, or ends without its closing line.
    """
    started = time.monotonic()
    unpacked = kernels.kernel(kernel)
    work = work or Path(tempfile.mkdtemp(prefix="cbtlab-guest-"))
    work.mkdir(parents=True, exist_ok=True)
    contents: dict[str, Content] = {
        "init": (Path(__file__).parent / "init.sh").read_text(),
        # The kernel's warnings are of level 4, and only what is below the first number is shown.
        "lab/command": f"#!/bin/sh\necho 5 4 1 4 > /proc/sys/kernel/printk\n{command}\n",
    }
    for piece in _GUEST_PIECES:
        contents[f"lab/python/cbtlab/{piece}"] = _PYTHON / piece
    if module:
        build = kernels.module(unpacked)
        contents |= {"lab/cbt.ko": build.module, "lab/cbtctl": build.cbtctl}
    with (work / "initramfs").open("wb") as out:
        initramfs.write(out, unpacked, contents | dict(files or {}), modules, packages)
    images = _disks({**(disks or {}), "results": _RESULTS_SIZE}, work)
    console = work / "console"
    reports: list[str] = []

    def on_line(line: str) -> None:
        if is_report(line):
            reports.append(line.strip())
        if line.startswith("cbtlab: ") and on_phase:
            on_phase(line.removeprefix("cbtlab: "))

    words = qemu.arguments(
        unpacked.image, work / "initramfs", console, images, memory=memory, cpus=cpus,
        options=options, count_instructions=count_instructions,
    )  # fmt: skip
    try:
        status = qemu.run(words, console, timeout, on_line)
    finally:
        (work / "initramfs").unlink()
    if status is None:
        what = f": {reports[0]}" if reports else ""
        raise GuestError(
            console,
            f"the guest ended without its closing line{what}",
            "its console is in that file",
        )
    output = _unpack(images.pop("results"), work / "output")
    return GuestResult(
        status, console, output, images, time.monotonic() - started,
        "tcg" if count_instructions else qemu.accelerator(), unpacked.release, reports,
    )  # fmt: skip


def is_report(line: str) -> bool:
    """Return whether a line of the console is a kernel's report of a fault.

    Those are the first lines of what oops, WARN, KASAN, lockdep, RCU, UBSAN,
    kmemleak and the other checks print; a detector that gives up is one too.
    """
    return _REPORTS.search(line) is not None


def _disks(disks: Mapping[str, int | Path], work: Path) -> dict[str, Path]:
    images = {}
    for name, source in disks.items():
        if isinstance(source, Path):
            images[name] = source
        else:
            images[name] = work / f"{name}.disk"
            with images[name].open("wb") as out:
                out.truncate(source)
    return images


def _unpack(disk: Path, to: Path) -> Path:
    to.mkdir(exist_ok=True)
    with tarfile.open(disk) as archive:
        if hasattr(tarfile, "data_filter"):  # from 3.11.4 on; Debian 12 has 3.11.2
            archive.extraction_filter = tarfile.data_filter
        archive.extractall(to)
    disk.unlink()
    return to
