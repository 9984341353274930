"""How fast a chain's images are written and read, beside a flat file and QEMU in the same run.

    python benchmarks/chain.py [--size 256M] [--cluster 64K] [--folder DIR] [--json]

Random clusters of a disk four times as large are written as one increment,
made durable, and compared with the same bytes written to a flat file; the
image is then read by ``open_image`` and by ``qemu-img convert``.  Source and
targets are in the page cache: what is measured is the work of the program.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from cbtlab import qcow2
from cbtlab.bitmap import Bitmap
from cbtlab.images import CHUNK, image_digest, open_image
from cbtlab.units import parse_size


def timed(work: Callable[[], object]) -> float:
    """Return the seconds that ``work`` takes, the best of three."""
    best = float("inf")
    for _ in range(3):
        start = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - start)
    return best


def write_flat(path: Path, data: memoryview, units: Bitmap) -> None:
    """Write the marked clusters one after the other, durably."""
    with path.open("wb", buffering=0) as file:
        for offset, length in zip(*(array.tolist() for array in units.extents()), strict=True):
            for start in range(offset, offset + length, CHUNK):
                file.write(data[start : min(start + CHUNK, offset + length)])
        os.fsync(file.fileno())


def read_all(path: Path) -> int:
    """Return how many bytes of the image are not known to be zero, having read them."""
    with open_image(path) as image:
        return sum(len(data) for _, data in image.chunks() if data is not None)


def measure(size: int, cluster: int, folder: Path) -> dict[str, float]:
    """Return seconds by what was done, and the ratios."""
    rng = np.random.default_rng(1)
    disk = 4 * size
    data = memoryview(rng.bytes(size) * 4)  # incompressible
    chosen = rng.permutation(disk // cluster)[: size // cluster]
    units = Bitmap.from_indices(chosen, disk, cluster)
    flat, image, raw = folder / "flat", folder / "image.qcow2", folder / "image.raw"

    def write(compress: bool = False) -> None:
        read = lambda offset, length: data[offset : offset + length]  # noqa: E731
        qcow2.write(image, disk, cluster, units, None, read, compress=compress)

    found = {
        "flat file written": timed(lambda: write_flat(flat, data, units)),
        "qcow2 written": timed(write),
        "qcow2 read": timed(lambda: read_all(image)),
        "qcow2 digest of the disk": timed(lambda: image_digest(open_image(image))),
    }
    found["written / flat"] = found["qcow2 written"] / found["flat file written"]
    if shutil.which("qemu-img"):
        convert = ["qemu-img", "convert", "-O", "raw", str(image), str(raw)]
        found["qemu-img convert to raw"] = timed(lambda: subprocess.run(convert, check=True))
        found["read / qemu-img"] = found["qcow2 read"] / found["qemu-img convert to raw"]
    return found


def main() -> None:
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("--size", default="256M", help="bytes stored")
    options.add_argument("--cluster", default="64K")
    options.add_argument("--folder", type=Path, help="where to write (default: a temporary one)")
    options.add_argument("--json", action="store_true")
    given = options.parse_args()
    size, cluster = parse_size(given.size), parse_size(given.cluster)
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        found = measure(size, cluster, Path(folder))
    if given.json:
        json.dump({"size": size, "cluster": cluster, **found}, sys.stdout, indent=1)
        return
    print(f"{given.size} in clusters of {given.cluster}, of a disk four times as large")
    for name, value in found.items():
        rate = "" if "/" in name else f"s  {size / value / 1e6:8.0f} MB/s"
        print(f"{name:28} {value:8.3f} {rate}".rstrip())


if __name__ == "__main__":
    main()
