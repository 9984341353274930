"""In a guest with the debug kernel: lets memory fail, here and now or now and then.

``Injector`` uses the kernel's ``fail-nth``: the n-th place of a thread's way at
which something can fail does.  ``failing`` is for processes that have written 1
to their ``make-it-fail``.

Source: ``Documentation/fault-injection/fault-injection.rst``.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path

DEBUG = Path("/sys/kernel/debug")
KINDS = ("failslab", "fail_page_alloc", "fail_usercopy")
# All that can fail may, also what could wait for memory; without a word in the log.
SETTINGS = {
    "verbose": "0",
    "task-filter": "Y",
    "ignore-gfp-wait": "N",
    "ignore-gfp-highmem": "N",
    "min-order": "0",
    "times": "-1",
    "probability": "0",
}
SITES_MAX = 3000
# What a call may answer when memory, or a copy from or to the caller, failed.
FAILED = (errno.ENOMEM, errno.EFAULT)


def prepare() -> None:
    """Let everything fail that can, for those who ask for it."""
    for kind in KINDS:
        for name, value in SETTINGS.items():
            if (DEBUG / kind / name).exists():  # not every kind has all
                (DEBUG / kind / name).write_text(value)


class Injector:
    """Makes the n-th place of this thread fail where something can fail."""

    def __init__(self) -> None:
        self._fd = os.open("/proc/thread-self/fail-nth", os.O_RDWR)
        self.counts: dict[str, dict[str, int]] = {}

    def every_site(
        self,
        call: Callable[[], object],
        undo: Callable[[], object] = lambda: None,
        allowed: tuple[int, ...] = FAILED,
        settle: Callable[[], object] = lambda: None,
    ) -> None:
        """Make ``call`` again and again, until none of its places is left to fail.

        After each success ``undo`` is called, after each refusal ``settle``.
        AssertionError for another refusal than those in ``allowed``.
        """
        counts = {"sites": 0, "refused": 0}
        for number in range(1, SITES_MAX):
            refused, failed = self._once(call, number)
            assert refused is None or refused in allowed, (call.__name__, number, refused)
            undo() if refused is None else settle()
            if not failed:
                break
            counts["sites"] += 1
            counts["refused"] += refused is not None
        else:
            raise AssertionError(f"{call.__name__} has no end")
        assert refused is None, (call.__name__, "refused without a fault", refused)
        self.counts[call.__name__] = counts
        print(f"cbtlab: {call.__name__}: {counts}", flush=True)

    def _once(self, call: Callable[[], object], number: int) -> tuple[int | None, bool]:
        refused: int | None = None
        os.pwrite(self._fd, b"%d" % number, 0)
        try:
            call()
        except OSError as error:
            refused = error.errno
        except MemoryError:
            refused = errno.ENOMEM
        except Exception as error:
            if not hasattr(error, "errno"):
                raise
            refused = error.errno
        return refused, self._disarm()

    def _disarm(self) -> bool:
        """Return whether the fault has happened.  What is left of it may hit us here."""
        failed = False
        with contextlib.suppress(OSError):
            failed = os.pread(self._fd, 16, 0).strip() == b"0"
        while True:
            with contextlib.suppress(OSError):
                os.pwrite(self._fd, b"0", 0)
                return failed


@contextlib.contextmanager
def failing(percent: int) -> Iterator[None]:
    """Let one in so many places fail, in processes that ask for it."""
    for kind in KINDS:
        (DEBUG / kind / "probability").write_text(str(percent))
    try:
        yield
    finally:
        for kind in KINDS:
            (DEBUG / kind / "probability").write_text("0")
