"""What the recorder leaves when a backup breaks off; kernel and volume are played."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cbtlab.errors import InputError
from cbtlab.record import recorder
from cbtlab.record.device_mapper import Fill, Info
from cbtlab.record.kernel_module import FROZEN, Refused
from cbtlab.record.mending import NotMended
from cbtlab.record.recorder import Recorder

NAMES = {"physical-bitmap.bits", "physical-discarded.bits"}


class Tracker:
    """Its bitmap of interval k is the byte k; no switch before the one before was cleared."""

    def __init__(self, interval: int, single: bool) -> None:
        self.interval = interval
        self.single = single
        self.frozen = False
        self.events = 0

    def status(self) -> Any:
        return SimpleNamespace(
            frozen=self.frozen, faults=[], events=self.events, interval=self.interval
        )

    def changed(self, which: int) -> bytes:
        if which == FROZEN and not self.frozen:
            raise RuntimeError("nothing frozen")
        return bytes([self.interval - (which == FROZEN)])

    discarded = changed

    def clear(self) -> None:
        self.frozen = False

    def detach(self) -> None:
        pass


class Module:
    """Attaches and switches played trackers."""

    def __init__(self) -> None:
        self.attached: list[Tracker] = []

    def attach(self, node: str, *, interval: int, single: bool = False, **_: Any) -> Tracker:
        self.attached.append(Tracker(interval, single))
        return self.attached[-1]

    def info(self) -> Any:
        return SimpleNamespace(next_seq=1)

    def switch(self, trackers: list[Tracker], running: bool = False) -> Any:
        for tracker in trackers:
            if tracker.frozen or tracker.single:
                raise Refused("switch", errno.EEXIST)
            tracker.interval += 1
            tracker.frozen = True
        return SimpleNamespace(time_ns=1, seq=1, frozen_ns=1, suspended=True)


class Volume:
    """A volume whose snapshots are the file ``node``."""

    volume = "volume"

    def __init__(self) -> None:
        self.mapper = self
        self.told: list[str] = []

    def changes(self) -> list[str]:
        told, self.told = self.told, []
        return told

    def info(self, name: str) -> Info:
        return Info(name, 1, False, 0)

    create = suspend = resume = remove = info

    def prepare(self) -> None:
        pass

    def fill(self, name: str) -> Fill:
        return Fill(True, 0, 1, "0/1")


@pytest.fixture
def played(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Recorder:
    """A recorder whose mount, watchdog and device are played too."""

    @contextmanager
    def mounted(*_: Any) -> Iterator[Path]:
        yield tmp_path

    @contextmanager
    def watchdog(*_: Any) -> Iterator[Any]:
        yield SimpleNamespace(fired=False)

    monkeypatch.setattr(recorder, "mounted", mounted)
    monkeypatch.setattr(recorder, "mend", lambda *_: [])
    monkeypatch.setattr(recorder, "Watchdog", watchdog)
    monkeypatch.setattr(recorder, "settle", lambda root: None)
    monkeypatch.setattr(recorder, "delete", lambda root, excluded: [])
    monkeypatch.setattr(recorder, "lock_memory", lambda: True)
    monkeypatch.setattr(recorder, "copy", lambda node, sink: sink(0, memoryview(b"x")))
    return Recorder(Volume(), Module(), tmp_path / "backups")  # type: ignore[arg-type]


def backup(played: Recorder, sink: Callable[[str], Any] | None = None) -> Any:
    return played.backup(sink or (lambda which: lambda offset, data: None), [], lambda path: False)


def saved(played: Recorder, k: int) -> Any:
    return json.loads((played.folder / f"{k:04d}" / "backup.json").read_text())


def bitmap(played: Recorder, k: int) -> bytes:
    return (played.folder / f"{k:04d}" / "physical-bitmap.bits").read_bytes()


def breaks(which: str) -> Any:
    raise OSError(errno.ENOSPC, "no room for images")


def test_a_backup_that_breaks_off_leaves_its_interval(played: Recorder) -> None:
    assert backup(played).kept
    with pytest.raises(OSError, match="no room for images"):
        backup(played, breaks)
    record = saved(played, 1)
    assert not record["kept"] and not record["complete"]
    assert "no room for images" in record["log"]["thrown_away"][0]
    assert bitmap(played, 1) == b"\1"
    assert {p.name for p in (played.folder / "0001").iterdir()} == NAMES | {"backup.json"}
    last = backup(played)
    assert (last.k, last.kept, last.unusable) == (2, True, [])
    assert bitmap(played, 2) == b"\2"


def test_no_backup_begins_before_the_one_before_is_saved(
    played: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    backup(played)

    def full(path: Path, data: bytes) -> None:
        raise OSError(errno.ENOSPC, "no room for bitmaps")

    with monkeypatch.context() as patched:
        patched.setattr(recorder, "_write", full)
        for _ in range(2):  # the second one does not even switch
            with pytest.raises(OSError, match="no room for bitmaps"):
                backup(played)
            assert played.physical.status().frozen
    assert not list((played.folder / "0001").iterdir())
    assert backup(played).k == 2
    assert not saved(played, 1)["kept"]
    assert bitmap(played, 1) == b"\1" and bitmap(played, 2) == b"\2"


def test_the_bitmap_is_forgotten_only_when_the_record_is_written(
    played: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    backup(played)
    order: list[str] = []
    write = recorder._write

    def noted(path: Path, data: bytes) -> None:
        order.append(path.name)
        write(path, data)

    def sink(which: str) -> Any:
        order.append(which)
        return lambda offset, data: None

    monkeypatch.setattr(recorder, "_write", noted)
    monkeypatch.setattr(played.physical, "clear", lambda: order.append("clear"))
    backup(played, sink)
    assert set(order[:2]) == NAMES
    assert order[2:4] == ["snapshot", "stored"]
    assert order[-2:] == ["backup.json", "clear"]


def test_an_interrupt_right_after_the_switch_loses_no_interval(
    played: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    backup(played)
    switch = played.module.switch

    def interrupted(*trackers: Any, **more: Any) -> Any:
        switch(*trackers, **more)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(played.module, "switch", interrupted)
        with pytest.raises(KeyboardInterrupt):
            backup(played)
    assert not saved(played, 1)["kept"] and bitmap(played, 1) == b"\1"
    assert backup(played).k == 2 and bitmap(played, 2) == b"\2"


def test_a_change_below_the_volume_makes_the_backup_of_its_interval_unusable(
    played: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert backup(played).unusable == []
    played.volume.told = ["its table"]  # type: ignore[attr-defined]
    with monkeypatch.context() as patched:
        patched.setattr(played.module, "switch", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            backup(played)
    done = backup(played)  # the interval goes on, and is not what it was
    assert (done.k, done.unusable) == (1, ["physical: its table"])
    assert backup(played).unusable == []


def test_a_snapshot_is_tracked_for_one_interval(played: Recorder) -> None:
    backup(played)
    assert [t.single for t in played.module.attached] == [False, True]  # type: ignore[attr-defined]


def test_a_rewritten_block_is_noticed(played: Recorder) -> None:
    """It is set in the bitmap already: only the count of events tells."""

    def sink(which: str) -> Any:
        if which == "stored":
            played.module.attached[-1].events += 1  # type: ignore[attr-defined]
        return lambda offset, data: None

    done = backup(played, sink)
    assert not done.kept
    assert done.log["thrown_away"] == ["the snapshot was written while it was read"]


def test_a_snapshot_that_others_hold_is_thrown_away(
    played: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def busy(node: str, sink: Any) -> None:
        raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), node)

    monkeypatch.setattr(recorder, "copy", busy)
    done = backup(played)
    assert not done.kept and not done.complete
    assert "busy" in done.log["thrown_away"][0]
    assert not saved(played, 0)["kept"]


def test_a_snapshot_that_is_not_at_rest_is_read_once_more(
    played: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []

    def mend(*_: Any) -> list[str]:
        order.append("mend")
        played.module.attached[-1].events += 3  # type: ignore[attr-defined]
        return ["its log is to be replayed"]

    def sink(which: str) -> Any:
        order.append(which)
        return lambda offset, data: None

    monkeypatch.setattr(recorder, "mend", mend)
    monkeypatch.setattr(recorder, "delete", lambda *_: order.append("delete") or [])
    done = backup(played, sink)
    assert order == ["snapshot", "mend", "mended", "delete", "stored"]
    assert done.kept and done.mended and done.log["mended"] == ["its log is to be replayed"]
    marks = [mark.name for mark in done.marks]
    assert marks[marks.index("read") :][:4] == ["read", "mend", "mended", "mount"]
    monkeypatch.setattr(recorder, "mend", lambda *_: [])
    order.clear()
    done = backup(played, sink)
    assert order == ["snapshot", "delete", "stored"]
    assert not done.mended and "mend" not in {mark.name for mark in done.marks}


def test_writes_that_mend_nothing_are_an_image_too(
    played: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever was written before the delete, the files are mapped on what it left."""

    def mend(*_: Any) -> list[str]:
        played.module.attached[-1].events += 1  # type: ignore[attr-defined]
        return []

    monkeypatch.setattr(recorder, "mend", mend)
    assert backup(played).mended


def test_a_snapshot_that_cannot_be_mended_is_thrown_away(
    played: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def mend(*_: Any) -> list[str]:
        raise NotMended("/dev/dm-1", "is not at rest", "install a checker")

    with monkeypatch.context() as patched:
        patched.setattr(recorder, "mend", mend)
        done = backup(played)
    assert not done.kept and not done.complete
    assert "install a checker" in done.log["thrown_away"][0]
    assert not saved(played, 0)["kept"]
    assert backup(played).kept, "the next one goes on"


def test_another_recording_is_not_overwritten(played: Recorder) -> None:
    backup(played)
    (played.folder / "0001").mkdir()
    with pytest.raises(InputError, match="holds another recording"):
        backup(played)
    assert played.physical.status().frozen is False, "it was switched"
