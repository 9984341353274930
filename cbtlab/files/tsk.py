"""A second opinion: the names of a file system, walked by pytsk3 in a process of its own.

pytsk3 walks by inode, and gives names as bytes.  A corrupt size can keep it in
C for minutes, where no signal of Python reaches it: so it runs in a forked
worker with a limit on its time and memory, and a worker that dies is an error
that is told, not a crash.  Deleted entries, which pytsk3 lists too, are dropped.
"""

from __future__ import annotations

import multiprocessing
import resource
import time
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import numpy.typing as npt
import pytsk3

from cbtlab.files.names import Walk
from cbtlab.files.volume import Volume

SECONDS = 60.0  # and one more for every 5000 inodes
_MEMORY = 8 << 30
_PART = 1 << 16  # names sent at once


class _Image(pytsk3.Img_Info):  # type: ignore[misc]
    """Lets pytsk3 read a volume."""

    def __init__(self, volume: Volume) -> None:
        self._volume = volume
        super().__init__(url="", type=pytsk3.TSK_IMG_TYPE_EXTERNAL)

    def close(self) -> None:
        """Nothing to close: the volume belongs to the caller."""

    def read(self, offset: int, size: int) -> bytes:
        length = max(0, min(size, self._volume.size - offset))
        return self._volume.read(offset, length)

    def get_size(self) -> int:
        return self._volume.size


def open_file_system(volume: Volume) -> Any:
    """pytsk3's own object for the file system that begins at the volume's start."""
    return pytsk3.FS_Info(_Image(volume))


def walk(volume: Volume, inodes: int, seconds: float | None = None) -> Walk:
    """Every allocated name below the root.  Raises InputError when pytsk3 cannot finish.

    ``inodes`` is their number, from which the time limit follows unless ``seconds`` is given:
    pytsk3 goes through every block up to a file's size, however large.
    """
    limit = SECONDS + inodes / 5000 if seconds is None else seconds
    context = multiprocessing.get_context("fork")
    receive, send = context.Pipe(duplex=False)
    worker = context.Process(target=_work, args=(volume, send), daemon=True)
    worker.start()
    send.close()
    paths: list[bytes] = []
    numbers: list[npt.NDArray[np.int64]] = []
    until = time.monotonic() + limit
    try:
        while True:
            if not receive.poll(max(0.0, until - time.monotonic())):
                raise volume.fault(f"reading its names took more than {limit:.0f} s")
            what, value = receive.recv()
            if what == "names":
                paths += value[0].split(b"\0")
                numbers.append(np.frombuffer(value[1], np.int64))
            elif what == "done":
                found = np.concatenate(numbers) if numbers else np.empty(0, np.int64)
                return Walk(paths, found, value)
            else:
                raise volume.fault(f"its names cannot be read: {value}")
    except EOFError:
        raise volume.fault("its names cannot be read: pytsk3 ended") from None
    finally:
        receive.close()
        worker.kill()
        worker.join()


def limit_this_process() -> None:
    """No core dump, and no more than 8 GiB of memory, in a worker that pytsk3 may bring down."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
    if hard == resource.RLIM_INFINITY:
        resource.setrlimit(resource.RLIMIT_DATA, (_MEMORY, hard))


def _work(volume: Volume, send: Connection) -> None:
    """The worker: sends parts of the names, then ``done``; or ``failed`` with one line."""
    try:
        limit_this_process()
        send.send(("done", _walk(open_file_system(volume), send)))
    except BaseException as error:  # whatever happens here is told in the parent
        send.send(("failed", " ".join(str(error).split())[:200] or type(error).__name__))


def _walk(system: Any, send: Connection) -> list[str]:
    root, last = int(system.info.root_inum), int(system.info.last_inum)
    allocated, folder = int(pytsk3.TSK_FS_NAME_FLAG_ALLOC), int(pytsk3.TSK_FS_META_TYPE_DIR)
    faults: list[str] = []
    paths: list[bytes] = []
    inodes: list[int] = []
    seen = {root}
    todo: list[tuple[int, bytes]] = [(root, b"/")]
    while todo:
        inode, above = todo.pop()
        try:
            entries = system.open_dir(inode=inode)
        except OSError as error:
            faults.append(f"{above!r}: {' '.join(str(error).split())[:120]}")
            continue
        for entry in entries:
            name, meta = entry.info.name, entry.info.meta
            if name is None or not int(name.flags) & allocated or name.name in (b".", b".."):
                continue
            raw, number = bytes(name.name), int(name.meta_addr)
            if number >= last:
                continue  # pytsk3's own folder of orphans
            if not raw or b"/" in raw:
                faults.append(f"{above!r}: an impossible name {raw!r}")
                continue
            paths.append(above + raw)
            inodes.append(number)
            if meta is not None and int(meta.type) == folder and number not in seen:
                seen.add(number)
                todo.append((number, above + raw + b"/"))
            if len(paths) == _PART:
                _send(send, paths, inodes)
    _send(send, paths, inodes)
    return faults


def _send(send: Connection, paths: list[bytes], inodes: list[int]) -> None:
    if paths:
        send.send(("names", (b"\0".join(paths), np.array(inodes, np.int64).tobytes())))
        paths.clear()
        inodes.clear()
