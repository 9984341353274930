"""For the programs that run in a guest: the content of a volume, and writers that never rest.

The volume's content, read with O_DIRECT, is the truth that a bitmap is held
against.  Standard library only.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import mmap
import os
import random
import signal
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path

BLOCK = 4096
_PIECE = 1 << 20
_REST = 0.004
_FITRIM = 0xC0185879
_PUNCH = 0x01 | 0x02  # FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE
_ZERO_RANGE = 0x10


def content(device: str) -> bytearray:
    """Return a whole device, read with O_DIRECT."""
    fd = os.open(device, os.O_RDONLY | os.O_DIRECT)
    size = os.lseek(fd, 0, os.SEEK_END)
    whole = bytearray(size)
    with mmap.mmap(-1, _PIECE) as buffer:
        for offset in range(0, size, _PIECE):
            got = os.preadv(fd, [buffer], offset)
            whole[offset : offset + got] = buffer[:got]
    os.close(fd)
    return whole


def differing(before: bytearray, after: bytearray, block: int = BLOCK) -> set[int]:
    """Return the blocks whose bytes differ."""
    found = set()
    # Slices of bytes are compared at once; memoryviews would be, byte by byte.
    for start in range(0, len(before), _PIECE):
        a, b = before[start : start + _PIECE], after[start : start + _PIECE]
        if a == b:
            continue
        for at in range(0, len(a), block):
            if a[at : at + block] != b[at : at + block]:
                found.add((start + at) // block)
    return found


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


def rewrite_synced(folder: Path, seed: int) -> Iterator[None]:
    """Rewrite places of a file through the page cache, with fsync now and then."""
    pick = random.Random(seed)
    fd = os.open(folder / f"database-{seed}", os.O_RDWR | os.O_CREAT)
    os.posix_fallocate(fd, 0, 6 << 20)
    while True:
        for _ in range(pick.randrange(1, 20)):
            os.pwrite(fd, pick.randbytes(pick.randrange(100, 20000)), pick.randrange(6 << 20))
        os.fsync(fd)
        yield


def rewrite_direct(folder: Path, seed: int) -> Iterator[None]:
    """Rewrite blocks of a file with O_DIRECT."""
    pick = random.Random(seed)
    path = folder / f"direct-{seed}"
    with path.open("wb") as out:
        os.posix_fallocate(out.fileno(), 0, 6 << 20)
    fd = os.open(path, os.O_RDWR | os.O_DIRECT)
    buffer = mmap.mmap(-1, 64 << 10)
    while True:
        length = pick.randrange(1, 17) * BLOCK
        buffer[:length] = pick.randbytes(length)
        os.pwritev(fd, [memoryview(buffer)[:length]], pick.randrange(1400) * BLOCK)
        yield


def make_and_delete(folder: Path, seed: int) -> Iterator[None]:
    """Make, append to, rename and delete files, and leave write-back to the kernel."""
    pick = random.Random(seed)
    count = 0
    while True:
        count += 1
        path = folder / f"file-{seed}-{count % 40}"
        with path.open("ab" if pick.random() < 0.3 else "wb") as out:
            out.write(pick.randbytes(pick.randrange(1, 120_000)))
        if pick.random() < 0.3:
            path.rename(folder / f"renamed-{seed}-{count % 7}")
        elif pick.random() < 0.3:
            path.unlink()
        yield


def punch_and_trim(folder: Path, seed: int) -> Iterator[None]:
    """Punch holes, zero ranges and discard what the file system does not use."""
    pick = random.Random(seed)
    fd = os.open(folder / f"holes-{seed}", os.O_RDWR | os.O_CREAT)
    top = os.open(folder, os.O_RDONLY)
    libc = ctypes.CDLL(None)
    while True:
        os.pwrite(fd, pick.randbytes(200_000), pick.randrange(20) * 100_000)
        os.fsync(fd)
        mode = pick.choice((_PUNCH, _ZERO_RANGE))
        place = pick.randrange(20) * 98_304
        libc.fallocate64(fd, mode, ctypes.c_int64(place), ctypes.c_int64(65_536))
        if pick.random() < 0.2:
            with contextlib.suppress(OSError):
                fcntl.ioctl(top, _FITRIM, struct.pack("=QQQ", 0, 2**63, 0))
        yield


@contextlib.contextmanager
def writers(folder: Path, *kinds: Callable[[Path, int], Iterator[None]]) -> Iterator[None]:
    """Let one process of each kind write to ``folder`` until the block is left."""
    processes = []
    for seed, kind in enumerate(kinds):
        process = os.fork()
        if not process:
            try:
                os.nice(20)  # they write as fast as the recording leaves them time to
                for _ in kind(folder, seed):
                    time.sleep(_REST)
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
