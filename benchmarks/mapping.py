"""How fast a file system is mapped: files a second, the own reader and the walk apart.

    python benchmarks/mapping.py [FILES]

Makes an ext4 image with that many small files (mke2fs fills it, without root),
and maps it with and without names.  Where the Sleuth Kit is installed, ``fls -r``
runs beside it.
"""

from __future__ import annotations

import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from cbtlab.files import map_volume
from cbtlab.images import open_image


def make(folder: Path, files: int) -> Path:
    """An image with ``files`` files, a thousand in a folder, a third of them with content."""
    tree = folder / "tree"
    for number in range(files):
        below = tree / f"folder-{number // 1000:04d}"
        if number % 1000 == 0:
            below.mkdir(parents=True)
        (below / f"file-{number:07d}").write_bytes(b"x" * (5000 if number % 3 == 0 else 0))
    image = folder / "a.img"
    with image.open("wb") as file:
        file.truncate((files * 4 + 200_000) * 1024)
    make = ["mke2fs", "-q", "-F", "-t", "ext4", "-N", str(files + 5000), "-d", str(tree)]
    subprocess.run([*make, str(image)], check=True)
    return image


def main() -> None:
    files = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    with tempfile.TemporaryDirectory() as folder:
        path = make(Path(folder), files)
        with open_image(path) as image:
            for label, names in (("own reader", False), ("with names by pytsk3", True)):
                start = time.perf_counter()
                volume = map_volume(image, names=names)
                count = len(volume.extents)
                took = time.perf_counter() - start
                print(f"{label}: {took:.2f} s, {files / took:,.0f} files/s, {count} extents")
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(f"peak memory {peak:.0f} MiB")
        if shutil.which("fls"):
            start = time.perf_counter()
            subprocess.run(["fls", "-r", str(path)], stdout=subprocess.DEVNULL, check=True)
            print(f"fls -r: {time.perf_counter() - start:.2f} s")


if __name__ == "__main__":
    main()
