"""For ``crash_states.py``: the streams that ``cbtctl events`` saves while several CPUs write.

The host reads what is left in ``/out``: numbers that rise, and counts that add up.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time

import volumes
from crash_disk import answer, cbtctl
from crash_volume import detach, start, volume


def write_from(cpu: int, node: str) -> int:
    """Write from one CPU until killed; return the process."""
    child = os.fork()
    if not child:
        os.sched_setaffinity(0, {cpu})
        while True:
            volumes.write(node, 4096 * cpu, b"x" * 4096)
    return child


def streams_rise_and_are_whole() -> None:
    """End a stream while two trackers are written from all CPUs, and another when they rest."""
    cbtctl("ring", "16384")
    with volume() as node:
        trackers = [start(node, "physical", "4096", "--unclean", expected="unclean")]
        trackers.append({"id": cbtctl("attach", node, "physical", "65536").strip()})
        follower = subprocess.Popen(["/lab/cbtctl", "events", "/out/first.native", "--follow"])
        writers = [write_from(cpu, node) for cpu in sorted(os.sched_getaffinity(0))]
        time.sleep(3)
        follower.send_signal(signal.SIGTERM)
        assert follower.wait() == 0
        time.sleep(0.5)
        for writer in writers:
            os.kill(writer, signal.SIGKILL)
            os.waitpid(writer, 0)
        told = answer(cbtctl("events", "/out/rest.native"))
        module = answer(cbtctl("status").splitlines()[0])
        assert told["next_seq"] == module["next_seq"], (told, module)
        lost = int(told["next_seq"]) - int(told["first_seq"]) - int(told["events"])
        assert lost == int(told["lost"]), told
        for tracker in trackers:
            detach(tracker)
