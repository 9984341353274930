"""How fast ext4 and NTFS are mapped: files a second and peak memory, beside ``fls -r -p``.

    python benchmarks/files.py [--files N] [--json] [--keep DIR]

Makes one image of each with that many small files, a third of them with data in blocks
and a third small enough for an NTFS record: mke2fs fills ext4 without root, NTFS needs root
and ntfs-3g.  Every measurement is a process of its own, so that its peak memory is its own,
and the best of a few runs counts; Sleuth Kit's ``fls`` walks the same image in turn with
them.  Where the processor's time is well below the clock's, the machine was busy.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cbtlab.files import map_volume
from cbtlab.images import open_image

RUNS = 3
EACH = 1000  # files in a folder


def fill(tree: Path, files: int) -> None:
    """Files of 5000, 300 and no bytes in turn."""
    for number in range(files):
        below = tree / f"folder-{number // EACH:04d}"
        if number % EACH == 0:
            below.mkdir(parents=True)
        (below / f"file-{number:07d}").write_bytes(b"x" * (5000, 300, 0)[number % 3])


def make_ext4(folder: Path, files: int) -> Path:
    tree, image = folder / "tree", folder / "ext4.img"
    fill(tree, files)
    blank(image, files)
    make = ["mke2fs", "-q", "-F", "-t", "ext4", "-N", str(files + 5000), "-d", str(tree)]
    subprocess.run([*make, str(image)], check=True)
    shutil.rmtree(tree)
    return image


def make_ntfs(folder: Path, files: int) -> Path:
    root, image = folder / "mount", folder / "ntfs.img"
    blank(image, files)
    make = ["mkntfs", "-F", "-q", "-Q", "-p", "0", "-H", "16", "-S", "63", str(image)]
    subprocess.run(make, check=True, stdout=subprocess.DEVNULL)
    root.mkdir()
    driver = subprocess.Popen(["ntfs-3g", "-n", "-o", "no_detach", str(image), str(root)])
    while not root.is_mount():
        if driver.poll() is not None:
            sys.exit("ntfs-3g does not mount here")
        time.sleep(0.01)
    try:
        fill(root, files)
    finally:
        subprocess.run(["umount", str(root)], check=True)
        driver.wait()
    return image


def blank(image: Path, files: int) -> None:
    with image.open("wb") as file:
        file.truncate((files * 5 + 200_000) * 1024)


def mapped(image: str, names: bool) -> int:
    """Map it whole, and count its extents."""
    with open_image(image) as opened:
        return len(map_volume(opened, names=names).arrays)


def opened_only(image: str, names: bool) -> int:
    """What any process needs before it maps: the interpreter and the libraries."""
    with open_image(image) as opened:
        return opened.size


def walked(image: str, names: bool) -> int:
    return subprocess.run(["fls", "-r", "-p", image], capture_output=True).stdout.count(b"\n")


def _work(work: Callable[[str, bool], int], image: str, names: bool, send: Any) -> None:
    start, busy = time.perf_counter(), processor()
    count = work(image, names)
    took, busy = time.perf_counter() - start, processor() - busy
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    send.send({"seconds": took, "processor": busy, "peak_mib": peak, "count": count})


def processor() -> float:
    """Seconds of the processor, of this process and of those it waited for."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def measure(work: Callable[[str, bool], int], image: Path, names: bool = True) -> dict[str, Any]:
    """The best of a few runs, each in a new process."""
    context, best = multiprocessing.get_context("spawn"), {}
    for _ in range(RUNS):
        receive, send = context.Pipe(duplex=False)
        worker = context.Process(target=_work, args=(work, str(image), names, send))
        worker.start()
        found = receive.recv()
        worker.join()
        if not best or found["seconds"] < best["seconds"]:
            best = found
    return best


def run(files: int, folder: Path) -> list[dict[str, Any]]:
    rows = []
    makers = {"ext4": make_ext4}
    if shutil.which("mkntfs"):
        makers["ntfs"] = make_ntfs
    for kind, make in makers.items():
        image = folder / f"{kind}.img"
        image = image if image.exists() else make(folder, files)
        jobs = [("map", mapped, True), ("map without names", mapped, False)]
        jobs.append(("nothing", opened_only, True))
        if shutil.which("fls"):
            jobs.append(("fls -r -p", walked, True))
        for name, work, names in jobs:
            found = measure(work, image, names)
            rate = files / found["seconds"] if work is not opened_only else None
            rows.append({"fs": kind, "what": name, "files": files, "rate": rate, **found})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--files", type=int, default=100_000)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--keep", type=Path, help="a folder for the images, used again if there")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = asked.keep or Path(temporary)
        folder.mkdir(exist_ok=True)
        rows = run(asked.files, folder)
    if asked.json:
        print(json.dumps(rows, indent=1))
        return
    for row in rows:
        rate = f"{row['rate']:>9,.0f} files/s" if row["rate"] else " " * 17
        print(
            f"{row['fs']:5} {row['what']:18} {row['seconds']:6.2f} s "
            f"({row['processor']:.2f} s of the processor)  {rate}  peak {row['peak_mib']:.0f} MiB"
        )


if __name__ == "__main__":
    main()
