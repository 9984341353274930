"""A kernel that looks for faults: Debian's source, built small with the detectors switched on.

``debug_kernel.config`` beside this file says what it has: KASAN, lockdep, RCU
and sleeping checks, kmemleak, UBSAN, object and list checks, fault injection.
It is built once for each content of that file, and kept in the cache with what
modules are built against, in the layout of Debian's packages.

    python -m cbtlab.lab.debug_kernel     builds it (15 minutes on two cores)
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from cbtlab.errors import CbtlabError, InputError
from cbtlab.lab.cache import cache_dir, filled, locked
from cbtlab.lab.packages import Archive, require

VERSION = "6.1-debug"
FRAGMENT = Path(__file__).with_suffix(".config")
PERMISSION = "CBTLAB_DEBUG_KERNEL"
_SOURCE = "linux-source-6.1"
# Raised when this file changes what is kept of a build.
_LAYOUT = b"1"
# What `make M=` reads of a built tree, beside arch/x86's makefiles.
_KEPT = (
    "Makefile",
    ".config",
    "Module.symvers",
    "include",
    "scripts",
    "arch/x86/include",
    "tools/objtool/objtool",
)
_TOOLS = {
    "gcc": "build-essential",
    "make": "build-essential",
    "flex": "flex",
    "bison": "bison",
    "bc": "bc",
    "xz": "xz-utils",
}


def place() -> Path:
    """Return where the kernel of the present fragment is, or would be, in the cache."""
    digest = hashlib.sha256(_LAYOUT + FRAGMENT.read_bytes()).hexdigest()
    return cache_dir() / "kernels" / f"{VERSION}-{digest[:12]}"


def absence() -> str:
    """Return why nothing is run on this kernel, or "" when it may be.

    It takes long to build, and the suite takes long on it: only where the
    environment's ``CBTLAB_DEBUG_KERNEL`` is 1.
    """
    if os.environ.get(PERMISSION) == "1":
        return ""
    return f"takes too long for every day: make faults, or {PERMISSION}=1"


def root() -> Path:
    """Return the kernel's folder, laid out as Debian's packages; built when it is new."""
    if place().is_dir():
        return place()
    with locked(cache_dir() / "debug-kernel"):  # a second build would only be in the way
        return filled(place(), _make)


def _make(draft: Path) -> None:
    for program, package in _TOOLS.items():
        require(program, package=package)
    unpacked = draft / "unpacked"
    Archive().fetch([_SOURCE], unpacked)
    archive = unpacked / "usr" / "src" / f"{_SOURCE}.tar.xz"
    _logged(["tar", "-xf", str(archive), "-C", str(unpacked)])
    archive.unlink()
    tree = unpacked / _SOURCE
    configure(tree, FRAGMENT)
    _logged([*_make_in(tree), f"-j{os.cpu_count() or 1}", "bzImage", "modules"])
    keep(tree, draft)
    shutil.rmtree(unpacked)


def configure(tree: Path, fragment: Path) -> None:
    """Configure the source ``tree``; InputError when a line of ``fragment`` got lost."""
    _logged([*_make_in(tree), f"KCONFIG_ALLCONFIG={fragment}", "allnoconfig"])
    lost = lost_lines(fragment.read_text(), (tree / ".config").read_text())
    if lost:
        raise InputError(
            fragment,
            f"{len(lost)} lines are not in the kernel's configuration, first {lost[0]}",
            "an option that they depend on is missing, or this kernel does not have them",
        )


def lost_lines(fragment: str, config: str) -> list[str]:
    """Return the settings of ``fragment`` that do not stand in ``config`` word for word.

    Kconfig drops in silence what lacks something it depends on, and switches
    off what has a default.
    """
    there = set(config.splitlines())
    return [line for line in fragment.splitlines() if _is_setting(line) and line not in there]


def _is_setting(line: str) -> bool:
    return re.match(r"(CONFIG_\w+=|# CONFIG_\w+ is not set$)", line) is not None


def keep(tree: Path, to: Path) -> None:
    """Copy from a built ``tree`` the image and what modules are built against below ``to``."""
    release = (tree / "include" / "config" / "kernel.release").read_text().strip()
    headers = to / "usr" / "src" / f"linux-headers-{release}"
    (to / "lib" / "modules" / release).mkdir(parents=True)  # empty: all is built in
    (to / "boot").mkdir()
    shutil.copy2(tree / "arch/x86/boot/bzImage", to / "boot" / f"vmlinuz-{release}")
    for name in _KEPT:
        _copy(tree / name, headers / name)
    for path in (tree / "arch" / "x86").glob("Makefile*"):
        _copy(path, headers / path.relative_to(tree))


def _copy(source: Path, to: Path) -> None:
    def unneeded(folder: str, names: Iterable[str]) -> list[str]:
        return [n for n in names if n.endswith((".o", ".a", ".cmd", ".dtsi")) or n == "dt-bindings"]

    to.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, to, symlinks=True, ignore=unneeded)
    else:
        shutil.copy2(source, to)


def _make_in(tree: Path) -> list[str]:
    compiler = "gcc-12" if shutil.which("gcc-12") else "gcc"
    return ["make", "-s", "-C", str(tree), f"CC={compiler}"]


def _logged(words: Sequence[str]) -> None:
    log = cache_dir() / "kernels" / f"{VERSION}.log"
    with log.open("wb") as out:
        done = subprocess.run(words, stdin=subprocess.DEVNULL, stdout=out, stderr=out)
    if done.returncode != 0:
        raise InputError(
            log,
            f"the debug kernel cannot be built: {words[0]} failed",
            "read it; the build needs flex, bison, bc, libelf-dev and libssl-dev",
        )


def main() -> int:
    """Build the kernel, say where it is, how large it is and how long it took."""
    started = time.monotonic()
    try:
        folder = root()
    except CbtlabError as error:
        print(f"debug kernel: {error}", file=sys.stderr)
        return 2
    size = sum(p.lstat().st_blocks * 512 for p in folder.rglob("*"))
    print(f"{folder}: {size >> 20} MiB, {time.monotonic() - started:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
