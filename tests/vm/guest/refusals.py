"""What the module refuses, each with its errno; called by ``behaviour.py`` in a guest."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import random
import subprocess
from functools import partial
from pathlib import Path

import volumes
from fixtures import MIB, PLACE, P, linear, mapper, module, refused, tracked

from cbtlab.errors import InputError
from cbtlab.record import uapi
from cbtlab.record.device_mapper import Target
from cbtlab.record.kernel_module import ACTIVE, FROZEN, EventWriter, Refused, State
from cbtlab.record.mounted import mount, unmount

MKFS_BTRFS = "/sbin/mkfs.btrfs"  # not on every guest


def attach_refuses() -> None:
    def attach(device: object, granularity: int = 4096, role: int = P) -> None:
        module.attach(device, role=role, granularity=granularity).detach()  # type: ignore[arg-type]

    with linear() as node:
        for granularity in (0, 1, 256, 511, 3000, 4097, 2 * MIB, 2**31, 2**32 - 1):
            with refused(errno.EINVAL):
                attach(node, granularity)
        assert "cbt: attach: the role is 1 or 2, the granularity a" in kernel_log()
        for granularity in (512, MIB):
            attach(node, granularity)
        for role in (0, 3, 255):
            with refused(errno.EINVAL):
                attach(node, role=role)
    way = "not a bio-based device-mapper volume; put a"
    with refused(errno.EOPNOTSUPP, saying=way):  # request-based
        attach("/dev/lab/volume")
    # Bio-based, but not of a driver that is known to bear a replaced handler.
    Path("/sys/block/zram0/disksize").write_text(str(MIB))
    with refused(errno.EOPNOTSUPP, saying=way):
        attach("/dev/zram0")
    with refused(errno.ENOENT):
        attach("/dev/nothing")
    with refused(errno.ENOTBLK):
        attach("/tmp")
    with refused(errno.ENXIO):
        attach((253, 999_999))
    with refused(errno.ENXIO):
        attach((2**31, 0))
    with refused(errno.ENAMETOOLONG, errno.EINVAL):
        attach("/dev/" + "x" * 5000)
    mapper._call(3, "empty")
    mapper.load("empty", [Target(0, 2048, "error", "")])  # and not resumed: no table yet
    with refused(errno.ENODATA, saying="is empty"):
        attach(mapper.info("empty").node)
    mapper.remove("empty")
    huge = mapper.create("huge", [Target(0, 2**53, "error", "")]).node
    with refused(errno.ENOMEM, saying="a coarser granularity takes less"):
        attach(huge, 512)
    mapper.remove("huge")


def kernel_log() -> str:
    return subprocess.run(
        ["/lab/busybox", "dmesg"], capture_output=True, text=True, check=True
    ).stdout


def log_on_the_volume_is_refused() -> None:
    with linear() as node:
        subprocess.run(["/sbin/mke2fs", "-q", "-F", "-t", "ext4", node], check=True)
        mount(node, PLACE, "ext4")
        with (PLACE / "events").open("wb") as log:
            fields = (0, *os_numbers(node), 4096, 0, log.fileno(), P, 0, 0, b"", 0, 0, 0)
            with refused(errno.ELOOP, saying="saved on the tracked volume"):
                module.call(node, uapi.IOC_ATTACH, uapi.ATTACH, *fields)
        unmount(PLACE)
        above = mapper.create("above", [Target(0, 32768, "linear", f"{node} 0")]).node
        own_volume_is_refused(node, above, "ext4")
        mapper.remove("above")


def log_on_btrfs_is_refused() -> None:
    """Its files have a device number that is no device's."""
    with linear() as node:
        above = mapper.create("above", [Target(0, 32768, "linear", f"{node} 0")]).node
        words = [MKFS_BTRFS, "-q", "-f", "-K", "--mixed", above]
        subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
        own_volume_is_refused(node, above, "btrfs")
        mapper.remove("above")


def own_volume_is_refused(node: str, above: str, kind: str) -> None:
    """Save events above the tracked volume: attached before the writer, and after."""
    mount(above, PLACE, kind)
    with tracked(node):
        try:
            with EventWriter(module, PLACE / "events"):
                raise AssertionError("a log above the tracked volume was not refused")
        except InputError as error:
            assert "whose writes it would record" in str(error)
    with EventWriter(module, PLACE / "events"):
        try:
            module.attach(node, role=P, granularity=4096)
        except InputError as error:
            assert "whose writes it would record" in str(error)
        else:
            raise AssertionError("a volume below the log was not refused")
        assert module.info().trackers == 0
    unmount(PLACE)


def os_numbers(node: str) -> tuple[int, int]:
    number = Path(node).stat().st_rdev
    return os.major(number), os.minor(number)


def other_calls_refuse() -> None:
    with linear() as node, tracked(os_numbers(node)) as tracker:
        nobody = module.tracker(60_000)
        load = partial(nobody.load, b"x", b"x")
        for call in (nobody.status, nobody.clear, nobody.detach, nobody.changed, nobody.seal, load):
            with refused(errno.ENOENT):
                call()
        with refused(errno.ENODATA):
            tracker.changed(FROZEN)
        with refused(errno.EINVAL):
            tracker.bitmap(2)
        with refused(errno.EINVAL):
            tracker.bitmap(ACTIVE, 2)
        with refused(errno.EBUSY, saying="a tracker is attached"):
            module.ring(1000)
        with refused(errno.EBUSY, saying="not suspended"):
            module.switch([tracker])
        with refused(errno.EINVAL):
            module.switch([])
        with refused(errno.EINVAL):
            module.switch([tracker] * 65)
        mapper.suspend("disk")
        with refused(errno.EINVAL):
            module.switch([tracker, tracker])
        with refused(errno.ENOENT):
            module.switch([tracker, nobody])
        assert tracker.status().interval == 0
        assert module.switch([tracker]).suspended
        mapper.resume("disk")
        assert tracker.status().interval == 1
        with refused(errno.EFAULT):
            module.call("bits", uapi.IOC_BITS, uapi.BITS, 8, 0, 64, tracker.id, 0, 0, 0)
        with refused(errno.ENOTTY):
            module.call("none", 0xC0044399, uapi.ID, 0)
        try:
            mapper.remove("disk", patience=0)
        except OSError as error:
            assert error.errno == errno.EBUSY
        else:
            raise AssertionError("a tracked volume was removed")
        assert subprocess.run(["/lab/busybox", "rmmod", "cbt"], stderr=-3).returncode
    for room in (0, 15, 2**24 + 1, 2**63):
        with refused(errno.EINVAL, saying=f"{room} events" if room else ""):
            module.ring(room)
    with refused(errno.ENOMEM, saying="cannot be had"):  # 1.25 GiB, more than the guest has
        module.ring(2**24)
    child = os.fork()
    if not child:
        os.setuid(1000)
        status = 1
        with contextlib.suppress(Refused):
            status = module.info().version
        os._exit(status and 2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 2
    # A descriptor kept by a program that has lost its rights is of no use.


def random_calls_do_no_harm() -> None:
    """Throw random bytes and near misses at every call."""
    pick = random.Random(1)
    calls = [getattr(uapi, name) for name in dir(uapi) if name.startswith("IOC_")]
    small = (0, 1, 2, 3, 4096, 2**32 - 1, 2**64 - 1)
    with linear() as node:
        tracker = module.attach(node, role=P, granularity=4096)
        for _ in range(20_000):
            call = pick.choice(calls)
            size = call >> 16 & 0x3FFF
            data = bytearray(pick.randbytes(size))
            for at in range(0, size, 8):
                if pick.random() < 0.6:
                    data[at : at + 8] = pick.choice(small).to_bytes(8, "little")[: size - at]
            if call in (uapi.IOC_DETACH, uapi.IOC_RING):
                data[1] |= 0x80  # leaves the tracker attached, and the ring as it is
            if call == uapi.IOC_SWITCH:
                data[17:20] = bytes(3)  # waits for less than a second
            with contextlib.suppress(OSError):
                fcntl.ioctl(module.fd, call, data)
        volumes.write(node, 0, b"x" * 512)
        for status in list(module.trackers()):
            with contextlib.suppress(Refused):  # a sealed one that was written says so once
                module.tracker(status.tracker).detach()
            if status.states & State.SEALED:
                with contextlib.suppress(Refused):
                    module.tracker(status.tracker).detach()
        with refused(errno.ENOENT):
            tracker.status()


BEHAVIOURS = (
    attach_refuses,
    log_on_the_volume_is_refused,
    *((log_on_btrfs_is_refused,) if Path(MKFS_BTRFS).exists() else ()),
    other_calls_refuse,
)
