"""How fast the leak audit is, beside one reading of the same bytes, and ``grep -c``.

    python benchmarks/leaks.py [MIB] [ROUNDS]

Makes an ext4 volume of that many MiB that is nearly full: kept files of random bytes, and an
eighth of it excluded files.  One backup of it is audited; then what the leak audit reads is
read once more by the same readers (the restored volume, and the excluded files on the
snapshot), the leak audit is run alone, and ``grep -c`` looks for one piece, and for 1000 pieces,
of the excluded files in the restored volume, as fixed strings.  All in one run, one after the
other, the best of some rounds each.  Times are of the processor (user and system), so that other
work on the machine does not show; and by the clock, with the files out of the page cache, as an
audit finds them that has more to read than fits into memory.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from cbtlab import audit
from cbtlab.audit import backup as auditing
from cbtlab.case import Case
from cbtlab.checks import Material, Verdict
from cbtlab.checks.content import Content
from cbtlab.checks.contents import going_spots
from cbtlab.checks.streams import read_ranges

MIB = 1 << 20


def make(folder: Path, size: int) -> Case:
    """A case of one backup: ``cache`` is excluded, and was deleted with debugfs."""
    rng = np.random.default_rng(1)
    tree = folder / "tree"
    for name, share in (("docs", 5), ("cache", 1)):
        (tree / name).mkdir(parents=True)
        rest = size * share // 8
        while rest > 0:
            many = int(min(rest, rng.integers(1, 4 * MIB)))
            (tree / name / f"{rest}.bin").write_bytes(rng.bytes(many))
            rest -= many
    snapshot, stored = folder / "snapshot.img", folder / "stored.img"
    with snapshot.open("wb") as file:
        file.truncate(size)
    subprocess.run(
        ["mke2fs", "-q", "-F", "-t", "ext4", "-b", "4096", "-d", str(tree), str(snapshot)],
        check=True,
    )
    shutil.copyfile(snapshot, stored)
    script = "".join(f"rm /cache/{path.name}\n" for path in (tree / "cache").iterdir())
    subprocess.run(
        ["debugfs", "-w", "-f", "-", str(stored)],
        input=script.encode(),
        check=True,
        capture_output=True,
    )
    case = Case.create(folder / "case", size, 64 << 10)
    case.add(snapshot=snapshot, stored=stored, patterns=["/cache/"])
    shutil.rmtree(tree)
    return Case.open(folder / "case")


def cpu_seconds() -> float:
    """What this process and its finished children took of the processor."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def best(rounds: int, work: Callable[[], object]) -> float:
    """The shortest of some runs, in seconds."""
    taken = []
    for _ in range(rounds):
        start = cpu_seconds()
        work()
        taken.append(cpu_seconds() - start)
    return min(taken)


def cold(m: Material, rounds: int, work: Callable[[], object]) -> float:
    """The shortest of some runs by the clock, each with the files out of the page cache."""
    taken = []
    for _ in range(rounds):
        for path in (m.restored_path, *(m.case.path / "images").iterdir()):
            assert path is not None
            with path.open("rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        start = time.perf_counter()
        work()
        taken.append(time.perf_counter() - start)
    return min(taken)


def grep(command: list[object]) -> None:
    subprocess.run(command, check=False, capture_output=True, env={"LC_ALL": "C"})  # type: ignore


def read_once(m: Material) -> int:
    """Read what the leak audit reads; return how many bytes."""
    assert m.restored is not None
    total = 0
    for _, data in m.restored.chunks():
        total += 0 if data is None else len(data)
    spots = going_spots(m)
    for _, length, _ in read_ranges(m.mapped_image, spots.start, spots.valid):
        total += length
    return total


def measure(m: Material, check: Callable[[Material], Verdict], rounds: int) -> None:
    total = read_once(m)
    reading = best(rounds, lambda: read_once(m))

    def search() -> None:
        m.content = Content()
        found = check(m)
        assert found.holds, found

    searching = best(rounds, search)
    print(f"{total / MIB:,.0f} MiB are read: {reading:.2f} s, {total / MIB / reading:,.0f} MiB/s")
    print(f"leak audit: {searching:.2f} s, {searching / reading:.2f} times the reading")
    waited, searched = (cold(m, rounds, work) for work in (lambda: read_once(m), search))
    print(
        f"from the disk, by the clock: {waited:.2f} s, {total / MIB / waited:,.0f} MiB/s; "
        f"leak audit {searched:.2f} s, {searched / waited:.2f} times the reading"
    )
    assert m.content is not None and m.restored_path is not None
    with tempfile.NamedTemporaryFile() as file:
        spots = going_spots(m)
        for start, length in zip(spots.start.tolist(), spots.valid.tolist(), strict=True):
            for at in range(start, start + length, max(512, int(spots.valid.sum()) // 1000)):
                piece = m.snapshot.read(at, 32)
                file.write(piece.translate(None, b"\n\0") + b"\n")
        file.flush()
        one = Path(file.name).read_bytes().splitlines()[0]
        where = str(m.restored_path)
        for told, pattern in (("a thousand pieces", ["-f", file.name]), ("one piece", ["-e", one])):
            command = ["grep", "-a", "-c", "-F", *pattern, where]
            taken = best(1, lambda c=command: grep(c))  # type: ignore[misc]
            print(f"grep -c of {told} of them, in the restored volume alone: {taken:.2f} s")


def main() -> None:
    size = (int(sys.argv[1]) if len(sys.argv) > 1 else 1024) * MIB
    rounds = int(sys.argv[2]) if len(sys.argv) > 2 else 3
    with tempfile.TemporaryDirectory() as folder:
        case = make(Path(folder), size)
        true = auditing.CHECKS["excluded"]

        def measured(m: Material) -> object:
            measure(m, true, rounds)
            m.content = Content()
            return true(m)

        auditing.CHECKS["excluded"] = measured  # type: ignore[assignment]
        audit.run(case, Path(folder) / "out")


if __name__ == "__main__":
    main()
