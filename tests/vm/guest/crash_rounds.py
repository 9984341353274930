"""Run in a guest that may be cut off at any moment: a volume is started, written and stopped.

    crash_rounds.py SEED [ROUNDS]

Each step is told before it begins, so that whoever reads the console knows
what was under way when the guest was cut off.  A clean start is judged by the
volume's content; any other takes the content as a new reference, as a full
backup would, and ends the interval.
"""

from __future__ import annotations

import itertools
import sys
import time
from random import Random

from crash_disk import Disk, cbtctl, mapper, tell, wait_for_disk

from cbtlab.record.mounted import mount, unmount


def start(disk: Disk) -> dict[str, str]:
    """Start, and judge what is said to be clean."""
    tell("starting")
    told = disk.start()
    tell("started", state=told["state"], reason=told["reason"])
    if told["state"] == "clean":
        tell("judged", **disk.judge(told))
    return told


def switch(disk: Disk, told: dict[str, str]) -> None:
    """End the interval: what the volume holds is the reference of the next."""
    tell("switching")
    interval = int(told["interval"]) + 1
    mapper.suspend(disk.mapped)
    disk.refer(told["generation"], interval)
    cbtctl("switch", told["id"])
    mapper.resume(disk.mapped)
    cbtctl("clear", told["id"])
    told["interval"] = str(interval)


def use(disk: Disk, rng: Random, told: dict[str, str]) -> None:
    """Write to the volume for a while, mounted or not."""
    tell("writing")
    files = rng.random() < 0.3
    if files:
        mount(disk.volume, disk.files, "ext4")
    for _ in range(rng.randrange(1, 4)):
        if files:
            disk.write_files(rng)
        else:
            disk.write_raw(rng)
        if rng.random() < 0.2:
            switch(disk, told)
            tell("writing")
        time.sleep(rng.random() / 10)
    if files:
        tell("unmounting")
        unmount(disk.files)


def stop(disk: Disk, told: dict[str, str]) -> None:
    """Stop in order."""
    tell("stopping")
    cbtctl("stop", str(disk.folder), told["id"])
    tell("stopped")


def main() -> None:
    """Go round until the guest is cut off, or ``ROUNDS`` are done."""
    rng = Random(int(sys.argv[1]))
    rounds = range(int(sys.argv[2])) if len(sys.argv) > 2 else itertools.count()
    disk = Disk(wait_for_disk("disk"))
    disk.make()
    disk.open()
    for _ in rounds:
        told = start(disk)
        if told["state"] != "clean":
            switch(disk, told)
        use(disk, rng, told)
        stop(disk, told)
        time.sleep(rng.random() / 4)
    disk.close()


if __name__ == "__main__":
    main()
