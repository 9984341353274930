"""Run in a guest: the kernel's ntfs3 writes files on a volume, and says what it holds.

Arguments: names of disks.  /out/NAME.live and NAME.synced are copies of a disk while it is
mounted, before and after a sync; /out/files.json has, by disk and path, the size, the inode, the
digest of the content and the extents (FIEMAP), as logical, physical, length and flags.
"""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import json
import os
import random
import struct
import subprocess
import sys
from pathlib import Path

FIEMAP = 0xC020660B
PLACE = Path("/mnt/volume")


def write(root: Path, seed: str) -> None:
    """Fragments, gaps, holes, clusters never written, streams' kin, and odd names."""
    rng = random.Random(seed)
    folder = root / "Ein Ordner 漢字"
    folder.mkdir()
    with (root / "one").open("wb") as one, (folder / "two 🙂").open("wb") as two:
        for _ in range(20):
            for file in (one, two):
                file.write(rng.randbytes(rng.randrange(1, 9000)))
                file.flush()
                os.fsync(file.fileno())
    for number in range(60):
        (folder / f"a file of some length {number}").write_bytes(rng.randbytes(number * 40))
    for number in range(0, 60, 3):
        (folder / f"a file of some length {number}").unlink()
    os.link(root / "one", folder / "linked")
    (root / "symlink").symlink_to("one")
    with (root / "preallocated").open("wb") as file:
        file.write(rng.randbytes(5000))
        os.posix_fallocate(file.fileno(), 0, 200_000)
    subprocess.run(["fallocate", "-n", "-l", "300000", root / "past the end"], check=False)
    with (root / "grown").open("wb") as file:
        file.write(rng.randbytes(3000))
        file.truncate(150_000)
    (root / ("x" * 255)).write_bytes(b"long")
    os.setxattr(root / "one", "user.note", b"an extended attribute")


def fiemap(path: Path) -> list[list[int]]:
    count, header, entry = 512, struct.Struct("=QQLLLL"), struct.Struct("=QQQQQLLLL")
    buffer = ctypes.create_string_buffer(header.size + count * entry.size)
    header.pack_into(buffer, 0, 0, 2**64 - 1, 1, 0, count, 0)
    with path.open("rb") as file:
        fcntl.ioctl(file, FIEMAP, buffer)
    found = header.unpack_from(buffer, 0)[3]
    rows = [entry.unpack_from(buffer, header.size + n * entry.size) for n in range(found)]
    return [[row[0], row[1], row[2], row[5]] for row in rows]


def listed(root: Path) -> dict[str, dict[str, object]]:
    found: dict[str, dict[str, object]] = {}
    for folder, _, files in os.walk(root):
        for name in files:
            path = Path(folder) / name
            about = path.lstat()
            key = "/" + str(path.relative_to(root))
            found[key] = {"size": about.st_size, "inode": about.st_ino, "links": about.st_nlink}
            if path.is_symlink():
                found[key]["target"] = str(path.readlink())
                continue
            found[key]["digest"] = hashlib.sha256(path.read_bytes()).hexdigest()
            found[key]["extents"] = fiemap(path)
    return found


def main() -> None:
    PLACE.mkdir(parents=True, exist_ok=True)
    result = {}
    for name in sys.argv[1:]:
        mount = ["mount", "-t", "ntfs3", *([] if name != "sparse" else ["-o", "sparse"])]
        subprocess.run([*mount, f"/dev/lab/{name}", PLACE], check=True)
        write(PLACE, name)
        for moment in ("live", "synced"):
            Path(f"/out/{name}.{moment}").write_bytes(Path(f"/dev/lab/{name}").read_bytes())
            os.sync()
        subprocess.run(["umount", PLACE], check=True)
        subprocess.run(["mount", "-t", "ntfs3", "-o", "ro", f"/dev/lab/{name}", PLACE], check=True)
        result[name] = listed(PLACE)
        subprocess.run(["umount", PLACE], check=True)
    Path("/out/files.json").write_text(json.dumps(result))


main()
