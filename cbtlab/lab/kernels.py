"""Debian's cloud kernels, and modules built against them; both cached.

A kernel is fetched once: image, modules, headers and kbuild are unpacked below
the cache, and stay there until somebody removes them.  The debug kernel is
built instead: ``debug_kernel.py``.  A module is built in a copy of its folder,
once for each kernel and content of that folder.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cbtlab.errors import InputError
from cbtlab.lab import debug_kernel
from cbtlab.lab.cache import cache_dir, filled
from cbtlab.lab.packages import Archive, require

VERSIONS = ("6.1", "6.12")
_FLAVOUR = "cloud-amd64"


@dataclass(frozen=True)
class Kernel:
    """An unpacked kernel: its ``version`` (6.1), ``release`` (6.1.0-56-…) and folder."""

    version: str
    release: str
    root: Path

    @property
    def image(self) -> Path:
        """The bootable kernel."""
        return self.root / "boot" / f"vmlinuz-{self.release}"

    @property
    def modules(self) -> Path:
        """The folder of its modules."""
        return self.root / "lib" / "modules" / self.release

    @property
    def headers(self) -> Path:
        """The folder to build modules against: the module's ``KDIR``."""
        return self.root / "usr" / "src" / f"linux-headers-{self.release}"


@dataclass(frozen=True)
class Build:
    """The module and its control program, built for one kernel."""

    module: Path
    cbtctl: Path
    digest: str


def kernel(version: str) -> Kernel:
    """Return Debian's cloud kernel of ``version``, fetched when it is not in the cache.

    "6.1-debug" is the one that looks for faults, built when it is not there.
    """
    if version == debug_kernel.VERSION:
        root = debug_kernel.root()
    elif version in VERSIONS:
        root = filled(cache_dir() / "kernels" / version, lambda draft: _fetch(version, draft))
    else:
        raise InputError("--kernel", f"unknown kernel {version}", f"use {' or '.join(VERSIONS)}")
    found = sorted((root / "boot").glob("vmlinuz-*"))
    if len(found) != 1:
        raise InputError(root, "holds no kernel", "remove that folder and run again")
    return Kernel(version, found[0].name.removeprefix("vmlinuz-"), root)


def newest_release(version: str, images: list[str], headers: list[str]) -> str | None:
    """Return the newest release of ``version`` among packages, one with image and headers."""
    found = []
    for name in images:
        release = name.removeprefix("linux-image-")
        numbered = re.fullmatch(rf"{re.escape(version)}\.(\d.*)-{_FLAVOUR}", release)
        if numbered and f"linux-headers-{release}" in headers:
            found.append((tuple(map(int, re.findall(r"\d+", numbered.group(1)))), release))
    return max(found)[1] if found else None


def _fetch(version: str, draft: Path) -> None:
    archive = Archive()
    release = newest_release(
        version,
        archive.names(f"linux-image-{version}."),
        archive.names(f"linux-headers-{version}."),
    )
    if release is None:
        raise InputError(
            f"kernel {version}",
            "Debian's mirror has no such cloud kernel",
            "bookworm has 6.1; bookworm-security or bookworm-backports have 6.12",
        )
    headers = f"linux-headers-{release}"
    parts = [p for p in archive.depends(headers) if re.search(r"-common$|^linux-kbuild-", p)]
    archive.fetch([f"linux-image-{release}", headers, *parts], draft)
    _relocate(draft, draft / "usr" / "src" / headers)


def _relocate(root: Path, headers: Path) -> None:
    """Make the unpacked headers point to each other, wherever ``root`` is moved."""
    makefile = headers / "Makefile"
    here = "$(dir $(abspath $(lastword $(MAKEFILE_LIST))))"
    text = makefile.read_text()
    makefile.write_text(text.replace("/usr/src/", f"{here}../"))
    for link in root.glob("usr/src/*/*"):
        # scripts and tools lead to the absolute place where kbuild would be installed.
        if link.is_symlink() and link.readlink().is_relative_to("/usr"):
            target = root / link.readlink().relative_to("/")
            link.unlink()
            link.symlink_to(os.path.relpath(target, link.parent))


def module_sources() -> Path:
    """Return the folder of the module's sources."""
    folder = Path(os.environ.get("CBTLAB_MODULE") or Path(__file__).parents[2] / "kernel_module")
    if not (folder / "Makefile").is_file():
        raise InputError(
            folder,
            "the module's sources are not here",
            "run from a clone of the repository, or set CBTLAB_MODULE to its kernel_module folder",
        )
    return folder.absolute()


def module(built_for: Kernel) -> Build:
    """Return the module built against ``built_for``, made when its sources are new."""
    place, digest = compiled(built_for, module_sources(), ("cbt.ko", "cbtctl"))
    return Build(place / "cbt.ko", place / "cbtctl", digest)


def compiled(built_for: Kernel, sources: Path, products: Sequence[str]) -> tuple[Path, str]:
    """Return a folder with what ``make KDIR=`` makes of ``sources``, and the inputs' digest.

    Only ``products`` are kept.  InputError, naming the log, when it does not build.
    """
    files = sorted(p for p in sources.rglob("*") if p.is_file() and _is_source(p))
    # Two debug kernels of one release differ in their configuration, and so in their folders.
    hasher = hashlib.sha256(f"{built_for.release} {built_for.root.name}".encode())
    for path in files:
        content = path.read_bytes()
        hasher.update(f"{path.relative_to(sources)}\0{len(content)}\0".encode() + content)
    digest = hasher.hexdigest()
    place = cache_dir() / "modules" / f"{built_for.release}-{digest[:16]}"
    filled(place, lambda draft: _build(built_for, sources, files, products, draft))
    return place, digest


def _is_source(path: Path) -> bool:
    return path.suffix in {".c", ".h"} or path.name in {"Makefile", "Kbuild"}


def _build(
    built_for: Kernel, sources: Path, files: list[Path], products: Sequence[str], draft: Path
) -> None:
    require("gcc", "make", package="build-essential")
    work = draft / "build"
    for path in files:
        copy = work / path.relative_to(sources)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, copy)
    # gcc-12 is what Debian built both kernels with; without pahole there is no BTF.
    compiler = "gcc-12" if shutil.which("gcc-12") else "gcc"
    words = ["make", "-C", str(work), f"KDIR={built_for.headers}", f"CC={compiler}"]
    words.append("CONFIG_DEBUG_INFO_BTF_MODULES=")
    done = subprocess.run(words, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    log = cache_dir() / "modules" / f"{built_for.release}.log"
    log.write_text(done.stdout + done.stderr)
    for name in products:
        if done.returncode != 0 or not (work / name).is_file():
            raise InputError(log, f"the module does not build for {built_for.release}", "read it")
        (work / name).rename(draft / name)
    shutil.rmtree(work)
