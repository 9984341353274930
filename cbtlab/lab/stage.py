"""The guest's side of a scenario: sets up the volume, runs the scenario, records it.

A scenario is a Python file that defines ``SCENARIO`` (see ``Scenario``) and is
run inside the guest by its bare Python.  The recording itself is done by
``cbtlab.record``, as on any machine.
"""

from __future__ import annotations

import json
import os
import runpy
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cbtlab.lab.file_systems import FILE_SYSTEMS, make, mount_volume
from cbtlab.lab.writer import Writer
from cbtlab.record.device_mapper import DeviceMapper, Snapshots, Target
from cbtlab.record.kernel_module import EventWriter, Module
from cbtlab.record.recorder import Backup, Recorder, Sink
from cbtlab.rules import Rules

VOLUME = "office"
ROOT, SNAPSHOT, OUT = Path("/volume"), Path("/snapshot"), Path("/out")
# Of each backup, on the disk of images: where a snapshot was at rest, "mended" stays empty.
SLOTS = ("snapshot", "mended", "stored")
_PIECE = 64 << 10
_ZEROS = bytes(_PIECE)


@dataclass(frozen=True)
class Step:
    """One interval: ``work`` changes the volume, then a backup is made with ``patterns``.

    ``keep`` false throws the backup away.  ``late_switch`` resumes first and
    switches the interval so many seconds later: the fault that loses blocks.
    """

    work: Callable[[Path], None]
    patterns: tuple[str, ...]
    keep: bool = True
    late_switch: float | None = None


@dataclass(frozen=True)
class Scenario:
    """What ``cbtlab lab run`` runs: the first step makes the content of backup 0.

    ``file_system`` is a key of ``FILE_SYSTEMS``; ``mkfs`` and ``options`` are words of
    its own, for making it and for the volume's mount.
    """

    name: str
    title: str
    volume_size: int
    granularity: int
    steps: tuple[Step, ...]
    file_system: str = "ext4"
    mkfs: tuple[str, ...] = ()
    options: str = ""
    writer_pause: float = 0.05
    writer_pages: int = 48

    @property
    def kernels(self) -> tuple[str, ...]:
        """The kernels that it can be recorded on."""
        return FILE_SYSTEMS[self.file_system].kernels


def phase(words: str) -> None:
    """Tell the host what happens now."""
    print(f"cbtlab: {words}", flush=True)


def run(scenario: Scenario, steps: int | None = None) -> None:
    """Record ``scenario``, or its first ``steps``, into /out and the disk of images."""
    mapper = DeviceMapper()
    phase(f"{scenario.name}: making the volume")
    unmount = _make_volume(mapper, scenario)
    module = Module()
    recorder = Recorder(
        Snapshots(mapper, VOLUME, "/dev/lab/store"),
        module,
        OUT / "backups",
        granularity=scenario.granularity,
        file_system=scenario.file_system,
        place=SNAPSHOT,
        mounted_at=ROOT,
    )
    backups: list[Backup] = []
    with EventWriter(module, OUT / "events.native"), _images() as images:
        writer = Writer(
            ROOT / "mail" / "spool",
            OUT / "writer.log",
            scenario.writer_pause,
            scenario.writer_pages,
        )
        for step in scenario.steps[:steps]:
            k = len(backups)
            phase(f"interval {k}: writing")
            step.work(ROOT)
            if k == 0:
                writer.start()
            phase(f"backup {k}: snapshot, delete, read")
            backups.append(_backup(recorder, step, k, images, writer))
        writer.stop()
        unmount()
        recorder.finish()
        lost = module.info().dropped
    document = {
        "name": scenario.name,
        "title": scenario.title,
        "volume_size": scenario.volume_size,
        "granularity": scenario.granularity,
        "file_system": scenario.file_system,
        "release": os.uname().release,
        "python": sys.version.split()[0],
        "backups": len(backups),
        "events_lost": lost,
        "ended": time.time_ns(),
        "memory_locked": recorder.memory_locked,
    }
    (OUT / "recording.json").write_text(json.dumps(document, indent=1))


def _backup(recorder: Recorder, step: Step, k: int, images: int, writer: Writer) -> Backup:
    """Make backup ``k``; log how long its writer waited at most meanwhile."""
    size = recorder.volume.size

    def sink(which: str) -> Sink:
        slot = len(SLOTS) * k + SLOTS.index(which)
        return lambda offset, data: _keep(images, slot * size + offset, data)

    made = recorder.backup(
        sink,
        list(step.patterns),
        Rules(step.patterns),
        keep=step.keep,
        late_switch=step.late_switch,
        explain=lambda begin, end: _writing(writer, begin, end),
    )
    if not made.complete:
        raise RuntimeError(f"backup {k} could not be read: {made.log['thrown_away']}")
    return made


def _writing(writer: Writer, begin_ns: int, end_ns: int) -> dict[str, Any]:
    """Return the writer's log of a backup, after its next write has ended."""
    deadline = time.monotonic() + 30
    stalls = writer.stalls(begin_ns, end_ns)
    while not stalls.covered:
        if time.monotonic() > deadline:
            raise RuntimeError("the writer did not go on until the backup was read")
        time.sleep(0.02)
        stalls = writer.stalls(begin_ns, end_ns)
    return {"writer": asdict(stalls)}


def _keep(images: int, place: int, data: memoryview) -> None:
    """Write a part of an image to its slot; zeros are left out, the disk is empty."""
    for start in range(0, len(data), _PIECE):
        part = data[start : start + _PIECE]
        if part != _ZEROS[: len(part)]:
            os.pwrite(images, part, place + start)


@contextmanager
def _images() -> Iterator[int]:
    """Open the disk of images; O_DIRECT keeps them out of the guest's memory."""
    fd = os.open("/dev/lab/images", os.O_WRONLY | os.O_DIRECT)
    try:
        yield fd
        os.fsync(fd)
    finally:
        os.close(fd)


def _make_volume(mapper: DeviceMapper, scenario: Scenario) -> Callable[[], None]:
    """Make the volume, mount it at ROOT, and return what unmounts it."""
    disk = os.path.realpath("/dev/lab/data")
    sectors = scenario.volume_size // 512
    base = mapper.create(f"{VOLUME}-base", [Target(0, sectors, "linear", f"{disk} 0")])
    make(scenario.file_system, base.node, scenario.mkfs)
    origin = mapper.create(VOLUME, [Target(0, sectors, "snapshot-origin", base.node)])
    for place in (ROOT, SNAPSHOT):
        place.mkdir()
    return mount_volume(scenario.file_system, origin.node, ROOT, scenario.options)


def main(arguments: Sequence[str]) -> None:
    """Run the scenario in a file: ``python3.11 -m cbtlab.lab.stage FILE [STEPS]``."""
    scenario = runpy.run_path(arguments[0])["SCENARIO"]
    run(scenario, int(arguments[1]) if len(arguments) > 1 else None)


if __name__ == "__main__":
    main(sys.argv[1:])
