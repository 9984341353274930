"""Small ext images for the tests, and what other tools say about them.

Truth comes from dumpe2fs and debugfs, and, with root, from the kernel: FIEMAP,
``stat``, ``getxattr`` and the content of a mounted copy.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import re
import shutil
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

MIB = 1 << 20

needs_e2fsprogs = pytest.mark.skipif(
    not all(map(shutil.which, ("mke2fs", "debugfs", "dumpe2fs"))), reason="needs e2fsprogs"
)


def make(path: Path, size: int, *options: str, source: Path | None = None) -> Path:
    """A new file system of ``size`` bytes with mke2fs options, filled from a folder."""
    path.unlink(missing_ok=True)
    with path.open("wb") as file:
        file.truncate(size)
    fill = ["-d", str(source)] if source else []
    run("mke2fs", "-q", "-F", *fill, *options, str(path))
    return path


def run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return done.stdout


def debugfs(path: Path, *commands: str) -> str:
    """Run debugfs commands, writing."""
    text = "".join(command + "\n" for command in commands)
    done = subprocess.run(
        ["debugfs", "-w", "-f", "/dev/stdin", str(path)],
        input=text,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    return done.stdout


def dumped_in_use(path: Path) -> np.ndarray:
    """One bool a block: not in dumpe2fs's lists of free blocks."""
    text = run("dumpe2fs", str(path))
    found = re.search(r"^Block count:\s+(\d+)", text, re.M)
    assert found
    used = np.ones(int(found[1]), np.bool_)
    # With bigalloc a range ends with the first block of its last cluster.
    sizes = [re.search(rf"^{what} size:\s+(\d+)", text, re.M) for what in ("Cluster", "Block")]
    cluster = int(sizes[0][1]) // int(sizes[1][1]) if sizes[0] and sizes[1] else 1
    for line in re.findall(r"^  Free blocks: (.*)$", text, re.M):
        for part in filter(None, line.replace(" ", "").split(",")):
            first, _, last = part.partition("-")
            used[int(first) : int(last or first) + cluster] = False
    return used


@contextmanager
def mounted(path: Path, *options: str) -> Iterator[Path]:
    """Mount an image on a loop device, and unmount it durably; skips without root."""
    if os.geteuid() != 0 or not Path("/dev/loop-control").exists():
        pytest.skip("needs root and loop devices")
    done = subprocess.run(
        ["losetup", "-f", "--show", str(path)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"needs a loop device: {done.stderr.strip()}")
    device, folder = done.stdout.strip(), path.with_suffix(".mount")
    folder.mkdir(exist_ok=True)
    try:
        done = subprocess.run(
            ["mount", *options, device, str(folder)], capture_output=True, text=True, check=False
        )
        if done.returncode:
            pytest.skip(f"this kernel does not mount it: {done.stderr.strip()}")
        try:
            yield folder
        finally:
            run("umount", str(folder))
    finally:
        run("losetup", "-d", device)


FIEMAP = 0xC020660B
UNWRITTEN, INLINE = 0x800, 0x200


def fiemap(path: Path, attributes: bool = False) -> list[tuple[int, int, int, int]]:
    """The kernel's answer: logical, physical, length in bytes, and flags."""
    count, header = 4096, struct.Struct("=QQLLLL")
    entry = struct.Struct("=QQQQQLLLL")
    buffer = ctypes.create_string_buffer(header.size + count * entry.size)
    flags = 1 | (2 if attributes else 0)  # FIEMAP_FLAG_SYNC, FIEMAP_FLAG_XATTR
    header.pack_into(buffer, 0, 0, 2**64 - 1, flags, 0, count, 0)
    with path.open("rb") as file:
        fcntl.ioctl(file, FIEMAP, buffer)
    found = header.unpack_from(buffer, 0)[3]
    assert found < count
    rows = [entry.unpack_from(buffer, header.size + n * entry.size) for n in range(found)]
    return [(row[0], row[1], row[2], row[5]) for row in rows]


def fill(root: Path, attributes: bool = True) -> None:
    """Files of every kind: fragmented, sparse, preallocated, linked, small, with attributes."""
    (root / "folder").mkdir()
    (root / "folder" / "text.txt").write_bytes(b"hello\n" * 3000)
    os.link(root / "folder" / "text.txt", root / "folder" / "link.txt")
    (root / "tiny").write_bytes(b"tiny")
    (root / "small").write_bytes(bytes(range(100)))
    (root / "empty").touch()
    for name in (b"caf\xc3\xa9", b"bad\xff\xfe", b"back\\xff", b"two\nlines", b"a b"):
        Path(os.fsdecode(os.fsencode(root) + b"/" + name)).write_bytes(b"name" * 40)
    (root / "symlink").symlink_to("short")
    (root / "long-symlink").symlink_to("long/" * 40 + "x")
    os.mkfifo(root / "fifo")
    with (root / "sparse").open("wb") as file:
        for at in (MIB, 3 * MIB, 3 * MIB + 8192):
            file.seek(at)
            file.write(b"sparse" * 100)
        file.truncate(5 * MIB + 1234)
    with (root / "only-hole").open("wb") as file:
        file.truncate(10 * MIB + 1)
    with (root / "fragments").open("wb") as one, (root / "other").open("wb") as two:
        for at in range(400):
            for file in (one, two):
                file.seek(at * 20000 if file is one else at * 4096)
                file.write(bytes([at % 255 + 1]) * 3000)
                file.flush()
            if at % 10 == 0:
                os.fsync(one.fileno())
                os.fsync(two.fileno())
    (root / "many").mkdir()
    for number in range(300):
        (root / "many" / f"file-{number:04d}").write_bytes(b"%d" % number)
    for number in range(0, 300, 3):
        (root / "many" / f"file-{number:04d}").unlink()
    (root / "times").touch()
    os.utime(root / "times", ns=(2**33 * 10**9 + 7, -5 * 10**9 + 3))
    os.chown(root / "times", 70000, 80000)
    (root / "times").chmod(0o6751)
    if attributes:
        os.setxattr(root / "tiny", "user.note", b"in the inode")
        os.setxattr(root / "small", "user.big", b"in a block" * 60)
        os.setxattr(root / "folder", "security.label", b"\x00\x01")
        os.setxattr(root / "folder" / "text.txt", "trusted.\xe9", b"")
        owner, user, group, mask, other = (
            (1, 7, ~0),
            (2, 6, 1234),
            (4, 5, ~0),
            (16, 7, ~0),
            (32, 4, ~0),
        )
        entries = [
            (tag, bits, who & 0xFFFFFFFF) for tag, bits, who in (owner, user, group, mask, other)
        ]
        value = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)
        os.setxattr(root / "folder", "system.posix_acl_access", value)
        os.setxattr(root / "folder", "system.posix_acl_default", value)


def preallocate(root: Path) -> None:
    """Unwritten extents inside a file and past its end, and one file written into them."""
    with (root / "preallocated").open("wb") as file:
        file.write(b"start" * 1000)
        os.posix_fallocate(file.fileno(), 0, 300000)
        file.seek(100000)
        file.write(b"middle" * 1000)
    (root / "past-end").write_bytes(b"kept" * 2000)
    run("fallocate", "--keep-size", "--length", "1M", str(root / "past-end"))
