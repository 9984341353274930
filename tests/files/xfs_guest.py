"""In a guest: fills volumes, and keeps what its kernel says of them.  Arguments: their names."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, "/tests")

from xfs_content import Truth, fill

ROOT = Path("/mnt")


def mount(name: str, *options: str) -> None:
    subprocess.run(["mount", "-t", "xfs", *options, f"/dev/lab/{name}", str(ROOT)], check=True)


def main() -> None:
    ROOT.mkdir(exist_ok=True)
    truths = {}
    for name in sys.argv[1:]:
        quota = ["-o", "uquota,pquota"] if "quota" in name else []
        mount(name, *quota)
        fill(ROOT, reflink=False, many=60)
        subprocess.run(["umount", str(ROOT)], check=True)
        mount(name, "-o", "ro,noatime,norecovery")
        truths[name] = Truth(ROOT)
        subprocess.run(["umount", str(ROOT)], check=True)
    Path("/out/truths").write_bytes(pickle.dumps(truths))


main()
