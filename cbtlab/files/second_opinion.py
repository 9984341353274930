"""What pytsk3 says of files that our own readers have mapped: the same places, or where not.

An auditor need not believe one reader of a file system.  pytsk3 (The Sleuth Kit)
is another one, older and by other people; it knows ext2 to ext4, NTFS, FAT and
exFAT.  It works in a process of its own, with limits: see ``tsk.py``.
"""

from __future__ import annotations

import multiprocessing
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import pytsk3

from cbtlab.files.extents import DATA, NOWHERE
from cbtlab.files.tsk import limit_this_process, open_file_system
from cbtlab.files.volume import Volume
from cbtlab.files.volume_map import VolumeMap

KNOWN = ("ext2", "ext3", "ext4", "ntfs", "fat12", "fat16", "fat32", "exfat")
SECONDS = 30.0
_BY_PATH = ("fat12", "fat16", "fat32", "exfat")  # they have no inodes: pytsk3 makes numbers up
_TOLD = 20
_CONTENT = (int(pytsk3.TSK_FS_ATTR_TYPE_DEFAULT), int(pytsk3.TSK_FS_ATTR_TYPE_NTFS_DATA))

Runs = list[tuple[int, int, int]]  # logical, physical, length in bytes


@dataclass(frozen=True)
class Opinion:
    """How many files were ``compared``, in which the two differ, and why not more was done."""

    compared: int
    differences: list[str]
    reason: str = ""

    def __str__(self) -> str:
        if self.reason and not self.compared:
            return self.reason
        if self.differences:
            return f"pytsk3 maps {len(self.differences)} of {self.compared} files otherwise"
        told = f"pytsk3 maps {self.compared} files to the same places"
        return f"{told}; {self.reason}" if self.reason else told


def second_opinion(
    mapped: VolumeMap, volume: Volume, paths: list[bytes], seconds: float = SECONDS
) -> Opinion:
    """Compare where the content of files lies, by pytsk3 and by ``mapped``, a map of ``volume``.

    ``paths`` are raw, and of regular files.  Content that is encoded, and what lies in an inode
    or record, is left out: pytsk3 gives it no places.
    """
    if mapped.fs not in KNOWN:
        return Opinion(0, [], f"pytsk3 does not know {mapped.fs}")
    wanted = mapped.names[mapped.names["raw"].isin(paths) & (mapped.names["type"] == "file")]
    asked = list(zip(wanted["raw"], wanted["inode"].tolist(), strict=True))
    context = multiprocessing.get_context("fork")
    receive, send = context.Pipe(duplex=False)
    work = (volume, mapped.fs in _BY_PATH, asked, send)
    worker = context.Process(target=_work, args=work, daemon=True)
    worker.start()
    send.close()
    until = time.monotonic() + seconds
    compared, differences, reason = 0, [], ""
    try:
        for _, inode in asked:
            if not receive.poll(max(0.0, until - time.monotonic())):
                reason = f"then {seconds:.0f} s were over"
                break
            theirs = receive.recv()
            if isinstance(theirs, str):
                reason = f"pytsk3 cannot read it: {theirs}"
                break
            own = _own(mapped, inode)
            if own is None:
                continue
            compared += 1
            if theirs != own:
                differences.append(_told(mapped.label(inode), own, theirs))
    except EOFError:
        reason = "then pytsk3 ended"
    finally:
        receive.close()
        worker.kill()
        worker.join()
    return Opinion(compared, differences, reason)


def _own(mapped: VolumeMap, inode: int) -> Runs | None:
    """Where the content of an inode lies, joined; None where it has no comparable places."""
    found = mapped.rows(inode)
    found = found[(found.stream == 0) & (found.logical != NOWHERE)]
    if found.encoded.any() or inode in mapped.damaged:
        return None
    found = found[(found.kind == DATA)]
    end = -(-int(mapped.inodes["size"].loc[inode]) // mapped.block_size) * mapped.block_size
    length = np.minimum(found.length, end - found.logical)  # pytsk3 tells nothing past the end
    found, length = found[length > 0], length[length > 0]
    place = found.physical - mapped.offset
    return joined(list(zip(found.logical.tolist(), place.tolist(), length.tolist(), strict=True)))


def joined(runs: Runs) -> Runs:
    """The runs in order, those that continue each other as one."""
    made: Runs = []
    for logical, physical, length in sorted(runs):
        if made and made[-1][0] + made[-1][2] == logical and made[-1][1] + made[-1][2] == physical:
            made[-1] = (made[-1][0], made[-1][1], made[-1][2] + length)
        else:
            made.append((logical, physical, length))
    return made


def _told(path: str, own: Runs, theirs: Runs) -> str:
    odd = next((pair for pair in zip(own, theirs, strict=False) if pair[0] != pair[1]), None)
    if odd is None:
        return f"{path}: {len(own)} runs, and {len(theirs)} by pytsk3"
    at, place, length = odd[0]
    return f"{path}: byte {at} lies at {place} +{length}, by pytsk3 {odd[1][0]} at {odd[1][1]}"


def _work(volume: Volume, by_path: bool, asked: list[tuple[bytes, int]], send: Connection) -> None:
    """The worker: sends the runs of each file, in order, or one line that says what is wrong."""
    try:
        limit_this_process()
        system = open_file_system(volume)
        size = int(system.info.block_size)
        for path, inode in asked:
            file = system.open(path.decode()) if by_path else system.open_meta(inode=inode)
            send.send(joined(_runs(file, size)))
    except BaseException as error:  # whatever happens here is told in the parent
        send.send(" ".join(str(error).split())[:200] or type(error).__name__)


def _runs(file: Any, size: int) -> Runs:
    end = -(-int(file.info.meta.size) // size) * size
    runs: Runs = []
    for attribute in file:
        if int(attribute.info.type) not in _CONTENT or attribute.info.name not in (None, b""):
            continue
        for run in attribute:
            logical = int(run.offset) * size
            if int(run.flags) & 3 == 0 and logical < end:  # 1 and 2: no place of its own
                runs.append(
                    (logical, int(run.addr) * size, min(int(run.len) * size, end - logical))
                )
    return runs
