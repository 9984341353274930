"""QEMU, started for one run, watched on its serial console, and ended at a time limit."""

from __future__ import annotations

import functools
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from cbtlab.errors import CbtlabError
from cbtlab.lab.packages import require

QEMU = "qemu-system-x86_64"
_POLL_SECONDS = 0.1
_PROBE_SECONDS = 3.0
# out 0x501, 0x15: ends QEMU through its debug port with status 0x15 * 2 + 1.
_PROBE, _PROBED = bytes.fromhex("ba0105b015eef4ebfd"), 43
# QEMU 7.2 crashes 6.12 guests by itself when they use cmpxchg16b.
_ACCELERATED = {
    "kvm": ("-accel", "kvm", "-cpu", "host"),
    "tcg": ("-accel", "tcg,thread=multi", "-cpu", "max,-cx16"),
    # Its clock is the number of instructions executed.  A repeated string instruction counts
    # once a round: without erms a copy goes by words of 8 bytes, and not byte by byte.
    "count": ("-accel", "tcg,thread=single", "-icount", "shift=0", "-cpu", "max,-cx16,-erms"),
}
# The second CPU of 6.1 does not come up at boot then, but later: by /sys/devices/system/cpu.
_COUNTING = "tsc=reliable maxcpus=1"


class GuestError(CbtlabError):
    """The guest hung, crashed or ended badly; ``piece`` is the file of its console."""


@functools.cache
def accelerator() -> str:
    """Return ``kvm`` when a guest truly runs under it at an ordinary speed, else ``tcg``.

    A /dev/kvm that can be opened proves nothing: nested, it may refuse to set
    a register, or run a boot sector in seconds that emulation runs in 0.1 s.
    """
    require(QEMU, package="qemu-system-x86")
    if not Path("/dev/kvm").exists():
        return "tcg"
    with tempfile.NamedTemporaryFile(prefix="cbtlab-probe-") as disk:
        disk.write((_PROBE.ljust(510, b"\0") + b"\x55\xaa").ljust(1440 * 1024, b"\0"))
        disk.flush()
        words = [QEMU, "-accel", "kvm", "-cpu", "host", "-m", "64", "-boot", "a"]
        words += ["-drive", f"file={disk.name},format=raw,if=floppy,snapshot=on"]
        words += ["-device", "isa-debug-exit,iobase=0x501,iosize=4"]
        words += ["-display", "none", "-nodefaults", "-no-reboot"]
        try:
            done = subprocess.run(words, capture_output=True, timeout=_PROBE_SECONDS)
        except subprocess.TimeoutExpired:
            return "tcg"
        return "kvm" if done.returncode == _PROBED else "tcg"


def arguments(
    image: Path,
    initramfs: Path,
    console: Path,
    disks: Mapping[str, Path],
    *,
    memory: int,
    cpus: int,
    options: Sequence[str] = (),
    count_instructions: bool = False,
) -> list[str]:
    """Return QEMU's command line; a disk's name is its serial number in the guest.

    With ``count_instructions`` the guest's time stamp counter is the number of
    instructions that its CPUs have executed, and one of them is online.
    """
    words = [QEMU, *_ACCELERATED["count" if count_instructions else accelerator()]]
    words += ["-smp", str(cpus), "-m", str(memory), "-no-reboot", "-nodefaults"]
    words += ["-display", "none", "-serial", f"file:{console}"]
    words += ["-kernel", str(image), "-initrd", str(initramfs)]
    command_line = "console=ttyS0 panic=-1 oops=panic loglevel=4 rdinit=/init"
    # On a busy host the emulated timer is late, and the kernel would panic about it.
    command_line += " no_timer_check"
    if count_instructions:
        command_line += f" {_COUNTING}"
    words += ["-append", f"{command_line} LAB_DISKS={len(disks)}"]
    for name, path in disks.items():
        words += ["-drive", f"file={path},format=raw,if=none,id={name},cache=unsafe,discard=unmap"]
        words += ["-device", f"virtio-blk-pci,drive={name},serial={name}"]
    return [*words, *options]


def run(
    words: Sequence[str], console: Path, timeout: float, on_line: Callable[[str], None]
) -> int | None:
    """Run QEMU to its end; return the status of the guest's closing line, or None.

    ``on_line`` gets each line of the console as it comes.  GuestError when the
    time limit (seconds) is over; QEMU is ended then.
    """
    console.write_bytes(b"")  # what an earlier run left there is not this one's
    complaints = console.with_suffix(".qemu")
    end = time.monotonic() + timeout
    status: int | None = None
    with complaints.open("wb") as err, console.open("rb") as reader:
        process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=err, stderr=err)
        partial = b""
        try:
            while True:
                ended = process.poll() is not None
                *lines, partial = (partial + reader.read()).split(b"\n")
                for raw in lines:
                    line = raw.decode(errors="replace").rstrip("\r")
                    if line.startswith("cbtlab-exit "):
                        status = int(line.split()[1])
                    on_line(line)
                if ended:
                    break
                if time.monotonic() > end:
                    raise GuestError(
                        console,
                        f"the guest did not end within {timeout:g} seconds and was stopped",
                        "its console is in that file",
                    )
                time.sleep(_POLL_SECONDS)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
    said = complaints.read_text(errors="replace").strip()
    if status is None and process.returncode != 0 and said:
        raise GuestError(complaints, f"QEMU failed: {said.splitlines()[-1]}")
    return status
