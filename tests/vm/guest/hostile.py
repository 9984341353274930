"""Run in a guest: lets ``hostile`` loose on /dev/cbt while its volumes are written and suspended.

Arguments: seed, calls, processes.  /out/hostile.txt has a line "KIND MADE
SUCCEEDED" for each kind of call.  At the end everything must come apart:
trackers, volumes, and the module.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from cbtlab.record.device_mapper import DeviceMapper, Snapshots, Target

SECTORS = 16384  # of each volume: 8 MiB
BLOCK = 4096


def make_volumes(mapper: DeviceMapper) -> list[str]:
    """Make volumes of several kinds on the lab's disk; return their names, topmost first."""
    disk = "/dev/lab/volume"
    base = mapper.create("base", [Target(0, SECTORS, "linear", f"{disk} 0")]).node
    mapper.create("origin", [Target(0, SECTORS, "snapshot-origin", base)])
    provider = Snapshots(mapper, "origin", "/dev/lab/store")
    provider.prepare()
    mapper.suspend("origin")
    provider.create("snapshot")
    mapper.resume("origin")
    lower = mapper.create("lower", [Target(0, SECTORS, "linear", f"{disk} {SECTORS}")]).node
    mapper.create("upper", [Target(0, SECTORS - 2048, "linear", f"{lower} 2048")])
    stripes = f"2 128 {disk} {2 * SECTORS} {disk} {3 * SECTORS}"
    mapper.create("striped", [Target(0, 2 * SECTORS, "striped", stripes)])
    return ["snapshot", "origin", "upper", "striped", "lower", "base"]


def write_for_ever(node: str, seed: int) -> None:
    pick = random.Random(seed)
    fd = os.open(node, os.O_WRONLY | os.O_DIRECT)
    size = os.lseek(fd, 0, os.SEEK_END)
    buffer = mmap.mmap(-1, 16 * BLOCK)
    while True:
        length = pick.randrange(1, 17) * BLOCK
        with contextlib.suppress(OSError):  # a snapshot whose store is full
            os.pwrite(fd, memoryview(buffer)[:length], pick.randrange(size // BLOCK - 16) * BLOCK)
        time.sleep(0.005)


def suspend_for_ever(names: list[str], seed: int) -> None:
    """Suspend and resume one volume after the other, now and then with a shorter table."""
    pick = random.Random(seed)
    mapper = DeviceMapper()
    while True:
        name = pick.choice(names)
        with contextlib.suppress(OSError):
            mapper.suspend(name)
            time.sleep(pick.random() * 0.02)
            if name == "striped" and pick.random() < 0.5:
                stripes = f"/dev/lab/volume {2 * SECTORS}"
                length = pick.choice((SECTORS, 2 * SECTORS))
                mapper.load(name, [Target(0, length, "linear", stripes)])
        mapper.resume(name)
        time.sleep(pick.random() * 0.05)


@contextlib.contextmanager
def meanwhile(*jobs: Callable[[], None]) -> Iterator[None]:
    """Let one process do each of ``jobs`` until the block is left."""
    processes = []
    for job in jobs:
        process = os.fork()
        if not process:
            try:
                job()
            finally:
                os._exit(1)
        processes.append(process)
    try:
        yield
        for process in processes:
            assert os.waitpid(process, os.WNOHANG) == (0, 0), "a job has ended by itself"
    finally:
        for process in processes:
            with contextlib.suppress(ProcessLookupError, ChildProcessError):
                os.kill(process, signal.SIGKILL)
                os.waitpid(process, 0)


def main() -> None:
    seed, calls, processes = sys.argv[1:]
    mapper = DeviceMapper()
    names = make_volumes(mapper)
    mapper._call(3, "empty")  # a device without a table
    nodes = {name: mapper.info(name).node for name in [*names, "empty"]}

    def write(name: str) -> Callable[[], None]:
        return lambda: write_for_ever(nodes[name], int(seed))

    with meanwhile(
        *(write(name) for name in ("snapshot", "origin", "upper", "striped")),
        lambda: suspend_for_ever(names, int(seed)),
    ):
        words = ["/tests/hostile", seed, calls, processes, *nodes.values()]
        with Path("/out/hostile.txt").open("wb") as out:
            subprocess.run(words, stdout=out, check=True)
    for name in names:
        mapper.resume(name)
    subprocess.run(["/tests/hostile", seed, "0", "1", "/dev/null"], check=True)
    subprocess.run(["/lab/busybox", "rmmod", "cbt"], check=True)
    for name in nodes:
        mapper.remove(name)


if __name__ == "__main__":
    main()
