"""The stack of LVM, for ``stacks.py``: snapshots by ``lvcreate -s`` while a tracker stays attached.

LVM suspends and resumes in one breath, so the switch is called before it and
waits in the module until the volume is suspended.
"""

from __future__ import annotations

import ctypes
import errno
import inspect
import os
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import volumes
from fixtures import MIB, module
from volumes import Truth

from cbtlab.record.kernel_module import (
    FROZEN,
    Module,
    Refused,
    Role,
    State,
    Switched,
    Tracker,
)

SIZE = 32 * MIB
SNAPSHOT = SIZE + 8 * MIB
SWITCHES = 3
WAIT_MS = 20_000
TRIES = 3
_CONFIG = (
    'devices { filter = [ "a|^/dev/vd|", "r|.*|" ] use_devicesfile = 0 } '
    "global { event_activation = 0 } "
    "activation { udev_sync = 0 udev_rules = 0 monitoring = 0 }"
)


def lvm_command(*words: str) -> None:
    """Run one of LVM's commands."""
    done = subprocess.run(
        ["/sbin/lvm", words[0], "--config", _CONFIG, *words[1:]], capture_output=True, text=True
    )
    assert done.returncode == 0, (words, done.stdout, done.stderr)


def node(name: str) -> str:
    """Return the node of one of the group's volumes."""
    return os.path.realpath(f"/dev/mapper/group-{name}")


class Waiting(threading.Thread):
    """A switch that is called before somebody else suspends the volume."""

    def __init__(self, tracker: Tracker) -> None:
        super().__init__()
        self._tracker = tracker
        self.switched: Switched | None = None
        self.error: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            self.switched = module.switch([self._tracker], wait_ms=WAIT_MS)
        except BaseException as error:
            self.error = error


def lvm() -> Iterator[dict[str, Any]]:
    """A logical volume with a file system; each snapshot is made, read and removed by LVM."""
    if "wait_ms" not in inspect.signature(Module.switch).parameters:
        return
    disk = os.path.realpath("/dev/lab/lvm")
    Path("/run/lock/lvm").mkdir(parents=True, exist_ok=True)
    lvm_command("pvcreate", "-q", disk)
    lvm_command("vgcreate", "-q", "group", disk)
    lvm_command("lvcreate", "-q", "-y", "-Wn", "-Zn", "-L", f"{SIZE}b", "-n", "volume", "group")
    # Its table is exchanged by lvcreate -s and lvremove, and the content stays.
    tracker = module.attach(
        node("volume"), role=Role.PHYSICAL, granularity=volumes.BLOCK, tables=True
    )
    truth = Truth(span=(0, SIZE))
    ext4 = volumes.FILE_SYSTEMS["ext4"]
    kinds = ("direct", "mapped", "uring", "names")
    with (
        volumes.made(ext4, node("volume"), Path("/mnt/top")) as place,
        volumes.loaded(place, kinds),
    ):
        for k in range(SWITCHES + 1):
            volumes.let_write(tracker)
            row = by_snapshot(tracker, truth)
            if k == 1:
                lvm_command("lvextend", "-q", "-L", f"+{8 * MIB}b", "group/volume")
            if k:
                yield {"volume": "logical volume", "tracker": tracker.id, **row}
    # Written past the attached size, the tail counts as changed: told, not marked.
    volumes.write(node("volume"), SIZE + MIB, b"x" * 4096)
    status = tracker.status()
    assert (status.states, status.grown_to) == (State.GREW, SIZE + MIB + 4096), status
    tracker.detach()
    truth.forget()
    lvm_command("vgremove", "-q", "-f", "group")


def by_snapshot(tracker: Tracker, truth: Truth) -> dict[str, Any]:
    """Let LVM make a snapshot, switch in the middle of that, judge by it, and remove it."""
    tries = 1
    while not switched_by_snapshot(tracker):
        # Of a switch that did not happen the snapshot is no truth; nothing is lost by it.
        assert tries < TRIES, "LVM was always faster than the switch that waits for it"
        lvm_command("lvremove", "-q", "-f", "group/instant")
        tries += 1
    bits = tracker.changed(FROZEN)
    tracker.clear()
    row = truth.judge(node("instant"), bits)
    lvm_command("lvremove", "-q", "-f", "group/instant")
    return row | {"tries": tries}


def switched_by_snapshot(tracker: Tracker) -> bool:
    """Make a snapshot; return whether the waiting switch saw the suspend of it.

    The module looks for it some thousand times a second.  A virtual machine
    whose processor is taken away may sleep through it, and the call says so.
    """
    waiting = Waiting(tracker)
    time.sleep(0.05)
    lvm_command("lvcreate", "-q", "-s", "-L", f"{SNAPSHOT}b", "-n", "instant", "group/volume")
    waiting.join()
    if isinstance(waiting.error, Refused) and waiting.error.errno == errno.ETIMEDOUT:
        return False
    if waiting.error:
        raise waiting.error
    assert waiting.switched
    assert waiting.switched.suspended
    return True


def blkpg(operation: int, part: bytes) -> bytes:
    """Return the argument of BLKPG for a partition (``include/uapi/linux/blkpg.h``)."""
    blkpg.kept = ctypes.create_string_buffer(part)  # type: ignore[attr-defined]
    address = ctypes.addressof(blkpg.kept)  # type: ignore[attr-defined]
    return struct.pack("=iii4xQ", operation, 0, len(part), address)
