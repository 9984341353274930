"""How cbtctl answers: the same as the calls, and no loss where something fails.

Called by ``behaviour.py`` in a guest.  Stop and start are in ``crash_states.py``.
"""

from __future__ import annotations

import contextlib
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import volumes
from fixtures import MIB, PLACE, events, linear, mapper, module

from cbtlab.record.device_mapper import Target
from cbtlab.record.kernel_module import Role
from cbtlab.record.mounted import mount, unmount

CBTCTL = "/lab/cbtctl"
BITS = "/tmp/bits"
SMALL = Path("/tmp/small")


def run(*words: str, status: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([CBTCTL, *words], capture_output=True, text=True)
    assert done.returncode == status, (words, done)
    return done


def cbtctl(*words: str, status: int = 0) -> str:
    """Run it and return what it prints."""
    return run(*words, status=status).stdout


def refusal(*words: str) -> str:
    """Run it, which must refuse in one line, and return that."""
    done = run(*words, status=1)
    assert not done.stdout and done.stderr.count("\n") == 1, done
    return done.stderr


@contextlib.contextmanager
def attached(node: str, *options: str) -> Iterator[str]:
    """Attach for the length of a ``with``; yield the id."""
    number = cbtctl("attach", node, "physical", "4096", *options).strip()
    yield number
    cbtctl("detach", number)


def write(node: str, *blocks: int) -> None:
    for block in blocks:
        volumes.write(node, 4096 * block, b"x" * 4096)


def figures(line: str) -> dict[str, int]:
    """Take ``name=number`` apart."""
    return {name: int(value) for name, value in (word.split("=") for word in line.split())}


def following(path: str) -> subprocess.Popen[str]:
    """Start to save the events, and wait until the header is there."""
    words = [CBTCTL, "events", path, "--follow"]
    made = subprocess.Popen(words, text=True, stdout=-1, stderr=-1)
    wait_for(path, 64)
    return made


def wait_for(path: str, size: int) -> None:
    for _ in range(200):
        if Path(path).exists() and Path(path).stat().st_size >= size:
            return
        time.sleep(0.05)
    raise AssertionError(f"{path} has not grown to {size} bytes")


def cbtctl_does_the_same() -> None:
    with linear() as node:
        number = cbtctl("attach", node, "snapshot", "8192", "--interval", "3").strip()
        tracker = module.tracker(int(number))
        follower = subprocess.Popen(["/lab/cbtctl", "events", "/out/cbtctl.native", "--follow"])
        volumes.write(node, 8192, b"x" * 4096)
        cbtctl("switch", number, status=1)
        mapper.suspend("disk")
        assert "suspended=1" in cbtctl("switch", number)
        mapper.resume("disk")
        volumes.write(node, 5 * 8192, b"x" * 4096)
        assert f"tracker id={number} name=dm-" in cbtctl("status")
        for which, kind, block in ("frozen", "changed", 1), ("active", "changed", 5):
            told = cbtctl("bits", number, which, kind, BITS)
            assert told == f"interval={3 if which == 'frozen' else 4} bytes=256\n"
            assert volumes.marked(Path(BITS).read_bytes()) == {block}
        cbtctl("clear", number)
        assert tracker.status().role == Role.SNAPSHOT
        follower.terminate()
        assert follower.wait() == 0
        cbtctl("detach", number)
        cbtctl("detach", number, status=1)
        cbtctl("ring", "1000")
        for words in ((), ("attach",), ("switch",), ("bits", "x", "active", "changed", "f")):
            cbtctl(*words, status=2)


def trackers_that_come_and_go_are_named_or_told() -> None:
    """The host reads the streams."""
    events()
    with linear() as node:
        with attached(node) as gone:
            write(node, 1, 2)
        told = run("events", "/out/gone.native")
        assert f"does not tell the volume of tracker {gone}" in told.stderr
        assert figures(told.stdout)["events"] == 2
        with attached(node) as gone:
            write(node, 3)
        with attached(node):
            write(node, 4)
            assert f"tracker {gone}" in run("events", "/out/mixed.native").stderr
        for number in signal.SIGTERM, signal.SIGINT, signal.SIGHUP:
            path = f"/out/late-{number.name}.native"
            follower = following(path)
            with attached(node):
                write(node, 5, 6)
                wait_for(path, 64 + 3 * 80)
            follower.send_signal(number)
            assert follower.wait() == 0
            out, err = follower.communicate()
            assert (figures(out)["events"], figures(out)["lost"], err) == (2, 0, "")


def a_refused_bitmap_leaves_the_file() -> None:
    saved = Path("/tmp/saved")
    with linear() as node, attached(node) as number:
        write(node, 3)
        cbtctl("bits", number, "active", "changed", str(saved))
        before = saved.read_bytes()
        assert volumes.marked(before) == {3}
        said = refusal("bits", number, "frozen", "changed", str(saved))
        assert said == f"cbtctl: tracker {number}: no frozen bitmap: never switched, or cleared\n"
        refusal("bits", "60000", "active", "changed", str(saved))
        with small(2):
            place = SMALL / "saved"
            place.write_bytes(before)
            (SMALL / "fill").write_bytes(bytes(4096))
            assert "No space" in refusal("bits", number, "active", "changed", str(place))
            assert place.read_bytes() == before
            assert {path.name for path in SMALL.iterdir()} == {"saved", "fill"}
        through = subprocess.run(
            [CBTCTL, "bits", number, "active", "changed", "/proc/self/fd/1"], stdout=-1, check=True
        )
        assert through.stdout.startswith(before)


@contextlib.contextmanager
def small(pages: int) -> Iterator[None]:
    """Mount a file system of a few pages."""
    SMALL.mkdir(exist_ok=True)
    words = ["mount", "-t", "tmpfs", "-o", f"size={4 * pages}k", "tmpfs", str(SMALL)]
    subprocess.run(["/lab/busybox", *words], check=True)
    yield
    unmount(SMALL)


def a_full_disk_loses_no_event() -> None:
    events()
    with linear() as node, attached(node):
        write(node, *range(60))
        with small(1):
            assert "No space" in refusal("events", str(SMALL / "events"))
            assert "waits in the rings" in refusal("events", str(SMALL / "events"))
        told = figures(cbtctl("events", "/out/after-full.native"))
        assert (told["events"], told["lost"]) == (60, 0)
        told = figures(cbtctl("events", "/out/empty.native"))
        assert (told["events"], told["lost"]) == (0, 0)
        assert told["first_seq"] == told["next_seq"] > 60


def a_stream_on_its_own_volume_is_refused() -> None:
    with linear() as node:
        above = mapper.create("above", [Target(0, 16 * MIB // 512, "linear", f"{node} 0")]).node
        subprocess.run(["/sbin/mke2fs", "-q", "-F", "-t", "ext4", above], check=True)
        mount(above, PLACE, "ext4")
        log = str(PLACE / "log")
        for tracked in above, node:
            assert "the log" in refusal("attach", tracked, "physical", "4096", "--log", log)
            with attached(tracked):
                assert "it would record" in refusal("events", log)
        assert not Path(log).exists(), "something was made"
        follower = following(log)
        with attached(node) as number:
            write(node, 4000)
            assert follower.wait() == 1
            assert f"lies on the volume of tracker {number}" in follower.communicate()[1]
        unmount(PLACE)
        mapper.remove("above")
    events()


def a_switch_that_waits_says_so() -> None:
    """The line means that a suspend from now on is not missed."""
    with linear() as node, attached(node) as number:
        for _ in range(5):
            words = [CBTCTL, "switch", "--wait", "20000", number]
            waiting = subprocess.Popen(words, text=True, stdout=-1)
            assert waiting.stdout and waiting.stdout.readline() == "waiting\n"
            mapper.suspend("disk")
            time.sleep(0.1)  # a shorter one may be missed: nobody holds it
            mapper.resume("disk")
            rest = waiting.communicate()[0]
            assert waiting.returncode == 0 and "suspended=1" in rest
            cbtctl("clear", number)
        assert module.tracker(int(number)).status().switches == 5
        late = run("switch", "--wait", "50", number, status=1)
        assert late.stdout in ("", "waiting\n")
        assert late.stderr.startswith("cbtctl: switch: nobody"), late
        cbtctl("switch", "--running", "--wait", "50", number, status=2)


BEHAVIOURS = (
    cbtctl_does_the_same,
    trackers_that_come_and_go_are_named_or_told,
    a_refused_bitmap_leaves_the_file,
    a_full_disk_loses_no_event,
    a_stream_on_its_own_volume_is_refused,
    a_switch_that_waits_says_so,
)
