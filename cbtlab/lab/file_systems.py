"""The file systems of the scenarios: how each is made and mounted, and what the guest needs.

Both the host and the guest's bare Python read this; stdlib only.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cbtlab.record.mounted import mount, unmount
from cbtlab.record.ntfs_3g import NTFS_3G, serve

__all__ = ["FILE_SYSTEMS", "FileSystem", "make", "mount_volume"]

_UUID = "6f0ff1ce-0000-4000-8000-000000000001"


@dataclass(frozen=True)
class FileSystem:
    """``mkfs`` makes it, ``options`` are of the volume's own mount.

    ``packages`` are Debian's, ``modules`` the kernel's; ``kernels`` are those that have it.
    """

    mkfs: tuple[str, ...]
    options: str = ""
    packages: tuple[str, ...] = ()
    modules: tuple[str, ...] = ()
    kernels: tuple[str, ...] = ("6.1", "6.12")


_NTFS = ("mkntfs", "--force", "--quick", "--quiet", "--no-indexing")

#: By what ``cbtlab.record`` calls it.
FILE_SYSTEMS = {
    "ext4": FileSystem(
        (
            *("mkfs.ext4", "-q", "-F", "-b", "4096", "-m", "0", "-U", _UUID),
            *("-E", f"hash_seed={_UUID},lazy_itable_init=0,nodiscard"),
        ),
    ),
    "xfs": FileSystem(
        ("mkfs.xfs", "-q", "-f", "-K", "-m", f"uuid={_UUID}"),
        packages=("xfsprogs",),
        modules=("xfs",),
    ),
    # 6.1 cannot mount a snapshot beside its volume: see `cbtlab.record.one_uuid`.
    "btrfs": FileSystem(
        ("mkfs.btrfs", "-q", "-f", "-K", "-U", _UUID),
        packages=("btrfs-progs",),
        modules=("btrfs",),
        kernels=("6.12",),
    ),
    "vfat": FileSystem(
        ("mkfs.vfat", "-i", "6f0ff1ce"),
        options="tz=UTC",
        packages=("dosfstools",),
        modules=("vfat", "nls_cp437", "nls_ascii", "nls_utf8"),
    ),
    "exfat": FileSystem(
        ("mkfs.exfat",),
        packages=("exfatprogs",),
        modules=("exfat", "nls_utf8"),
    ),
    "ntfs3": FileSystem(
        _NTFS, packages=("ntfs-3g",), modules=("ntfs3", "nls_utf8"), kernels=("6.12",)
    ),
    NTFS_3G: FileSystem(_NTFS, packages=("ntfs-3g",), modules=("fuse",)),
}


def make(name: str, device: str, words: Sequence[str] = ()) -> None:
    """Make a file system on ``device``, with more ``words`` for its mkfs; it is found in PATH."""
    subprocess.run([*FILE_SYSTEMS[name].mkfs, *words, device], check=True)


def mount_volume(name: str, device: str, place: Path, options: str = "") -> Callable[[], None]:
    """Mount the volume itself, and return what unmounts it."""
    joined = ",".join(filter(None, (FILE_SYSTEMS[name].options, options)))
    if name == NTFS_3G:
        return serve(device, place, joined).end
    mount(device, place, name, joined)
    return lambda: unmount(place)
