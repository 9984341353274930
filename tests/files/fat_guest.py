"""Run in a guest: the kernel's vfat and exfat write files, and say where each of them lies.

Arguments: names of disks.  /out/files.json has, by disk and path, the size, the time of the last
change, the digest of the content and the byte offset of every block (FIBMAP).
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import random
import struct
import subprocess
import sys
from pathlib import Path

FIBMAP, FIGETBSZ = 1, 2
PLACE = Path("/mnt/volume")


def write(root: Path, seed: str) -> None:
    """Fragments, gaps of deleted files, odd names, a file that grew without being written."""
    rng = random.Random(seed)
    folder = root / "Ordner ü 漢字"
    folder.mkdir()
    with (root / "one").open("wb") as one, (folder / "two 🙂").open("wb") as two:
        for _ in range(12):
            for file in (one, two):
                file.write(rng.randbytes(rng.randrange(1, 9000)))
                file.flush()
                os.fsync(file.fileno())
    for number in range(36):
        (folder / f"a file of some length {number}").write_bytes(rng.randbytes(number * 60))
    for number in range(0, 36, 3):
        (folder / f"a file of some length {number}").unlink()
    (root / "gaps").write_bytes(rng.randbytes(50_000))
    for name in ("UPPER.TXT", "lower.txt", "Mixed.Case", "x" * 150, "..two dots", "a+b=c;d"):
        (root / name).write_bytes(name.encode())
    with (root / "grown").open("wb") as file:
        file.write(b"written")
        file.truncate(70_000)
    with (root / "cut").open("wb") as file:
        file.write(rng.randbytes(60_000))
        file.truncate(12_345)
    (root / "empty").touch()
    os.utime(root / "cut", ns=(10**18, 10**18 + 2 * 10**9))


def blocks(path: Path) -> list[int]:
    with path.open("rb") as file:
        size = struct.unpack("i", fcntl.ioctl(file, FIGETBSZ, struct.pack("i", 0)))[0]
        count = -(-os.fstat(file.fileno()).st_size // size)
        return [
            struct.unpack("i", fcntl.ioctl(file, FIBMAP, struct.pack("i", number)))[0] * size
            for number in range(count)
        ]


def told(root: Path) -> dict[str, dict[str, object]]:
    found: dict[str, dict[str, object]] = {}
    for path in root.rglob("*"):
        stat = path.stat()
        found["/" + str(path.relative_to(root))] = {
            "folder": path.is_dir(),
            "size": stat.st_size,
            "modified": stat.st_mtime_ns,
            "digest": "" if path.is_dir() else hashlib.sha256(path.read_bytes()).hexdigest(),
            "blocks": [] if path.is_dir() else blocks(path),
        }
    return found


def main() -> None:
    PLACE.mkdir(parents=True, exist_ok=True)
    answers = {}
    for disk in sys.argv[1:]:
        kind = "exfat" if disk.startswith("exfat") else "vfat"
        subprocess.run(["mount", "-t", kind, f"/dev/lab/{disk}", PLACE], check=True)
        write(PLACE, disk)
        subprocess.run(["umount", PLACE], check=True)
        subprocess.run(["mount", "-t", kind, "-o", "ro", f"/dev/lab/{disk}", PLACE], check=True)
        answers[disk] = told(PLACE)
        subprocess.run(["umount", PLACE], check=True)
    # One more is left mounted while it is copied: it is not at rest.
    for kind in ("exfat", "vfat"):
        disk = next(name for name in sys.argv[1:] if name.startswith(kind.removeprefix("v")))
        subprocess.run(["mount", "-t", kind, f"/dev/lab/{disk}", PLACE], check=True)
        (PLACE / "last").write_bytes(b"last")  # and no sync, at which exFAT marks itself clean
        Path(f"/out/{kind}.dirty").write_bytes(Path(f"/dev/lab/{disk}").read_bytes()[: 1 << 20])
        (PLACE / "last").unlink()
        subprocess.run(["umount", PLACE], check=True)
    Path("/out/files.json").write_text(json.dumps(answers))


main()
