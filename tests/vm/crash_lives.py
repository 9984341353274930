"""Guests that are killed while they track, and go on with the same disk: is the state right?

A guest goes round (start, write, switch, stop: ``guest/crash_rounds.py``) and
tells each step.  QEMU is killed at a random moment of a step, and the next life
begins on the same disk.  Right is: clean where the stop had ended, unclean where
the volume was tracked, either in between; and a clean one misses no block.
"""

from __future__ import annotations

import os
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from programs import GUEST

from cbtlab.lab import guest
from cbtlab.lab.qemu import GuestError

DISK_SIZE = 2089 << 20  # guest/crash_disk.py: SIZE
# About how long a step lasts, in seconds: the kill falls somewhere in it, or a little later.
STEPS = {
    "starting": 0.2,
    "started": 0.3,
    "judged": 0.1,
    "switching": 0.8,
    "writing": 0.3,
    "unmounting": 0.2,
    "stopping": 0.5,
    "stopped": 0.2,
}
# In which step to kill a guest, after how many orderly stops.
Aim = tuple[str, int]
_BOOTS = 3
_PYTHON = "PYTHONPATH=/lab/python:/tests python3.11 -B /tests/"


@dataclass(frozen=True)
class Step:
    """A line that the guest told: its first word, and the ``name=value`` after it."""

    name: str
    figures: dict[str, str]

    @classmethod
    def parsed(cls, line: str) -> Step:
        """Return the step of a line of the console."""
        name, *words = line.split()
        return cls(name, dict(word.split("=", 1) for word in words if "=" in word))

    def wrong(self) -> str:
        """Return what is wrong with a state that is said to be clean, or nothing."""
        if self.figures.get("reference") == "other":
            return "in an interval that had not begun"
        missed = self.figures.get("missed", "0")
        return "" if missed == "0" else f"{missed} blocks missed"


@dataclass
class Life:
    """What one guest told until it was killed, or ended by itself."""

    steps: list[Step] = field(default_factory=list)

    def __str__(self) -> str:
        words = []
        for step in self.steps:
            state = step.figures.get("state")
            words.append(f"{step.name}={state}" if state else step.name)
        return " ".join(words)


# ---- what must be true ----


def faults(lives: Sequence[Life]) -> list[str]:
    """Return a sentence for each start that was wrong, through all lives of one disk."""
    found, must, starting = [], "new", False
    for number, life in enumerate(lives, 1):
        for step in life.steps:
            if step.name == "starting":
                if starting and must != "unclean":
                    must = ""  # the start before was cut off: it may have removed the mark, or not
                starting = True
            elif step.name == "started":
                state = step.figures["state"]
                if must and state != must:
                    found.append(f"life {number}: {state}, must be {must}")
                must, starting = "unclean", False
            elif step.name == "judged" and (wrong := step.wrong()):
                found.append(f"life {number}: clean, {wrong}")
            elif step.name == "stopping":
                must = ""
            elif step.name == "stopped":
                must = "clean"
    return found


def figures(lives: Sequence[Life]) -> dict[str, Any]:
    """Return what was seen over all lives."""
    steps = [step for life in lives for step in life.steps]
    last = Counter(life.steps[-1].name if life.steps else "boot" for life in lives[:-1])
    first = [next((s for s in life.steps if s.name == "started"), None) for life in lives[1:]]
    states = Counter(step.figures["state"] for step in first if step)
    judged = [step.figures for step in steps if step.name == "judged"]
    return {
        "kills": len(lives) - 1,
        "killed_in": dict(sorted(last.items())),
        "states_after": dict(sorted(states.items())),
        "orderly_stops": sum(step.name == "stopped" for step in steps),
        "clean_judged": len(judged),
        **{name: sum(int(f[name]) for f in judged) for name in ("changed", "marked", "missed")},
    }


# ---- guests that are killed ----


def aims(count: int, rng: Random) -> list[Aim]:
    """Return where to kill ``count`` guests, each in its first to third round."""
    return [(rng.choice(list(STEPS)), rng.choice((0, 1, 1, 2))) for _ in range(count)]


class Killer:
    """Kills the guest's QEMU in the step that is aimed at, at a random moment of it."""

    def __init__(self, aim: Aim, rng: Random, pid_file: Path) -> None:
        self.life = Life()
        self._pid_file = pid_file
        self._step, self._stops = aim
        self._delay = rng.uniform(0, STEPS[self._step])
        self._timer: threading.Timer | None = None

    def __call__(self, step: Step) -> None:
        """Take a step that the guest told."""
        self.life.steps.append(step)
        if self._timer:
            return
        stops = sum(step.name == "stopped" for step in self.life.steps)
        # A round need not have the step: then the next one, or the round after that ends it.
        if (step.name == self._step and stops >= self._stops) or stops > self._stops + 1:
            self._timer = threading.Timer(self._delay, self._kill)
            self._timer.start()

    def _kill(self) -> None:
        os.kill(int(self._pid_file.read_text()), signal.SIGKILL)


def run(
    kernel: str, program: str, work: Path, on_step: Callable[[Step], None], **options: Any
) -> guest.GuestResult:
    """Run one of the programs in ``guest/`` after inserting the module; ``on_step`` gets its steps.

    Emulated, a kernel falls over now and then while it boots (QEMU 7.2: "int3" while it patches
    its own text).  Until its first process runs nothing of ours is there, and it is booted again.
    """
    boots = 0
    while True:
        boots += 1
        lines: list[str] = []

        def told(line: str, lines: list[str] = lines) -> None:
            lines.append(line)
            if len(lines) > 1:  # the first is guest.boot's own
                on_step(Step.parsed(line))

        try:
            return guest.boot(
                kernel,
                f"insmod /lab/cbt.ko && {_PYTHON}{program}",
                files={"tests": GUEST},
                work=work,
                on_phase=told,
                **options,
            )
        except GuestError:
            if lines or boots == _BOOTS:
                raise


def killed(kernel: str, disk: Path, aim: Aim, rng: Random, work: Path) -> Life:
    """Let a guest go round on ``disk`` until it is killed.

    GuestError when it ends by itself, or its kernel complained.
    """
    killer = Killer(aim, rng, work / "pid")
    try:
        done = run(
            kernel,
            f"crash_rounds.py {rng.randrange(1 << 30)}",
            work,
            killer,
            disks={"disk": disk},
            timeout=240,
            options=["-pidfile", str(work / "pid")],
        )
    except GuestError as error:
        if "without its closing line;" not in str(error):
            raise
        return killer.life
    done.check()
    raise GuestError(done.console, "the guest ended by itself", "its console is in that file")


def live(kernel: str, aimed: Sequence[Aim], rng: Random, work: Path) -> Iterator[Life]:
    """Yield a life that is killed for each of ``aimed``, and one more that ends in order."""
    disk = work / "disk"
    with disk.open("wb") as out:
        out.truncate(DISK_SIZE)
    for aim in aimed:
        yield killed(kernel, disk, aim, rng, work)
    life = Life()
    run(
        kernel,
        f"crash_rounds.py {rng.randrange(1 << 30)} 1",
        work,
        life.steps.append,
        disks={"disk": disk},
        timeout=240,
    ).check()
    yield life
