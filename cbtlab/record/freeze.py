"""What must be ready before a volume is frozen, and who thaws it when this program cannot.

Between suspend and resume this program must not need the frozen disk: its
pages are locked in memory, and a watchdog, a process of its own, resumes the
volume when the time limit passes or this program dies.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import time
from types import TracebackType

from cbtlab.record.device_mapper import DeviceMapper

_MCL_CURRENT, _MCL_FUTURE = 1, 2
_LOOK_SECONDS = 0.1
_WELL, _FAILED = b"1", b"0"


def lock_memory() -> bool:
    """Keep this program's pages in memory; False when that is not allowed."""
    libc = ctypes.CDLL(None, use_errno=True)
    return bool(libc.mlockall(_MCL_CURRENT | _MCL_FUTURE) == 0)


class Watchdog:
    """Resumes ``volume`` when it has been suspended for ``seconds``, or this program has ended.

    The limit begins when the volume is suspended: how long a suspension takes
    is up to its file system.  ``with`` ends the watchdog; leaving the block by
    an exception makes it resume at once.  ``fired`` tells afterwards whether it
    had to: then the snapshot is of no known instant and the backup must be
    thrown away.
    """

    def __init__(self, mapper: DeviceMapper, volume: str, seconds: float) -> None:
        self._mapper = mapper
        self._volume = volume
        self._seconds = seconds
        self.fired = False

    def __enter__(self) -> Watchdog:
        reader, self._pipe = os.pipe()
        program = os.getpid()
        self._pid = os.fork()
        if self._pid == 0:
            status = 2
            try:
                status = self._watch(reader, program)
            finally:
                os._exit(status)
        os.close(reader)
        return self

    def _watch(self, reader: int, program: int) -> int:
        """Wait for the word that all is well; in its absence resume.  The watchdog's process."""
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        os.close(self._pipe)
        lock_memory()  # a fork does not inherit the lock
        since: float | None = None
        while True:
            ready, _, _ = select.select([reader], [], [], min(_LOOK_SECONDS, self._seconds))
            if ready and os.read(reader, 1) == _WELL:
                return 0
            # The end of the pipe tells of this program's end, unless another child holds it too.
            ended = bool(ready) or os.getppid() != program
            suspended = self._mapper.info(self._volume).suspended
            now = time.monotonic()
            since = (since or now) if suspended else None
            if suspended and (ended or now - (since or now) >= self._seconds):
                self._mapper.resume(self._volume)
                return 1
            if ended:
                return 0

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            os.write(self._pipe, _WELL if error is None else _FAILED)
        except BrokenPipeError:
            pass
        finally:
            os.close(self._pipe)
        _, status = os.waitpid(self._pid, 0)
        self.fired = os.waitstatus_to_exitcode(status) != 0
