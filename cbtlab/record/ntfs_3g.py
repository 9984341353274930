"""Mounts NTFS by ntfs-3g, a program that serves the file system through FUSE; stdlib only.

The program runs as a child of this one, so that its end can be waited for: only when it has
ended is all that it wrote on the device.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from cbtlab.errors import InputError
from cbtlab.record.mounted import unmount

__all__ = ["NTFS_3G", "Served", "mounted_by_program", "serve"]

NTFS_3G = "ntfs-3g"
_PLACES = os.pathsep.join([os.environ.get("PATH", os.defpath), "/bin", "/usr/bin", "/sbin"])
_SECONDS = 30.0  # to mount, and to end
# As `mounted` mounts; the program stays this one's child.
_OPTIONS = "no_detach,nosuid,nodev,noexec,noatime"


class Served:
    """A mount at ``place``, and the program that serves it."""

    def __init__(self, place: Path, program: subprocess.Popen[bytes]) -> None:
        self.place = place
        self._program = program

    def end(self) -> None:
        """Unmount, and wait until the program has written all and ended; OSError."""
        unmount(self.place)
        try:
            status = self._program.wait(_SECONDS)
        except subprocess.TimeoutExpired:
            self._program.kill()
            self._program.wait()
            raise OSError(0, "the program did not end after the unmount", NTFS_3G) from None
        if status:
            raise OSError(0, f"the program ended with status {status}", NTFS_3G)


def serve(device: str, place: str | Path, options: str = "") -> Served:
    """Mount ``device`` at ``place``; InputError without the program, OSError when it fails."""
    program = shutil.which(NTFS_3G, path=_PLACES)
    if program is None:
        raise InputError(device, f"{NTFS_3G} is missing", f"install {NTFS_3G}")
    words = ",".join(filter(None, (_OPTIONS, options)))
    with _node(device) as node:
        started = subprocess.Popen(
            [program, node, str(place), "-o", words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        _wait(started, device, Path(place))
    return Served(Path(place), started)


def _wait(started: subprocess.Popen[bytes], device: str, place: Path) -> None:
    """Wait until ``place`` shows ``device``; OSError with the program's words when it ended."""
    wanted, end = os.stat(device).st_rdev, time.monotonic() + _SECONDS  # noqa: PTH116
    while os.stat(place).st_dev != wanted:  # noqa: PTH116
        if started.poll() is not None or time.monotonic() > end:
            with suppress(ProcessLookupError):
                started.kill()
            said = started.communicate()[1].decode(errors="replace").strip().splitlines()
            raise OSError(0, f"cannot be mounted: {said[0] if said else 'no reason'}", device)
        time.sleep(0.02)


@contextmanager
def _node(device: str) -> Iterator[str]:
    """A node of the device under another name, while it is mounted.

    ntfs-3g takes ``/dev/dm-N`` for ``/dev/mapper/NAME``, which only udev makes, in its own time.
    """
    folder = tempfile.mkdtemp(prefix=".cbtlab-", dir="/dev")
    node = Path(folder) / Path(device).name.replace("dm-", "volume-")
    try:
        about = os.stat(device)  # noqa: PTH116
        os.mknod(node, about.st_mode, about.st_rdev)
        yield str(node)
    finally:
        node.unlink(missing_ok=True)
        Path(folder).rmdir()


@contextmanager
def mounted_by_program(device: str, place: str | Path, options: str = "") -> Iterator[Path]:
    """Mount for the length of a ``with``; OSError, InputError."""
    served = serve(device, place, options)
    try:
        yield Path(place)
    finally:
        served.end()
