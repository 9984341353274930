"""Saves the module's events as a native stream while other work goes on."""

from __future__ import annotations

import os
import select
import threading
from contextlib import ExitStack, closing
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from cbtlab.errors import InputError
from cbtlab.record.rings import Batch, Rings
from cbtlab.record.status import Info, Status
from cbtlab.record.stream import StreamWriter

if TYPE_CHECKING:
    from cbtlab.record.kernel_module import Module, Tracker

_GATHER_MS = 20
_MANY = 4096  # after a batch of so many events the next one is not waited for


class EventWriter:
    """Saves the module's events at ``path``.

    A context manager.  A thread takes the events out of the rings until the
    block is left; then the stream gets its end.  Trackers that were attached
    before, or are attached meanwhile through the same ``Module``, are named in
    the stream.  A path on a tracked volume is refused, and so is a second
    reader of the events.
    """

    def __init__(self, module: Module, path: str | os.PathLike[str]) -> None:
        self.module = module
        self.path = Path(path)
        self._error: BaseException | None = None
        self._rings = Rings(module)
        self._wake, self._stop = -1, -1
        self._thread = threading.Thread(target=self._run, name="cbt-events", daemon=True)

    def fileno(self) -> int:
        """Return the descriptor of the file that is being written."""
        return self._stream.fileno()

    def add(self, tracker: Tracker) -> None:
        """Name a tracker in the stream; detach it if it would record its own stream."""
        status = tracker.status()
        try:
            _refuse_own_volume(self.path, status)
        except InputError:
            tracker.detach()
            raise
        self._stream.add(status.described())

    def __enter__(self) -> EventWriter:
        trackers = list(self.module.trackers())
        for status in trackers:
            _refuse_own_volume(self.path, status)
        with ExitStack() as undo:
            undo.enter_context(self._rings)
            info = self.module.info()
            anchor = info.monotonic_ns, info.realtime_ns
            self._stream = StreamWriter(self.path, *anchor, self._rings.first())
            undo.callback(self._stream.close)
            for status in trackers:
                self._stream.add(status.described())
            self._wake, self._stop = os.pipe()
            self.module.log = self
            self._thread.start()
            undo.pop_all()  # all went well: __exit__ ends it
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # Not by closing alone: a child that was forked meanwhile may hold this end too.
        os.write(self._stop, b"1")
        os.close(self._stop)
        self._thread.join()
        os.close(self._wake)
        self.module.log = None
        with self._stream, closing(self._rings):
            if self._error is None:
                info = self._rest()
                for status in self.module.trackers():  # attached by other programs
                    self._stream.add(status.described())
                self._stream.end(info.next_seq, info.dropped)
        if self._error is not None and error is None:
            raise self._error

    def _run(self) -> None:
        try:
            stop, either = select.poll(), select.poll()
            for poller in (stop, either):
                poller.register(self._wake, select.POLLIN)
            either.register(self._rings, select.POLLIN)
            many = False
            # An event at a time would wake this thread for each: let some gather.
            while not stop.poll(0 if many else _GATHER_MS):
                if not many:
                    either.poll()
                many = self._take().events >= _MANY
        except BaseException as error:
            self._error = error

    def _take(self, known: int | None = None) -> Batch:
        with self._rings.take(known) as batch:
            for span in batch.spans:
                self._stream.write(span)
        return batch

    def _rest(self) -> Info:
        """Take what the rings hold at one moment and not a single event more."""
        info = self.module.info()
        while self._take(info.next_seq).below < info.next_seq:
            pass
        return info


def _refuse_own_volume(path: Path, status: Status) -> None:
    """Refuse a file on a volume that is the tracked one or lies above it."""
    todo, seen = devices_under(path.absolute().parent), set()
    while todo:
        number = todo.pop()
        seen.add(number)
        folder = Path("/sys/dev/block", number)
        below = [*folder.glob("slaves/*/dev")]
        if (folder / "partition").exists():
            below.append(folder.resolve().parent / "dev")
        todo += [n for n in (p.read_text().strip() for p in below) if n not in seen]
    if f"{status.major}:{status.minor}" in seen:
        raise InputError(
            path, f"lies on {status.name}, whose writes it would record", "save it elsewhere"
        )


def devices_under(folder: Path) -> list[str]:
    """Return the block devices, "major:minor", that the file system of a folder lies on.

    Not by the folder's own device number alone: btrfs makes one up for each of
    its trees.  It is mounted from one of its devices and tells all in sysfs.
    """
    number = folder.stat().st_dev
    if os.major(number):
        return [f"{os.major(number)}:{os.minor(number)}"]
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        told = Path(f"/proc/self/fdinfo/{fd}").read_text().split()
    finally:
        os.close(fd)
    mount = told[told.index("mnt_id:") + 1]
    mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    source = next((m.split(" - ")[1].split()[1] for m in mounts if m.split()[0] == mount), "")
    if not source.startswith("/dev/") or not Path(source).is_block_device():
        return []  # in memory, on another machine, or of several layers
    device = Path(source).stat().st_rdev
    found = f"{os.major(device)}:{os.minor(device)}"
    for listed in Path("/sys/fs/btrfs").glob("*/devices"):
        numbers = [(one / "dev").read_text().strip() for one in listed.iterdir()]
        if found in numbers:
            return numbers
    return [found]
