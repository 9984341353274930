"""Plays a recorded case's scenario in a folder: what its volume must hold, without its kernel."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import stat
from pathlib import Path
from typing import Any

import pytest

from cbtlab.lab.stage import Scenario

# Other programs write there while the scenario runs.
APART = ("/mail/spool",)
_FICLONE, _SUBVOL_CREATE = 0x40049409, 0x5000940E
Attributes = dict[tuple[int, str], bytes]


class Played:
    """The folder ``root``, after each step of the scenario; ``attributes`` are its files' own."""

    def __init__(self, scenario: Scenario, root: Path) -> None:
        self.scenario, self.root = scenario, root
        self.attributes: Attributes = {}
        root.mkdir()

    def step(self, k: int) -> None:
        """Do what the scenario does before backup ``k``."""
        with pytest.MonkeyPatch.context() as patched:
            # Nothing has to be durable here, and no other disk may be kept busy.
            patched.setattr(os, "fsync", lambda fd: None)
            patched.setattr(os, "sync", lambda: None)
            patched.setattr(os, "chown", lambda *_: None)
            patched.setattr(os, "setxattr", self._set)
            patched.setattr(os, "getxattr", lambda *_: bytes(4))
            patched.setattr(fcntl, "ioctl", self._ioctl)
            self.scenario.steps[k].work(self.root)

    def content(self) -> dict[str, bytes]:
        """Path, as the package shows it, to content of every file."""
        found = {}
        for folder, _, names in os.walk(os.fsencode(self.root)):
            for name in names:
                path = folder + b"/" + name
                if not stat.S_ISLNK(os.lstat(path).st_mode):
                    shown = path.removeprefix(os.fsencode(self.root))
                    found[shown.decode(errors="backslashreplace")] = Path(
                        os.fsdecode(path)
                    ).read_bytes()
        return found

    def streams(self) -> dict[str, bytes]:
        """The same for named streams: attributes are stored as such by ntfs-3g.

        A stream goes with the inode: it has each of the inode's names.
        """
        owners: dict[int, list[str]] = {}
        for shown in self.content():
            about = (self.root / shown[1:]).stat()
            owners.setdefault(about.st_ino, []).append(shown)
        return {
            f"{shown}:{name}": value
            for (inode, name), value in self.attributes.items()
            for shown in owners.get(inode, [])
        }

    def _set(self, path: Path, name: str, value: bytes, *_: Any) -> None:
        if name.startswith("user."):
            self.attributes[path.stat().st_ino, name.removeprefix("user.")] = value

    def _ioctl(self, fd: int, request: int, argument: Any) -> int:
        if request == _FICLONE:
            shutil.copyfile(f"/proc/self/fd/{argument}", f"/proc/self/fd/{fd}")
        elif request == _SUBVOL_CREATE:
            name = bytes(argument[8:]).split(b"\0", 1)[0]
            os.mkdir(name, dir_fd=fd)
        else:
            raise OSError(errno.ENOTTY, os.strerror(errno.ENOTTY))
        return 0
