"""For the programs that survive crashes: one disk with the volume, its reference and the state.

One disk, so that what is on it after a crash was on it at one moment:

    state      an ext4 file system, on it the folder that cbtctl stop and start use
    reference  the volume's content when an interval began: what a full backup would hold
    label      of which generation and interval the reference is; written when it is whole
    volume     tracked: an ext4 file system, then as much for raw blocks, and far more that is
               never written, so that a fingerprint hardly ever sees that raw blocks were

The truth is what volume and reference hold, read past the page cache: every
block in which they differ must have its bit.  Standard library only.
"""

from __future__ import annotations

import json
import mmap
import os
import subprocess
import time
from pathlib import Path
from random import Random

from cbtlab.record.device_mapper import DeviceMapper, Target
from cbtlab.record.mounted import mount, unmount

MIB = 1 << 20
BLOCK = 4096
BITS = "/tmp/bits"
STATE_SIZE, FILES_SIZE, USED_SIZE, VOLUME_SIZE = 8 * MIB, 16 * MIB, 32 * MIB, 2048 * MIB
REFERENCE = STATE_SIZE
LABEL = REFERENCE + USED_SIZE
VOLUME = LABEL + MIB
SIZE = VOLUME + VOLUME_SIZE

mapper = DeviceMapper()


def cbtctl(*words: str) -> str:
    """Run cbtctl, which must do what it is asked, and return what it prints."""
    done = subprocess.run(["/lab/cbtctl", *words], capture_output=True, text=True)
    assert done.returncode == 0, (words, done)
    return done.stdout


def tell(step: str, **figures: object) -> None:
    """Print one step for whoever reads the console."""
    words = " ".join(f"{name}={str(value).replace(' ', '_')}" for name, value in figures.items())
    print(f"cbtlab: {step} {words}".rstrip(), flush=True)


def answer(line: str) -> dict[str, str]:
    """Take a line of ``name=value`` apart; the reason, in quotes, is the last."""
    words, _, reason = line.partition(' reason="')
    found = dict(word.split("=", 1) for word in words.split() if "=" in word)
    return found | ({"reason": reason.rstrip('"\n')} if reason else {})


def wait_for_disk(serial: str) -> str:
    """Return the node of the disk with this serial number, which may come late."""
    for _ in range(100):
        for disk in Path("/sys/block").glob("vd*"):
            if (disk / "serial").read_text() == serial:
                return f"/dev/{disk.name}"
        time.sleep(0.1)
    raise SystemExit(f"no disk {serial}")


class Disk:
    """The disk, with a linear volume over each of its first two parts."""

    def __init__(self, node: str, name: str = "") -> None:
        self.node = node
        self._names = [f"{name}state", f"{name}volume"]
        places = (0, STATE_SIZE), (VOLUME, VOLUME_SIZE)
        self.state, self.volume = (
            mapper.create(at, [Target(0, size // 512, "linear", f"{node} {start // 512}")]).node
            for at, (start, size) in zip(self._names, places, strict=True)
        )
        self.mapped = self._names[1]
        self.place, self.files = Path("/mnt/state"), Path("/mnt/files")
        self.folder = self.place / "volume"
        for folder in (self.place, self.files):
            folder.mkdir(parents=True, exist_ok=True)
        self._fd = os.open(node, os.O_RDWR | os.O_DIRECT)

    def open(self) -> None:
        """Mount what holds the state."""
        mount(self.state, self.place, "ext4")
        self.folder.mkdir(exist_ok=True)

    def start(self) -> dict[str, str]:
        """Start the tracker and return what cbtctl says of it."""
        return answer(cbtctl("start", str(self.folder), self.volume, "physical", str(BLOCK)))

    def close(self) -> None:
        """Unmount it, and remove the volumes."""
        unmount(self.place)
        for name in self._names:
            mapper.remove(name)
        os.close(self._fd)

    def made(self) -> bool:
        """Return whether the file systems are there: they have a label since."""
        return self._read(LABEL, BLOCK).startswith(b"{")

    def make(self) -> None:
        """Make the file systems, once."""
        if self.made():
            return
        for node, size in (self.state, STATE_SIZE), (self.volume, FILES_SIZE):
            words = ["-q", "-F", "-t", "ext4", "-b", "1024", "-J", "size=1"]
            subprocess.run(["/sbin/mke2fs", *words, node, str(size // 1024)], check=True)
        self._label("")

    def _read(self, offset: int, length: int) -> bytes:
        with mmap.mmap(-1, length) as buffer:
            assert os.preadv(self._fd, [buffer], offset) == length
            return buffer[:]

    def _write(self, offset: int, data: bytes) -> None:
        with mmap.mmap(-1, len(data)) as buffer:
            buffer[:] = data
            assert os.pwritev(self._fd, [buffer], offset) == len(data)

    def _label(self, interval: str) -> None:
        os.fsync(self._fd)
        self._write(LABEL, json.dumps({"reference": interval}).encode().ljust(BLOCK, b"\n"))
        os.fsync(self._fd)

    def refer(self, generation: str, interval: int) -> None:
        """Take the volume's content as the reference of an interval; durable at the return.

        Writes only what differs, and so may be called while the volume is suspended.
        """
        self._label("")
        for at in range(0, USED_SIZE, MIB):
            now = self._read(VOLUME + at, MIB)
            if now != self._read(REFERENCE + at, MIB):
                self._write(REFERENCE + at, now)
        self._label(f"{generation} {interval}")

    def judge(self, told: dict[str, str]) -> dict[str, object]:
        """Hold the bits of a tracker that has started against the truth; return the counts.

        ``reference`` is "other" if the content at the start of the interval is not known: then
        the state cannot be clean.
        """
        cbtctl("bits", told["id"], "active", "changed", BITS)
        bits = Path(BITS).read_bytes()
        label = json.loads(self._read(LABEL, BLOCK))["reference"]
        fits = label == f"{told['generation']} {told['interval']}"
        changed = missed = 0
        for at in range(0, USED_SIZE, MIB):
            now, before = self._read(VOLUME + at, MIB), self._read(REFERENCE + at, MIB)
            if now == before:
                continue
            for place in range(0, MIB, BLOCK):
                if now[place : place + BLOCK] != before[place : place + BLOCK]:
                    changed += 1
                    block = (at + place) // BLOCK
                    missed += not bits[block // 8] >> block % 8 & 1
        marked = sum(byte.bit_count() for byte in bits)
        counts = {"changed": changed, "marked": marked, "missed": missed}
        return {"reference": "its" if fits else "other", **counts}

    def write_raw(self, rng: Random) -> None:
        """Write a few blocks behind the file system, which a fingerprint hardly sees."""
        fd = os.open(self.volume, os.O_WRONLY | os.O_DIRECT)
        for _ in range(rng.randrange(1, 4)):
            block = rng.randrange(FILES_SIZE // BLOCK, USED_SIZE // BLOCK)
            with mmap.mmap(-1, BLOCK) as buffer:
                buffer[:] = rng.randbytes(BLOCK)
                os.pwritev(fd, [buffer], block * BLOCK)
            if rng.random() < 0.5:
                os.fsync(fd)
        os.close(fd)

    def write_files(self, rng: Random) -> None:
        """Write, overwrite and delete files in what is mounted at ``files``."""
        for _ in range(rng.randrange(1, 5)):
            path = self.files / f"file-{rng.randrange(12)}"
            if rng.random() < 0.2:
                path.unlink(missing_ok=True)
                continue
            with path.open("r+b" if path.exists() else "wb") as out:
                out.seek(rng.randrange(0, 64) * BLOCK)
                out.write(rng.randbytes(rng.randrange(1, 20 * BLOCK)))
                if rng.random() < 0.5:
                    out.flush()
                    os.fsync(out.fileno())
