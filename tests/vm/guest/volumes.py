"""For the programs that run in a guest: file systems, writers that never rest, and the truth.

The volume's content, read with O_DIRECT by ``truth``, is what a bitmap is held
against; the writers are ``load``.  Both are compiled on the host
(``tests/vm/programs.py``).  Standard library only.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import mmap
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cbtlab.record.kernel_module import Tracker
from cbtlab.record.mounted import mount, unmount

BLOCK = 4096
LOAD, TRUTH = "/tests/bin/load", "/tests/bin/truth"
# Every kind of writer on a mounted file system; ``trim`` needs a volume that can discard.
WRITERS = ("buffered", "direct", "mapped", "uring", "allocate", "names")
_FIFREEZE, _FITHAW = 0xC0045877, 0xC0045878


@dataclass(frozen=True)
class FileSystem:
    """How a file system is made and mounted; ``RAW`` stands for none."""

    name: str
    mkfs: tuple[str, ...]
    options: str = ""
    # A device-mapper suspend does not freeze it: FIFREEZE must come before.
    freeze: bool = False


FILE_SYSTEMS = {
    fs.name: fs
    for fs in (
        FileSystem("ext4", ("/sbin/mke2fs", "-q", "-F", "-E", "nodiscard", "-t", "ext4")),
        FileSystem("xfs", ("/sbin/mkfs.xfs", "-q", "-f", "-K")),
        FileSystem("btrfs", ("/sbin/mkfs.btrfs", "-q", "-f", "-K", "--mixed"), freeze=True),
        FileSystem("vfat", ("/sbin/mkfs.vfat",)),
        FileSystem("raw", ()),
    )
}
RAW = FILE_SYSTEMS["raw"]


class Truth:
    """What a device, or ``span`` (offset, length) of it, held when it was judged last."""

    def __init__(self, granularity: int = BLOCK, span: tuple[int, int] | None = None) -> None:
        Truth.count = getattr(Truth, "count", 0) + 1
        self._copy = Path(f"/dev/shm/truth-{Truth.count}")
        self._granularity = granularity
        self._span = span or ()

    def judge(self, device: str, bits: bytes | None) -> dict[str, Any]:
        """Compare the content with the one before, and the difference with ``bits``.

        The first call only takes the content: ``bits`` is not looked at.  The
        result has changed, marked, missed, surplus (counts) and first_missed.
        """
        words = [TRUTH, device, str(self._copy), str(self._granularity), *map(str, self._span)]
        done = subprocess.run(words, input=bits or b"", stdout=subprocess.PIPE, check=True)
        return json.loads(done.stdout)

    def forget(self) -> None:
        """Free the copy's memory."""
        self._copy.unlink(missing_ok=True)


@contextlib.contextmanager
def made(fs: FileSystem, node: str, place: Path, options: str = "") -> Iterator[str]:
    """Make and mount a file system for the length of a ``with``; yield where to write."""
    if not fs.mkfs:
        yield node
        return
    # xfsprogs refuses small volumes unless it believes that its own tests run it.
    small = {"TEST_DIR": "x", "TEST_DEV": "x", "QA_CHECK_FS": "x"}
    subprocess.run([*fs.mkfs, node], check=True, env={**os.environ, **small},
                   stdout=subprocess.DEVNULL)  # fmt: skip
    place.mkdir(exist_ok=True)
    mount(node, place, fs.name, ",".join(filter(None, (fs.options, options))))
    yield str(place)
    unmount(place, patience=60)


@contextlib.contextmanager
def loaded(place: str, kinds: Sequence[str]) -> Iterator[None]:
    """Let one ``load`` of each kind write to ``place`` until the block is left."""
    running = [
        (kind, subprocess.Popen([LOAD, kind, place, str(seed)])) for seed, kind in enumerate(kinds)
    ]
    try:
        yield
        for kind, process in running:
            assert process.poll() is None, f"the writer {kind} has ended: {process.returncode}"
    finally:
        for _, process in running:
            process.kill()
        for _, process in running:
            process.wait()


def let_write(*trackers: Tracker, least: int = 100, pause: float = 0.1) -> None:
    """Wait until each tracker has seen so many writes more, on however slow a machine."""
    time.sleep(pause)
    goals = [tracker.status().events + least for tracker in trackers]
    end = time.monotonic() + 60
    while any(t.status().events < goal for t, goal in zip(trackers, goals, strict=True)):
        assert time.monotonic() < end, "the writers wrote too little"
        time.sleep(0.01)


@contextlib.contextmanager
def frozen(place: str) -> Iterator[None]:
    """Freeze the file system that is mounted at ``place`` for the length of a ``with``."""
    top = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.ioctl(top, _FIFREEZE, 0)
        try:
            yield
        finally:
            fcntl.ioctl(top, _FITHAW, 0)
    finally:
        os.close(top)


def settle(node: str) -> None:
    """Write back what is dirty in a device's page cache: else its last closing would."""
    fd = os.open(node, os.O_RDWR)
    os.fsync(fd)
    os.close(fd)


def marked(bits: bytes) -> set[int]:
    """Return the numbers of the bits that are set, lowest bit of a byte first."""
    return {
        8 * at + bit for at, byte in enumerate(bits) if byte for bit in range(8) if byte >> bit & 1
    }


def write(path: str | Path, offset: int, data: bytes, flags: int = os.O_DIRECT) -> None:
    """Write ``data``, whose length and offset are multiples of 512, past the page cache."""
    fd = os.open(path, os.O_WRONLY | flags)
    with mmap.mmap(-1, max(len(data), 4096)) as buffer:
        buffer[: len(data)] = data
        os.pwritev(fd, [memoryview(buffer)[: len(data)]], offset)
    os.close(fd)


@contextlib.contextmanager
def writers(folder: Path, *kinds: Callable[[Path, int], Iterator[None]]) -> Iterator[None]:
    """Let one process of each kind, a generator, run in ``folder`` until the block is left."""
    processes = []
    for seed, kind in enumerate(kinds):
        process = os.fork()
        if not process:
            try:
                os.nice(20)  # they write as fast as the recording leaves them time to
                for _ in kind(folder, seed):
                    time.sleep(0.004)
            finally:
                os._exit(1)
        processes.append(process)
    try:
        yield
        for process in processes:
            assert os.waitpid(process, os.WNOHANG) == (0, 0), "a writer has ended by itself"
    finally:
        for process in processes:
            with contextlib.suppress(ProcessLookupError, ChildProcessError):
                os.kill(process, signal.SIGKILL)
                os.waitpid(process, 0)
