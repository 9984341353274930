"""The method, live: one backup after the other of a volume that goes on being written.

For backup k: suspend the volume, make the snapshot, track it, switch the
volume's tracker to the next interval, resume; read S_k; bring its file system to
rest, and where that took writes read it again; mount it, delete the excluded
files, unmount; read bitmap, S_k*, bitmap.  Everything is read with
O_DIRECT, and everything that must be right is checked before a backup counts
as kept.  The standard library suffices: this also runs in a bare guest.
"""

from __future__ import annotations

import errno
import json
import mmap
import os
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from cbtlab.errors import InputError
from cbtlab.record.deleting import Judge
from cbtlab.record.device_mapper import Snapshots
from cbtlab.record.freeze import Watchdog, lock_memory
from cbtlab.record.kernel_module import ACTIVE, FROZEN, Module, Role, State, Tracker
from cbtlab.record.mending import NotMended, mend
from cbtlab.record.mounted import delete, mounted, settle
from cbtlab.record.ntfs_3g import NTFS_3G, mounted_by_program

CHUNK = 4 << 20  # bytes read at once; a multiple of every block size
FREEZE_SECONDS = 30.0
PATIENCE = 10.0  # seconds that others get to close a snapshot before it is read

_KINDS = ("bitmap", "discarded")

Sink = Callable[[int, memoryview], None]


@dataclass
class Mark:
    """A named instant: CLOCK_MONOTONIC, and the number that the next event will get."""

    name: str
    time_ns: int
    seq: int


@dataclass
class Backup:
    """What is known of one backup.  ``log`` explains; ``unusable`` decides.

    ``complete`` is false when S_k or S_k* could not be read to the end; ``mended`` is
    true when S_k was brought to rest by writing, and has an image of that state too.
    ``instant_ns`` is the snapshot's instant since 1970 UTC, which the rules' ages count from.
    """

    k: int
    kept: bool
    patterns: list[str]
    complete: bool = False
    mended: bool = False
    instant_ns: int | None = None
    unusable: list[str] = field(default_factory=list)
    marks: list[Mark] = field(default_factory=list)
    log: dict[str, Any] = field(default_factory=dict)


class Recorder:
    """Records ``volume`` from now on; what it saves goes to ``folder``, which is elsewhere.

    ``file_system`` is what the snapshots are mounted as, ``place`` where.  ``mounted_at`` is
    where the volume itself is mounted: device-mapper freezes the file system of a device, but
    not btrfs, which is one of many; what that has not written yet is written before.
    """

    def __init__(
        self,
        volume: Snapshots,
        module: Module,
        folder: Path,
        *,
        granularity: int = 4096,
        file_system: str = "ext4",
        place: Path = Path("/mnt"),
        mounted_at: Path | None = None,
    ) -> None:
        self.volume = volume
        self.module = module
        self.folder = folder
        self.granularity = granularity
        self.file_system = file_system
        self.place = place
        self.mounted_at = mounted_at
        self.memory_locked = lock_memory()
        node = volume.mapper.info(volume.volume).node
        self.physical = module.attach(node, role=Role.PHYSICAL, granularity=granularity, interval=0)
        self._late = False
        self._changes: list[str] = []  # of the volume, in the interval that goes on
        self._unsaved: Backup | None = None

    def backup(
        self,
        sink: Callable[[str], Sink],
        patterns: list[str],
        excluded: Callable[[str], bool] | Judge,
        *,
        keep: bool = True,
        late_switch: float | None = None,
        explain: Callable[[int, int], dict[str, Any]] | None = None,
    ) -> Backup:
        """Make the next backup.

        ``sink`` gives, for ``snapshot``, ``mended`` and ``stored``, where the image
        goes; ``mended`` is asked for only where the snapshot was not at rest.
        ``excluded`` decides what ``patterns`` mean: `cbtlab.rules.Rules`, or a function of
        the path.  ``keep`` false throws the
        backup away at its end.  ``late_switch`` is for tests: the volume is
        resumed first and the interval switched so many seconds after, which
        loses what is written between.  ``explain`` gets the backup's first and
        last instant and adds to its log.

        A snapshot whose store runs full, that somebody else holds open, or that
        cannot be brought to rest, is no error: the backup is thrown away (``kept``
        is false, ``complete`` too), and its writes stay recorded.  They stay so
        after an exception too: no other backup begins before this one's record is
        saved.
        """
        if self._unsaved:
            self._rescue(self._unsaved)
        done = Backup(self.physical.status().interval, keep, list(patterns))
        try:
            self._make(done, sink, excluded, late_switch, explain)
        except BaseException as error:
            # Its interval has ended, and the next cannot before this one's bitmap is saved.
            if self.physical.status().interval > done.k:
                self._fault(done, f"an error ended it: {error!r}")
                done.complete = False
                self._unsaved = done
                # What went wrong here may do so again; then the next backup tries anew.
                with suppress(Exception):
                    self._rescue(done)
            raise
        return done

    def _make(
        self,
        done: Backup,
        sink: Callable[[str], Sink],
        excluded: Callable[[str], bool] | Judge,
        late_switch: float | None,
        explain: Callable[[int, int], dict[str, Any]] | None,
    ) -> None:
        name = f"{self.volume.volume}-snapshot-{done.k}"
        folder = self.folder / f"{done.k:04d}"
        if folder.exists():
            raise InputError(folder, "holds another recording", "give a new folder")
        self.volume.prepare()
        self._mark(done, "begin")
        snapshot = self._freeze(done, name, late_switch)
        try:
            self._save_physical(done)
            try:
                settled = self._read(done, name, snapshot, sink, excluded)
                done.complete = True
            except OSError as error:
                if error.errno != errno.EBUSY and self.volume.fill(name).valid:
                    raise
                self._fault(done, f"reading it failed: {error}")
                settled = True  # not asked: there is no second reading
            except NotMended as error:
                self._fault(done, f"its files cannot be mapped: {error}")
                settled = True
            self._mark(done, "end")
            self._judge(done, name, snapshot, settled)
            if explain:
                done.log.update(explain(done.marks[0].time_ns, done.marks[-1].time_ns))
            self._save(done, snapshot)
        finally:
            snapshot.detach()
            self.volume.remove(name)

    def finish(self) -> None:
        """Stop to track the volume."""
        self.physical.detach()

    def _read(
        self,
        done: Backup,
        name: str,
        snapshot: Tracker,
        sink: Callable[[str], Sink],
        excluded: Callable[[str], bool] | Judge,
    ) -> bool:
        """Read S_k, mend, delete, read S_k*; return whether nobody wrote during the last read."""
        node = self.volume.mapper.info(name).node
        self._mark(done, "read")
        copy(node, sink("snapshot"))
        if self._mend(done, node, snapshot):
            copy(node, sink("mended"))
            done.mended = True
        self._delete(done, node, excluded)
        # The count too: a block that is marked already may be written once more.
        before = snapshot.status().events, _bits(snapshot, ACTIVE)
        self._mark(done, "read_stored")
        copy(node, sink("stored"))
        return before == (snapshot.status().events, _bits(snapshot, ACTIVE))

    def _freeze(self, done: Backup, name: str, late_switch: float | None) -> Tracker:
        """Make and track the snapshot and switch the interval, all at one instant."""
        mapper, volume = self.volume.mapper, self.volume.volume
        if self.mounted_at:
            settle(self.mounted_at)  # so that the suspension is short, too
        with ExitStack() as undo:
            with Watchdog(mapper, volume, FREEZE_SECONDS) as watchdog:
                self._mark(done, "suspend")
                mapper.suspend(volume)
                try:
                    self._changes += self.volume.changes()
                    node = self.volume.create(name).node
                    undo.callback(self.volume.remove, name)
                    snapshot = self.module.attach(
                        node,
                        role=Role.SNAPSHOT,
                        granularity=self.granularity,
                        interval=done.k,
                        single=True,
                    )
                    undo.callback(snapshot.detach)
                    if late_switch is None:
                        self._switch(done)
                finally:
                    mapper.resume(volume)
                self._mark(done, "resume")
            undo.pop_all()  # all went well: nothing is undone
        if late_switch is not None:
            self._late = True
            time.sleep(late_switch)
            self._switch(done, running=True)
        if watchdog.fired:
            self._fault(done, "the watchdog resumed the volume before the snapshot was made")
        return snapshot

    def _switch(self, done: Backup, running: bool = False) -> None:
        switched = self.module.switch([self.physical], running=running)
        done.unusable += dict.fromkeys(f"physical: {words}" for words in self._changes)
        self._changes = []
        done.marks.append(Mark("instant", switched.time_ns, switched.seq))
        done.instant_ns = time.time_ns() - (time.monotonic_ns() - switched.time_ns)
        done.log["frozen_ns"] = switched.frozen_ns
        done.log["suspended"] = switched.suspended

    def _mend(self, done: Backup, node: str, snapshot: Tracker) -> bool:
        """Bring S_k's file system to rest; return whether that wrote, and mark its writes."""
        events, begin = snapshot.status().events, self._now("mend")
        found = mend(node, self.place, self.file_system)
        if not found and snapshot.status().events == events:
            return False
        done.marks += [begin, self._now("mended")]
        done.log["mended"] = found
        return True

    def _mounted(self, node: str) -> AbstractContextManager[Path]:
        if self.file_system == NTFS_3G:
            return mounted_by_program(node, self.place)
        return mounted(node, self.place, self.file_system)

    def _delete(self, done: Backup, node: str, excluded: Callable[[str], bool] | Judge) -> None:
        """Delete on the snapshot; the marks tell the delete's own writes from the mount's."""
        if hasattr(excluded, "at"):  # `cbtlab.rules.Rules`, which is not needed for plain paths
            excluded = excluded.at(done.instant_ns)
        self._mark(done, "mount")
        with self._mounted(node) as root:
            settle(root)
            self._mark(done, "delete")
            done.log["deleted"] = [asdict(gone) for gone in delete(root, excluded)]
            settle(root)
            self._mark(done, "unmount")
        self._mark(done, "unmounted")

    def _judge(self, done: Backup, name: str, snapshot: Tracker, settled: bool) -> None:
        """Decide whether the backup can be kept, after the last read of it."""
        fill = self.volume.fill(name)
        done.log["store"] = asdict(fill)
        if not fill.valid:
            self._fault(done, f"the snapshot's store is torn: {fill.words}")
        if not settled:
            self._fault(done, "the snapshot was written while it was read")
        for tracker, volume in ((self.physical, "physical"), (snapshot, "snapshot")):
            status = tracker.status()
            if self._late:  # asked for by a test, which plays a tracker that does not notice
                status = replace(status, states=status.states & ~State.RUNNING)
            done.unusable += [f"{volume}: {fault}" for fault in status.faults]

    @staticmethod
    def _fault(done: Backup, reason: str) -> None:
        done.kept = False
        done.log.setdefault("thrown_away", []).append(reason)

    def _folder(self, done: Backup) -> Path:
        """Return the backup's folder, which is durably there."""
        folder = self.folder / f"{done.k:04d}"
        folder.mkdir(parents=True, exist_ok=True)
        _sync(self.folder.parent)
        _sync(self.folder)
        return folder

    def _save_physical(self, done: Backup) -> None:
        """Save the interval's bitmap while it is at rest."""
        folder = self._folder(done)
        if done.k:
            for kind, bits in zip(_KINDS, _bits(self.physical, FROZEN), strict=True):
                _write(folder / f"physical-{kind}.bits", bits)

    def _save(self, done: Backup, snapshot: Tracker) -> None:
        """Save the rest: the record comes after all that it names."""
        folder = self._folder(done)
        for kind, bits in zip(_KINDS, _bits(snapshot, ACTIVE), strict=True):
            _write(folder / f"snapshot-{kind}.bits", bits)
        self._save_record(done)

    def _save_record(self, done: Backup) -> None:
        document = json.dumps(asdict(done), indent=1).encode()
        _write(self._folder(done) / "backup.json", document)
        # Only now: until here it could be saved once more.  The next switch asks for it.
        self.physical.clear()

    def _rescue(self, done: Backup) -> None:
        """Save what later backups need of one that an error ended."""
        if self.physical.status().frozen:  # not cleared: perhaps not saved
            self._save_physical(done)
        self._save_record(done)
        self._unsaved = None

    def _mark(self, done: Backup, name: str) -> None:
        done.marks.append(self._now(name))

    def _now(self, name: str) -> Mark:
        return Mark(name, time.monotonic_ns(), self.module.info().next_seq)


def copy(device: str, sink: Sink) -> None:
    """Give ``sink`` the whole of a device in order, read with O_DIRECT.

    Read for oneself: OSError EBUSY when the device is mounted anywhere, be it
    in another mount namespace; and meanwhile nobody can mount it.
    """
    fd = _open_alone(device)
    try:
        size = os.lseek(fd, 0, os.SEEK_END)
        with mmap.mmap(-1, CHUNK) as buffer, memoryview(buffer) as view:
            offset = 0
            while offset < size:
                wanted = min(CHUNK, size - offset)
                got = os.preadv(fd, [view[:wanted]], offset)
                if got <= 0:
                    raise OSError(0, f"ends at {offset} of {size} bytes", device)
                with view[:got] as part:
                    sink(offset, part)
                offset += got
    finally:
        os.close(fd)


def _open_alone(device: str) -> int:
    end = time.monotonic() + PATIENCE
    while True:
        try:
            return os.open(device, os.O_RDONLY | os.O_DIRECT | os.O_EXCL | os.O_CLOEXEC)
        except OSError as error:
            if error.errno != errno.EBUSY or time.monotonic() > end:
                raise
        time.sleep(0.05)


def _bits(tracker: Tracker, which: int) -> tuple[bytes, bytes]:
    """Return a tracker's changed and discarded bitmap."""
    return tracker.changed(which), tracker.discarded(which)


def _write(path: Path, data: bytes) -> None:
    draft = path.with_name(path.name + ".new")
    with draft.open("wb") as out:
        out.write(data)
        out.flush()
        os.fsync(out.fileno())
    draft.replace(path)
    _sync(path.parent)


def _sync(path: Path) -> None:
    """Make the names in a folder durable."""
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
