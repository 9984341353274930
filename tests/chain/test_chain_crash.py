"""An append that is killed at any step leaves the old chain whole."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from chains import History, history

from cbtlab.chain import open_chain, verify

STEPS = ("pwrite", "fsync", "ftruncate", "replace", "unlink")


def die_at(step: int) -> Callable[[], int]:
    """Make the ``step``-th system call that changes the disk end this process at once."""
    count = 0

    def hook(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            nonlocal count
            count += 1
            if count == step:
                if real is os.pwrite:  # half of it has reached the disk
                    data = memoryview(arguments[1])
                    PWRITE(arguments[0], data[: len(data) // 2], arguments[2])
                os._exit(9)
            return real(*arguments, **options)

        return call

    for name in STEPS:
        setattr(os, name, hook(getattr(os, name)))
    Path.replace = hook(Path.replace)  # type: ignore[method-assign]
    Path.unlink = hook(Path.unlink)  # type: ignore[method-assign]
    return lambda: count


PWRITE = os.pwrite


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # fork in a process with threads
def test_killed_at_any_step_the_old_chain_is_whole(tmp_path: Path) -> None:
    made = history(tmp_path / "chain", 2, size=24 << 10)
    made.run()
    killed = 0
    for step in range(1, 200):
        folder = tmp_path / f"{step}"
        shutil.copytree(tmp_path / "chain", folder)
        pid = os.fork()
        if not pid:
            try:
                die_at(step)
                append(made, folder)
                os._exit(0)
            except BaseException:
                os._exit(1)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        assert status in (0, 9)
        assert verify(folder) == []
        chain = open_chain(folder)
        assert [link.k for link in chain.links] in ([0, 1], [0, 1, 2])
        for k in (0, 1):
            with chain.restored(k) as image:
                assert image.read(0, image.size) == made.expected[k]
        if status == 0:
            assert len(chain.links) == 3
            break
        killed += 1
        if len(chain.links) == 2:
            append(made, folder)
            assert verify(folder) == []
        assert open_chain(folder).strays() == []
        shutil.rmtree(folder)
    else:
        pytest.fail("the append never came to its end")
    assert killed > 15


def append(made: History, folder: Path) -> None:
    """Append backup 2 to a copy of the chain."""
    copy = History(open_chain(folder), made.block, made.rng, made.data, made.held, made.changed)
    copy.back_up(2)


def test_every_file_is_durable_before_it_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each file is synced before its rename, the folder before the manifest names the files."""
    made = history(tmp_path / "chain", 1)
    log: list[str] = []
    sync, replace = os.fsync, Path.replace

    def synced(fd: int) -> None:
        log.append("sync " + Path(f"/proc/self/fd/{fd}").readlink().name)
        sync(fd)

    def replaced(self: Path, target: Path) -> Path:
        log.append("name " + self.name)
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "replace", replaced)
    made.back_up(1)
    files = ["0001.held.bits", "0001.physical.bits", "0001.snapshot.bits", "0001.qcow2"]
    parts = [f"{name}.part" for name in files]
    expected = [f"{word} {part}" for part in parts for word in ("sync", "name")]
    manifest = ["sync chain", "sync chain.json.part", "name chain.json.part", "sync chain"]
    assert log == expected + manifest
