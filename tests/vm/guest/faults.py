"""Run in a guest with the debug kernel: memory that fails on purpose.

Every allocation and every copy from and to the caller fails once, in each call
of the module, one after the other; then some fail at random, in several
processes at once.  A call may be refused; nothing else may happen, and a call
that succeeds must have done its work.  The module is not to be inserted before:
what opens it is imported where it is.  The counts go to /out/injected.json.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import mmap
import os
import random
import select
import subprocess
import time
from pathlib import Path

from injector import FAILED, Injector, failing, prepare

from cbtlab.record import uapi
from cbtlab.record.kernel_module import FROZEN, Kind, Refused, Role, Tracker


def write(node: str, offset: int, data: bytes) -> None:
    """Write past the page cache."""
    fd = os.open(node, os.O_WRONLY | os.O_DIRECT)
    try:
        with mmap.mmap(-1, 4096) as buffer:
            buffer[: len(data)] = data
            os.pwrite(fd, buffer, offset)
    finally:
        os.close(fd)


# ---- one place after the other -------------------------------------------------


def insert_and_remove(inject: Injector) -> None:
    """Let loading the module fail in every place, and removing it; it is inserted in the end."""
    libc = ctypes.CDLL(None, use_errno=True)
    fd = os.open("/lab/cbt.ko", os.O_RDONLY)
    finit_module, delete_module, nonblock = 313, 176, 0o4000

    def checked(result: int) -> None:
        if result:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))

    def insmod() -> None:
        checked(libc.syscall(finit_module, fd, b"", 0))

    def rmmod() -> None:
        checked(libc.syscall(delete_module, b"cbt", nonblock))

    # The loader has refusals of its own; none of them may leave anything.
    inject.every_site(insmod, rmmod, (*FAILED, errno.EINVAL, errno.ENOEXEC, errno.ENOENT))
    insmod()
    inject.every_site(rmmod, insmod)
    os.close(fd)


def attaching(inject: Injector) -> None:
    """Let attach and detach fail in every place: with a hook, without, by path, by number."""
    from fixtures import MIB, linear, module, tracked

    made: list[Tracker] = []

    def attach() -> None:
        made.append(module.attach(node, role=Role.PHYSICAL, granularity=4096))

    def attach_by_number() -> None:
        number = Path(node).stat().st_rdev
        numbers = os.major(number), os.minor(number)
        made.append(module.attach(numbers, role=Role.SNAPSHOT, granularity=4096, single=True))

    def attach_hooked() -> None:
        attach()

    def check_and_detach() -> None:
        write(node, MIB, b"x" * 4096)
        assert made[-1].changed()[32] & 1, "attached, and the write went unseen"
        made.pop().detach()

    def detach() -> None:
        made[-1].detach()

    def attach_again() -> None:
        made.pop()
        attach()

    with linear() as node:
        inject.every_site(attach, check_and_detach)
        inject.every_site(attach_by_number, check_and_detach)
        with tracked(node):
            inject.every_site(attach_hooked, check_and_detach)
        attach()
        inject.every_site(detach, attach_again)
        detach()


def using(inject: Injector) -> None:
    """Let each call on a tracker, and on the module, fail in every place."""
    from fixtures import linear, module, tracked

    def switch() -> None:
        module.switch([tracker], running=True)

    def clear() -> None:
        tracker.clear()

    def settle() -> None:
        if tracker.status().frozen:  # switched, and the answer could not be given any more
            clear()

    def bits() -> None:
        tracker.changed()

    def frozen_bits() -> None:
        tracker.discarded(FROZEN)

    def status() -> None:
        tracker.status()

    def info() -> None:
        module.info()

    def ring() -> None:
        module.ring(4096)

    def opening() -> None:
        os.close(os.open(uapi.DEVICE, os.O_RDWR))

    def polling() -> None:
        select.select([module.fd], [], [], 0)

    def mapping() -> None:
        size = told.tails_bytes
        mmap.mmap(module.fd, size, mmap.MAP_SHARED, offset=uapi.MAP_TAILS).close()

    with linear() as node, tracked(node) as tracker:
        inject.every_site(switch, clear, settle=settle)
        switch()
        inject.every_site(frozen_bits)
        inject.every_site(clear)
        for call in (bits, status, info, opening, polling):
            inject.every_site(call)
    inject.every_site(ring)
    told = module.info()
    inject.every_site(mapping)


def sealing(inject: Injector) -> None:
    """Let sealing, and going on where a sealed tracker ended, fail in every place."""
    from fixtures import linear, module

    def attach(generation: bytes | None = None) -> Tracker:
        return module.attach(node, role=Role.PHYSICAL, granularity=4096, generation=generation)

    def seal() -> None:
        made[0].seal()

    def attach_again() -> None:
        made.pop().detach()
        made.append(attach())

    def go_on() -> None:
        made.append(attach(generation))

    def load() -> None:
        made[0].load_part(Kind.CHANGED, 0, changed)

    def stop() -> None:
        made.pop().detach()

    def start_again() -> None:
        assert made[0].changed() == changed
        made[0].load_part(Kind.DISCARDED, 0, discarded)
        assert not made[0].status().faults
        stop()
        go_on()

    with linear() as node:
        made = [attach()]
        inject.every_site(seal, attach_again)
        write(node, 8192, b"x" * 4096)
        seal()
        generation = made[0].status().generation
        changed, discarded = made[0].changed(), made[0].discarded()
        assert any(changed)
        stop()
        inject.every_site(go_on, stop)
        go_on()
        inject.every_site(load, start_again)
        stop()


# ---- at random -------------------------------------------------------------------


def at_random(seconds: float) -> None:
    """Attach, switch and detach in three processes that lack memory, and write in one."""
    from fixtures import linear, module

    def live(node: str, seed: int) -> None:
        pick = random.Random(seed)
        end = time.monotonic() + seconds
        Path("/proc/self/make-it-fail").write_text("1")
        while time.monotonic() < end:
            with contextlib.suppress(OSError, MemoryError, Refused):
                tracker = module.attach(node, role=Role.PHYSICAL, granularity=512)
                for _ in range(pick.randrange(4)):
                    with contextlib.suppress(OSError, MemoryError, Refused):
                        write(node, 4096 * pick.randrange(1000), b"x" * 4096)
                        module.switch([tracker], running=True)
                        tracker.clear()
                tracker.detach()

    with linear() as node, failing(5):
        children = []
        for seed in range(3):
            child = os.fork()
            if not child:
                status = 1
                try:
                    live(node, seed)
                    status = 0
                finally:
                    os._exit(status)
            children.append(child)
        ended = [os.waitpid(child, 0)[1] for child in children]
        print(f"cbtlab: at random: {ended}", flush=True)
        for state in list(module.trackers()):  # what they could not detach any more
            module.tracker(state.tracker).detach()
    module.close()


def main() -> None:
    prepare()
    inject = Injector()
    insert_and_remove(inject)
    attaching(inject)
    using(inject)
    sealing(inject)
    at_random(10)
    subprocess.run(["/lab/busybox", "rmmod", "cbt"], check=True)
    Path("/out/injected.json").write_text(json.dumps(inject.counts, indent=1))


if __name__ == "__main__":
    main()
