"""Run in a guest: is what power cuts left on disks the truth, or said to be unclean?

    crash_cuts.py DISK...

Each disk, by its serial number, is one that ``crash_rounds.py`` used until its
power was cut.
"""

from __future__ import annotations

import sys

from crash_disk import Disk, cbtctl, tell, wait_for_disk


def main() -> None:
    """Tell the state of each disk, and judge what is said to be clean."""
    for name in sys.argv[1:]:
        disk = Disk(wait_for_disk(name), name)
        if not disk.made():
            tell("cut", disk=name, state="unmade")
            continue
        disk.open()
        told = disk.start()
        figures = disk.judge(told) if told["state"] == "clean" else {}
        tell("cut", disk=name, state=told["state"], **figures, reason=told["reason"])
        cbtctl("detach", told["id"])
        disk.close()


if __name__ == "__main__":
    main()
