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
from types import TracebackType

from cbtlab.record.device_mapper import DeviceMapper

_MCL_CURRENT, _MCL_FUTURE = 1, 2


def lock_memory() -> bool:
    """Keep this program's pages in memory; False when that is not allowed."""
    libc = ctypes.CDLL(None, use_errno=True)
    return bool(libc.mlockall(_MCL_CURRENT | _MCL_FUTURE) == 0)


class Watchdog:
    """Resumes ``volume`` after ``seconds``, or when this program has ended; ``with`` ends it.

    ``fired`` tells afterwards whether it had to: then the snapshot is of no
    known instant and the backup must be thrown away.
    """

    def __init__(self, mapper: DeviceMapper, volume: str, seconds: float) -> None:
        self._mapper = mapper
        self._volume = volume
        self._seconds = seconds
        self.fired = False

    def __enter__(self) -> Watchdog:
        reader, self._pipe = os.pipe()
        self._pid = os.fork()
        if self._pid == 0:
            os._exit(self._watch(reader))
        os.close(reader)
        return self

    def _watch(self, reader: int) -> int:
        """Wait for one byte; in its absence resume.  Runs in the watchdog's process."""
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        os.close(self._pipe)
        ready, _, _ = select.select([reader], [], [], self._seconds)
        if ready and os.read(reader, 1):
            return 0
        try:
            if self._mapper.info(self._volume).suspended:
                self._mapper.resume(self._volume)
                return 1
        except OSError:
            return 2
        return 0

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            os.write(self._pipe, b"1")
        except BrokenPipeError:
            pass
        finally:
            os.close(self._pipe)
        _, status = os.waitpid(self._pid, 0)
        self.fired = os.waitstatus_to_exitcode(status) != 0
