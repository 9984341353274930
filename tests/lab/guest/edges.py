"""Run in a guest: what the recorder does when the store runs full and when nobody thaws.

The result is /out/edges.json.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

from cbtlab.errors import InputError
from cbtlab.record import recorder as record
from cbtlab.record.device_mapper import DeviceMapper, Snapshots, Target
from cbtlab.record.freeze import Watchdog
from cbtlab.record.kernel_module import EventWriter, Module
from cbtlab.record.mounted import mount
from cbtlab.record.recorder import Recorder

SECTORS = 16 << 11
VOLUME, PLACE = Path("/volume"), Path("/snapshot")


def write(name: str, size: int) -> None:
    with (VOLUME / name).open("wb") as out:
        out.write(os.urandom(size))
        os.fsync(out.fileno())


def overflow(recorder: Recorder) -> list[dict[str, Any]]:
    """Make three backups; during the second one more is written than its store holds."""
    made = []
    for number in range(3):
        write(f"file-{number}", 1 << 20)

        def sink(which: str, number: int = number) -> Any:
            if number == 1:
                write("much", 6 << 20)
            return lambda offset, data: None

        done = recorder.backup(sink, ["file-0"], lambda path: path == "file-0")
        bits = recorder.folder / f"{done.k:04d}" / "physical-bitmap.bits"
        made.append(
            {
                "k": done.k,
                "kept": done.kept,
                "complete": done.complete,
                "reasons": done.log.get("thrown_away", []),
                "marked": sum(bin(byte).count("1") for byte in bits.read_bytes())
                if bits.exists()
                else 0,
            }
        )
    return made


def held(recorder: Recorder) -> list[str]:
    """Make a backup whose snapshot another program opens for itself; return the reasons."""
    others: list[int] = []

    def sink(which: str) -> Any:
        if which == "stored":
            node = recorder.volume.mapper.info("volume-snapshot-3").node
            others.append(os.open(node, os.O_RDONLY | os.O_EXCL))
        return lambda offset, data: None

    def explain(first: int, last: int) -> dict[str, Any]:
        os.close(others.pop())
        return {}

    record.PATIENCE = 0.5
    done = recorder.backup(sink, [], lambda path: False, explain=explain)
    assert not done.kept
    reasons: list[str] = done.log["thrown_away"]
    return reasons


def watchdog(mapper: DeviceMapper) -> dict[str, Any]:
    """Suspend and do not resume: the watchdog does; then in time: it need not."""
    with Watchdog(mapper, "volume", 0.5) as late:
        mapper.suspend("volume")
        time.sleep(1.5)
        thawed = not mapper.info("volume").suspended
    with Watchdog(mapper, "volume", 5.0) as timely:
        mapper.suspend("volume")
        mapper.resume("volume")
    return {"thawed": thawed, "late": late.fired, "timely": timely.fired}


def refused(mapper: DeviceMapper, snapshots: Snapshots) -> dict[str, str]:
    """What is refused, with its words."""
    said = {}
    try:
        Snapshots(mapper, "base", "/dev/lab/store")
    except InputError as error:
        said["no origin"] = str(error)
    try:
        snapshots.create("early")
    except RuntimeError as error:
        said["running"] = str(error)
    return said


def main() -> None:
    mapper = DeviceMapper()
    disk = os.path.realpath("/dev/lab/data")
    base = mapper.create("base", [Target(0, SECTORS, "linear", f"{disk} 0")])
    origin = mapper.create("volume", [Target(0, SECTORS, "snapshot-origin", base.node)])
    subprocess.run(["/sbin/mkfs.ext4", "-q", "-E", "nodiscard", origin.node], check=True)
    VOLUME.mkdir()
    PLACE.mkdir()
    mount(origin.node, VOLUME, "ext4")
    snapshots = Snapshots(mapper, "volume", "/dev/lab/store")
    results: dict[str, Any] = {"refused": refused(mapper, snapshots)}
    module = Module()
    recorder = Recorder(snapshots, module, Path("/out/backups"), place=PLACE)
    with EventWriter(module, "/out/events.native"):
        # A child that was forked meanwhile has a copy of every pipe; it must not be waited for.
        child = os.fork()
        if not child:
            time.sleep(1000)
            os._exit(0)
        results["backups"] = overflow(recorder)
        results["held"] = held(recorder)
        recorder.finish()
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    results["watchdog"] = watchdog(mapper)
    results["left"] = sorted(p.read_text().strip() for p in Path("/sys/block").glob("dm-*/dm/name"))
    Path("/out/edges.json").write_text(json.dumps(results))


main()
