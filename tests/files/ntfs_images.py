"""Small NTFS images for the tests, and what other tools say about them.

mkntfs makes them, ntfs-3g writes them over FUSE (with root).  Truth comes from the mount
itself, ntfsinfo, ntfscat, pytsk3 and libfsntfs.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from cbtlab.files import VolumeMap
from cbtlab.files.ntfs.system import Ntfs
from cbtlab.files.volume import Volume

MIB = 1 << 20
ROUNDS = int(os.environ.get("CBTLAB_MUTATIONS", "25"))
PLAIN = b"a line of text that is the same as the next\n"

needs_ntfs3g = pytest.mark.skipif(
    not all(map(shutil.which, ("mkntfs", "ntfs-3g", "ntfsinfo", "ntfscat"))), reason="needs ntfs-3g"
)


class Memory:
    """An image in memory."""

    name = "memory"

    def __init__(self, data: bytes | bytearray) -> None:
        self.data, self.size = data, len(data)

    def read(self, offset: int, length: int) -> bytes:
        return bytes(self.data[offset : offset + length])


def run(*command: str | Path) -> bytes:
    done = subprocess.run([str(word) for word in command], capture_output=True, check=False)
    assert done.returncode == 0, f"{command}: {done.stderr!r}"
    return done.stdout


def status(*command: str | Path) -> bytes:
    """Everything that a command says, whatever its status."""
    done = subprocess.run([str(word) for word in command], capture_output=True, check=False)
    return done.stdout + done.stderr


def make(path: Path, size: int, *options: str) -> Path:
    """A new file system of ``size`` bytes."""
    path.unlink(missing_ok=True)
    with path.open("wb") as file:
        file.truncate(size)
    run("mkntfs", "-F", "-q", "-Q", "-p", "0", "-H", "16", "-S", "63", *options, path)
    return path


@contextmanager
def mounted(path: Path, *options: str) -> Iterator[Path]:
    """Mount an image by ntfs-3g; skips where that is not possible."""
    if os.geteuid() != 0 or not Path("/dev/fuse").exists():
        pytest.skip("needs root and FUSE")
    folder = path.with_suffix(".mount")
    folder.mkdir(exist_ok=True)
    words = ",".join(("streams_interface=xattr", "compression", *options))
    # In the foreground, so that its end, and not only the unmounting, can be waited for.
    driver = subprocess.Popen(["ntfs-3g", "-n", "-o", f"no_detach,{words}", path, folder])
    try:
        for _ in range(1000):
            if folder.is_mount() or driver.poll() is not None:
                break
            subprocess.run(["sleep", "0.01"], check=False)
        if not folder.is_mount():
            pytest.skip("ntfs-3g does not mount here")
        yield folder
    finally:
        if folder.is_mount():
            run("umount", folder)
        assert driver.wait(60) is not None


def fill(root: Path) -> None:
    """Files of every kind that ntfs-3g can make."""
    rng = random.Random(7)
    (root / "folder").mkdir()
    (root / "folder" / "text.txt").write_bytes(PLAIN * 400)
    os.link(root / "folder" / "text.txt", root / "folder" / "link.txt")
    os.link(root / "folder" / "text.txt", root / "outside.txt")
    (root / "resident").write_bytes(rng.randbytes(620))
    (root / "tiny").write_bytes(b"tiny")
    (root / "empty").touch()
    odd = (b"caf\xc3\xa9", b"lone\xed\xa0\x80one", b"lone\xed\xb0\x80two", b"clef\xf0\x9d\x84\x9e")
    for name in (*odd, b"x" * 255, b"a:b", b"two\nlines", b"back\\xff", b"\xe6\xbc\xa2" * 200):
        Path(os.fsdecode(os.fsencode(root) + b"/" + name)).write_bytes(name * 3)
    with (root / "sparse").open("wb") as file:
        for at in (MIB, 3 * MIB):
            file.seek(at)
            file.write(b"sparse" * 1000)
        file.truncate(5 * MIB + 1234)
    with (root / "only-hole").open("wb") as file:
        file.truncate(10 * MIB + 1)
    (root / "many").mkdir()
    for number in range(300):
        (root / "many" / f"a file of some length {number:04d}").write_bytes(b"%d" % number)
    for number in range(0, 300, 3):
        (root / "many" / f"a file of some length {number:04d}").unlink()
    deep = root / "deep"
    for number in range(30):
        deep = deep / f"level {number}"
    deep.mkdir(parents=True)
    (deep / "bottom").write_bytes(b"bottom")
    compressed(root / "packed", rng)
    attributes(root)
    (root / "symlink").symlink_to("tiny")


def compressed(folder: Path, rng: random.Random) -> None:
    """Compressed files, where clusters are small enough for that."""
    folder.mkdir()
    os.setxattr(folder, "system.ntfs_attrib_be", struct.pack(">I", 0x810))
    text = b"".join(b"line %d of a text that can be compressed\n" % n for n in range(9000))
    (folder / "text").write_bytes(text)
    (folder / "random").write_bytes(rng.randbytes(200_000))
    mixed = b"abc" * 30000 + rng.randbytes(100_000) + bytes(300_000) + b"the end of it" * 9000
    (folder / "mixed").write_bytes(mixed)
    (folder / "tiny").write_bytes(b"tiny")
    with (folder / "hole").open("wb") as file:
        file.write(text[:70_000])
        file.seek(400_000)
        file.write(text[:5000])


def attributes(root: Path) -> None:
    """Streams, extended attributes, object ids, short names and reparse points."""
    os.setxattr(root / "tiny", "user.small", b"a small stream")
    os.setxattr(root / "tiny", "user.caf\xe9".encode(), b"a larger stream" * 2000)
    os.setxattr(root / "folder", "user.of a folder", b"stream" * 1000)
    value = struct.pack("<IBBH", 20, 0, 4, 7) + b"NAME\0value 1"
    os.setxattr(root / "resident", "system.ntfs_ea", value)
    os.setxattr(root / "resident", "system.ntfs_object_id", bytes(range(16)))
    (root / "a long name.txt").write_bytes(b"with a short one beside it")
    os.setxattr(root / "a long name.txt", "system.ntfs_dos_name", b"ALONGN~1.TXT")
    (root / "folder" / ("x" * 200)).touch()
    for name, target in (("reparse", "tiny"), ("reparse-long", "folder\\" + "x" * 200)):
        path, text = root / name, target.encode("utf-16-le")
        path.touch()
        data = struct.pack("<HHHHI", 0, len(text), len(text), len(text), 1) + text * 2
        head = struct.pack("<IHH", 0xA000000C, len(data), 0)
        os.setxattr(path, "system.ntfs_reparse_data", head + data)


def fragment(root: Path, count: int) -> None:
    """Small files with gaps between them, and a file and $MFT that grow into the gaps."""
    room = root / "gaps"
    room.mkdir()
    for number in range(2 * count):  # too large for a record
        (room / f"{number:05d}").write_bytes(b"%5d" % number * 200)
    free = os.statvfs(root)
    (root / "rest").write_bytes(bytes(free.f_bfree * free.f_frsize - 20_000))
    for number in range(0, 2 * count, 2):
        (room / f"{number:05d}").unlink()
    (root / "fragments").write_bytes(b"fragment" * 20 * count)
    for number in range(count + 300):  # $MFT leaves its zone
        (room / f"{number}").touch()
    (root / "rest").unlink()


def thousands(root: Path) -> None:
    """A sparse file in thousands of runs, so with many records and a long attribute list."""
    with (root / "thousands").open("wb") as file:
        for number in range(2500):
            file.seek(number * 40_000)
            file.write(b"%d" % number)


@dataclass
class Attribute:
    """What ntfsinfo says of an attribute; a run is (vcn, lcn or -1, length) in clusters."""

    kind: str
    name: str = ""
    resident: bool = True
    flags: int = 0
    sizes: dict[str, int] = field(default_factory=dict)
    runs: list[tuple[int, int, int]] = field(default_factory=list)


def described(path: Path, inode: int) -> list[Attribute]:
    """The attributes of an inode, pieces of one joined, by ntfsinfo."""
    text = run("ntfsinfo", "-v", "-f", "-i", str(inode), path).decode(errors="replace")
    found: list[Attribute] = []
    for line in text.splitlines():
        if match := re.match(r"Dumping attribute (\S+) ", line):
            found.append(Attribute(match[1]))
        elif not found:
            continue
        elif match := re.match(r"\s*(Data|Allocated|Initialized) size:\s+(\d+)", line):
            found[-1].sizes[match[1]] = int(match[2])
        elif match := re.match(r"\s*Resident:\s+(\w+)", line):
            found[-1].resident = match[1] == "Yes"
        elif match := re.match(r"\s*Attribute name:\s+'(.*)'", line):
            found[-1].name = match[1]
        elif match := re.match(r"\s*Attribute flags:\s+(0x\w+)", line):
            found[-1].flags = int(match[1], 16)
        elif match := re.match(r"\s+(0x\w+)\t+(0x\w+|<HOLE>)\t+(0x\w+)\s*$", line):
            lcn = -1 if match[2] == "<HOLE>" else int(match[2], 16)
            found[-1].runs.append((int(match[1], 16), lcn, int(match[3], 16)))
    joined: dict[tuple[str, str, bool, int], Attribute] = {}
    for number, one in enumerate(found):
        key = (one.kind, one.name, one.resident, number if one.resident else 0)
        joined.setdefault(key, one)
        if joined[key] is not one:
            joined[key].runs += one.runs
    return list(joined.values())


def bitmap(path: Path, clusters: int) -> np.ndarray:
    """One bool a cluster: set in $Bitmap, by ntfscat."""
    data = np.frombuffer(run("ntfscat", "-f", path, "$Bitmap"), np.uint8)
    return np.unpackbits(data, bitorder="little")[:clusters].astype(np.bool_)


def record_place(data: bytes | bytearray, inode: int) -> int:
    """Where a record of $MFT lies."""
    ntfs = Ntfs(Volume(Memory(data)))
    return int(ntfs.mft.places(np.array([inode * ntfs.boot.record]))[0])


def inode_of(volume: VolumeMap, path: str) -> int:
    return int(volume.names.set_index("path").loc[path, "inode"])
