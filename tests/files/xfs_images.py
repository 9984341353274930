"""Small XFS images for the tests, and what xfsprogs say about them.

What they hold, and what the kernel says of it, is in ``xfs_content.py``.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

import ext_images as ext
import numpy as np
import pytest

from cbtlab.files import VolumeMap

MIB = 1 << 20

needs_xfsprogs = pytest.mark.skipif(
    not all(map(shutil.which, ("mkfs.xfs", "xfs_db", "xfs_repair"))), reason="needs xfsprogs"
)

#: mkfs.xfs makes file systems below 300 MB only for those who test it.
_SMALL = {"TEST_DIR": "1", "TEST_DEV": "1", "QA_CHECK_FS": "1"}


def make(path: Path, size: int, *options: str, files: str = "") -> Path:
    """A new file system of ``size`` bytes; ``files`` is the text of a prototype file."""
    path.unlink(missing_ok=True)
    with path.open("wb") as file:
        file.truncate(size)
    if files:
        proto = path.with_suffix(".proto")
        proto.write_text(files)
        options = (*options, "-p", str(proto))
    done = subprocess.run(
        ["mkfs.xfs", "-q", *options, str(path)],
        env={**os.environ, **_SMALL},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode and "unknown option" in done.stderr:
        pytest.skip(f"this mkfs.xfs does not know {options}")
    assert done.returncode == 0, done.stderr
    return path


def tree(root: Path) -> Path:
    """A folder that mkfs.xfs can copy, with folders of every form."""
    root.mkdir()
    for name, count in (("in-inode", 3), ("one-block", 9), ("leaf", 40), ("node", 400)):
        (root / name).mkdir()
        for number in range(count):
            path = root / name / f"f{number:03d}{'n' * (number * 7 % 90)}"
            path.write_bytes(b"%d" % number * (number * 17 % 900))
    (root / "f-large").write_bytes(bytes(range(256)) * 4000)
    (root / "short-link").symlink_to("x" * 9)
    (root / "long-link").symlink_to("y" * 240)
    return root


def prototype(source: Path) -> str:
    """The text of a prototype file that copies a folder."""
    lines = ["/nothing", "0 0", "d--755 0 0"]

    def folder(path: Path) -> None:
        for child in sorted(path.iterdir()):
            if child.is_symlink():
                lines.append(f"{child.name} l--777 0 0 {child.readlink()}")
            elif child.is_dir():
                lines.append(f"{child.name} d--755 0 0")
                folder(child)
                lines.append("$")
            else:
                lines.append(f"{child.name} ---644 0 0 {child}")

    folder(source)
    return "\n".join([*lines, "$", "$", ""])


def xfs_db(path: Path, *commands: str, write: bool = False) -> str:
    options = [word for command in commands for word in ("-c", command)]
    return ext.run("xfs_db", *(["-x"] if write else ["-r"]), *options, str(path))


def field(path: Path, where: str, name: str) -> int:
    """One number as xfs_db prints it."""
    text = xfs_db(path, where, f"print {name}")
    found = re.search(r"= (\S+)", text)
    assert found, text
    return int(found[1], 0)


def add_features(path: Path, features: int) -> None:
    """Set incompatible features in every superblock of a new file system."""
    has = field(path, "sb 0", "features_incompat")
    for number in range(field(path, "sb 0", "agcount")):
        words = f"write -d features_incompat {has | features:#x}"
        xfs_db(path, f"sb {number}", words, write=True)


def free_by_db(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """One bool a block: in xfs_db's list of free extents; and set apart for trees (AGFL)."""
    blocks, each, groups = (field(path, "sb 0", f) for f in ("dblocks", "agblocks", "agcount"))
    free, apart = np.zeros((2, blocks), np.bool_)
    for group, start, count in re.findall(
        r"^\s+(\d+)\s+(\d+)\s+(\d+)\s*$", xfs_db(path, "freesp -d").split("from")[0], re.M
    ):
        first = int(group) * each + int(start)
        free[first : first + int(count)] = True
    words = [f"agf {n}|print flfirst fllast flcount|agfl {n}|print bno" for n in range(groups)]
    text = xfs_db(path, *"|".join(words).split("|"))
    for group, part in enumerate(text.split("flfirst = ")[1:]):
        first, last, count = map(int, re.findall(r"(?:^|= )(\d+)$", part, re.M)[:3])
        listed = re.findall(r"\d+:(\d+|null)", part)
        assert (last - first) % len(listed) + 1 == count or not count
        for n in range(count):
            apart[group * each + int(listed[(first + n) % len(listed)])] = True
    assert free[apart].all()  # xfs_db counts them as free
    return free & ~apart, apart


def expand(rows: Iterable[tuple[int, int, int, int]]) -> set[tuple[int, int, bool]]:
    """Every 512 bytes as (logical, physical, unwritten), however the extents were merged."""
    return {
        (int(logical) + at, int(physical) + at, bool(unwritten))
        for logical, physical, length, unwritten in rows
        for at in range(0, int(length), 512)
    }


def inode_of(volume: VolumeMap, raw: bytes) -> int:
    names = volume.names
    return int(names.loc[names["raw"] == raw, "inode"].iloc[0])


class Memory:
    """An image in memory."""

    name = "memory"

    def __init__(self, data: bytes | bytearray) -> None:
        self.data, self.size = data, len(data)

    def read(self, offset: int, length: int) -> bytes:
        return bytes(self.data[offset : offset + length])
