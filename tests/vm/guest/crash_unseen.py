"""For ``crash_states.py``: a volume that is written between stop and start, without a tracker.

Whether the fingerprint finds it: what each file system changes, however little
was done, stands in ``program/fingerprint.c``.
"""

from __future__ import annotations

import fcntl
import os
import struct
from pathlib import Path
from random import Random

import volumes
from crash_disk import BLOCK, answer, cbtctl
from crash_volume import FOLDER, PLACE, SIZE, detach, make, start, stop, switch, volume

from cbtlab.record.mounted import mount, unmount

SHUTDOWN = 0x8004587D  # FS_IOC_SHUTDOWN
# What a file system must tell of having been written (see program/fingerprint.c), and what it may.
# XFS's is so large that none of the blocks that are spread over it need lie in its log.
TELLING = (
    ("ext4", SIZE, {"mount", "write", "overwrite", "cut off", "raw"}, ""),
    ("xfs", 64 << 30, {"mount", "write", "overwrite", "cut off"}, ""),
    ("btrfs", SIZE, {"write", "overwrite", "raw"}, "mount"),
    ("vfat", SIZE, {"write", "raw"}, "mount overwrite"),
    ("ntfs3", SIZE, {"write", "overwrite", "raw"}, "mount"),
)


def change_without_a_tracker(node: str, kind: str, how: str) -> None:
    """Do what a system that was booted from another disk does."""
    if how == "raw":
        for block in Random(3).sample(range(SIZE // BLOCK), 300):
            volumes.write(node, block * BLOCK, b"z" * BLOCK)
        return
    mount(node, PLACE, kind)
    if how == "write":
        (PLACE / "new").write_bytes(os.urandom(50000))
    elif how != "mount":
        with (PLACE / "old").open("r+b") as out:
            out.seek(100 * BLOCK)
            out.write(os.urandom(BLOCK))
            out.flush()
            os.fsync(out.fileno())
    if how == "cut off":
        top = os.open(PLACE, os.O_RDONLY)
        fcntl.ioctl(top, SHUTDOWN, struct.pack("=I", 2))  # without flushing its log
        os.close(top)
    unmount(PLACE)


def is_found(kind: str, size: int, ways: set[str], chance: str) -> None:
    """Each of ``ways`` to write is found, one of ``chance`` may be."""
    found = set()
    with volume(size) as node:
        make(kind, node)
        mount(node, PLACE, kind)
        # The first MiB is in every fingerprint: the file that is overwritten lies behind it.
        (PLACE / "front").write_bytes(os.urandom(4 << 20))
        (PLACE / "old").write_bytes(os.urandom(1 << 20))
        unmount(PLACE)
        for how in ("nothing", *sorted(ways), *chance.split()):
            told = start(node, "physical", "4096", "--unclean", expected="unclean")
            switch(told)
            cbtctl("clear", told["id"])
            stop(told)
            if how != "nothing":
                change_without_a_tracker(node, kind, how)
            told = answer(cbtctl("start", str(FOLDER), node, "physical", "4096"))
            assert told["state"] == "clean" or "without a tracker" in told["reason"]
            if told["state"] != "clean":
                found.add(how)
            detach(told)
    print(f"cbtlab: {kind} tells: {', '.join(sorted(found))}", flush=True)
    assert ways <= found <= ways | set(chance.split()), (kind, found)


def writing_without_a_tracker_is_found() -> None:
    """Try all file systems that the kernel knows."""
    known = Path("/proc/filesystems").read_text().split()
    for kind, size, ways, chance in TELLING:
        if kind in known:
            is_found(kind, size, ways, chance)
