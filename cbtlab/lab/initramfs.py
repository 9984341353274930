"""The guest's root: cpio archives that the kernel unpacks one after the other.

The userland (Debian's, with a bare Python) is one archive, made once and kept
in the cache.  A boot that asks for more of Debian's packages gets an archive of
these on top, cached too.  What changes from run to run goes into the last one.
"""

from __future__ import annotations

import hashlib
import lzma
import os
import re
import shutil
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

from cbtlab.errors import InputError
from cbtlab.lab.cache import cache_dir, filled
from cbtlab.lab.kernels import Kernel
from cbtlab.lab.packages import Archive

PACKAGES = (
    "busybox-static",
    "dmsetup",
    "e2fsprogs",
    "libpython3.11-stdlib",
    "python3.11-minimal",
    "util-linux",
)
# In the order of insertion; what they depend on comes before them by itself.
MODULES = ("virtio_pci", "virtio_blk", "dm-mod", "dm-snapshot", "loop")

_UNUSED = (
    "usr/share",
    "var",
    "usr/lib/python3.11/idlelib",
    "usr/lib/python3.11/lib2to3",
    "usr/lib/python3.11/pydoc_data",
    "usr/lib/x86_64-linux-gnu/gconv",
    "usr/lib/locale",
)

Content = Path | str | bytes


class Cpio:
    """Writes an archive of the ``newc`` format that the kernel unpacks at boot."""

    def __init__(self, out: BinaryIO) -> None:
        self._out = out
        self._inode = 0
        self._folders: set[str] = set()

    def add(
        self, name: str, mode: int, data: bytes = b"", device: tuple[int, int] = (0, 0)
    ) -> None:
        """Add one entry and the folders above it; ``mode`` as in ``st_mode``."""
        name = name.strip("/")
        parent = name.rpartition("/")[0]
        if parent:
            self._folder(parent)
        self._inode += 1
        fields = (self._inode, mode, 0, 0, 1, 0, len(data), 0, 0, *device, len(name) + 1, 0)
        head = b"070701" + b"".join(b"%08X" % field for field in fields)
        self._write(head + os.fsencode(name) + b"\0")
        self._write(data)

    def add_content(self, name: str, content: Content) -> None:
        """Add text, bytes or a file of the host; a folder with all that is in it."""
        if not isinstance(content, Path):
            data = content.encode() if isinstance(content, str) else content
            self.add(name, stat.S_IFREG | 0o755, data)
        elif content.is_symlink():
            self.add(name, stat.S_IFLNK | 0o777, bytes(content.readlink()))
        elif content.is_dir():
            self._folder(name.strip("/"))
            for entry in sorted(content.iterdir()):
                if entry.name != "__pycache__":
                    self.add_content(f"{name}/{entry.name}", entry)
        elif content.is_file():
            mode = stat.S_IFREG | (content.stat().st_mode & 0o777)
            self.add(name, mode, content.read_bytes())
        else:
            raise InputError(content, "the guest needs this file, and it is not here")

    def close(self) -> None:
        """Write the archive's end."""
        self.add("TRAILER!!!", 0)

    def _folder(self, name: str) -> None:
        if name not in self._folders:
            self._folders.add(name)
            self.add(name, stat.S_IFDIR | 0o755)

    def _write(self, data: bytes) -> None:
        self._out.write(data + b"\0" * (-len(data) % 4))


def userland() -> Path:
    """Return the archive of the guest's programs, made when it is not in the cache."""
    name = "userland-" + re.sub(r"\W", "", "".join(p[:2] + p[-2:] for p in PACKAGES))
    return filled(cache_dir() / name, _make_userland) / "userland.cpio"


def extra(packages: Iterable[str]) -> Path:
    """Return the archive of more packages: them and what they need beyond the userland."""
    wanted = sorted(set(packages))
    base = userland()
    mark = hashlib.sha256("\n".join([base.parent.name, *wanted]).encode()).hexdigest()[:8]
    place = cache_dir() / f"packages-{wanted[0]}-{mark}"
    return filled(place, lambda draft: _make_extra(draft, wanted, base)) / "packages.cpio"


def _unpacked(packages: Iterable[str], draft: Path) -> Path:
    """Return a new folder in ``draft`` with ``packages`` and all that they depend on."""
    root = draft / "root"
    root.mkdir()
    Archive().fetch_closure(packages, root)
    for unused in _UNUSED:
        shutil.rmtree(root / unused, ignore_errors=True)
    return root


def _make_extra(draft: Path, packages: Iterable[str], base: Path) -> None:
    root = _unpacked(packages, draft)
    there = names(base)
    for path in sorted(root.rglob("*"), reverse=True):
        if path.is_symlink() or not path.is_dir():
            # The same file, or another version of it, that fits the rest of the userland.
            if str(path.relative_to(root)) in there:
                path.unlink()
        elif not any(path.iterdir()):
            path.rmdir()
    with (draft / "packages.cpio").open("wb") as out:
        cpio = Cpio(out)
        for entry in sorted(root.iterdir()):
            cpio.add_content(entry.name, entry)
        cpio.close()
    shutil.rmtree(root)


def names(archive: Path) -> set[str]:
    """Return the names in an archive that `Cpio` wrote, without its trailer."""
    found: set[str] = set()
    with archive.open("rb") as source:
        while len(head := source.read(110)) == 110 and head.startswith(b"070701"):
            size, length = int(head[54:62], 16), int(head[94:102], 16)
            name = os.fsdecode(source.read(length)[:-1])
            source.seek(-(110 + length) % 4 + size + -size % 4, os.SEEK_CUR)
            if name == "TRAILER!!!":
                return found
            found.add(name)
    raise InputError(archive, "is no whole cpio archive", "remove its folder and run again")


def _make_userland(draft: Path) -> None:
    root = _unpacked(PACKAGES, draft)
    busybox = root / "bin" / "busybox"
    if not busybox.is_file():
        busybox = root / "usr" / "bin" / "busybox"
    with (draft / "userland.cpio").open("wb") as out:
        cpio = Cpio(out)
        for folder in ("proc", "sys", "dev", "tmp", "run", "mnt", "out", "root", "etc"):
            cpio.add(folder, stat.S_IFDIR | 0o755)
        # The kernel opens it for the first process before anything is mounted.
        cpio.add("dev/console", stat.S_IFCHR | 0o600, device=(5, 1))
        cpio.add_content("lab/busybox", busybox.read_bytes())
        for entry in sorted(root.iterdir()):
            cpio.add_content(entry.name, entry)
        cpio.close()
    shutil.rmtree(root)


def write(
    out: BinaryIO,
    kernel: Kernel,
    files: Mapping[str, Content],
    modules: Iterable[str] = MODULES,
    packages: Sequence[str] = (),
) -> None:
    """Write the whole initramfs: the userland with ``packages``, the modules, and ``files``."""
    for archive in [userland(), *([extra(packages)] if packages else [])]:
        with archive.open("rb") as base:
            shutil.copyfileobj(base, out, 1 << 20)
        out.write(b"\0" * (-out.tell() % 512))
    cpio = Cpio(out)
    order = []
    for name, data in _modules(kernel, modules):
        order.append(f"/lab/modules/{name}.ko\n")
        cpio.add_content(order[-1].strip(), data)
    cpio.add_content("lab/modules/order", "".join(order))
    for place, content in files.items():
        cpio.add_content(place, content)
    cpio.close()
    out.write(b"\0" * (-out.tell() % 512))


def _modules(kernel: Kernel, wanted: Iterable[str]) -> Iterator[tuple[str, bytes]]:
    """Yield (name, content) of the modules, each after those that it depends on.

    The packages hold no modules.dep; the dependencies stand in each module's
    own ``.modinfo`` section, as text.
    """
    found = {_module_name(p): p for p in kernel.modules.rglob("*.ko*")}
    done: set[str] = set()

    def visit(name: str) -> Iterator[tuple[str, bytes]]:
        if name in done or name not in found:
            return  # not found: built into this kernel
        done.add(name)
        data = found[name].read_bytes()
        if found[name].suffix == ".xz":
            data = lzma.decompress(data)
        depends = re.search(rb"\0depends=([^\0]*)\0", data)
        for other in (depends.group(1).decode() if depends else "").split(","):
            yield from visit(other.replace("-", "_"))
        yield name, data

    for name in wanted:
        yield from visit(name.replace("-", "_"))


def _module_name(path: Path) -> str:
    return path.name.split(".ko")[0].replace("-", "_")
