"""The watchdog, with a device-mapper that is a file: "1" while the volume is suspended."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from cbtlab.record.device_mapper import Info
from cbtlab.record.freeze import Watchdog


class Mapper:
    """Keeps the state in a file, so that the watchdog's process sees and changes it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.set(False)

    def set(self, suspended: bool) -> None:
        self.path.write_text("1" if suspended else "0")

    def info(self, name: str) -> Info:
        return Info(name, 0, self.path.read_text() == "1", 0)

    def resume(self, name: str) -> Info:
        self.set(False)
        return self.info(name)


@pytest.fixture
def mapper(tmp_path: Path) -> Any:
    return Mapper(tmp_path / "state")


def test_the_limit_begins_when_the_volume_is_suspended(mapper: Any) -> None:
    with Watchdog(mapper, "volume", 0.3) as watchdog:
        time.sleep(0.6)  # the suspension takes longer than the limit
        mapper.set(True)
        time.sleep(0.1)
        assert mapper.info("volume").suspended, "the watchdog was hasty"
        patience = time.monotonic() + 20  # a busy machine may let it wait
        while mapper.info("volume").suspended and time.monotonic() < patience:
            time.sleep(0.05)
        assert not mapper.info("volume").suspended
    assert watchdog.fired


def test_in_time_it_does_nothing(mapper: Any) -> None:
    with Watchdog(mapper, "volume", 5.0) as watchdog:
        mapper.set(True)
        mapper.set(False)
    assert not watchdog.fired


def test_leaving_by_an_exception_resumes_at_once(mapper: Any) -> None:
    watchdog = Watchdog(mapper, "volume", 60.0)
    with pytest.raises(OSError, match="no resume"), watchdog:
        mapper.set(True)
        raise OSError("no resume")
    assert watchdog.fired
    assert not mapper.info("volume").suspended
