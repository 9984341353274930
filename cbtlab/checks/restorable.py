"""restorable: other people's tools open what was restored, and find it clean."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cbtlab.checks.material import Material
from cbtlab.checks.verdict import EVIDENCE_LIMIT, Verdict, item, verdict

NAME = "restorable"
_PLACES = os.pathsep.join([os.environ.get("PATH", os.defpath), "/sbin", "/usr/sbin"])
_LIMIT = 3600  # seconds; a checker that hangs is a finding


@dataclass(frozen=True)
class _Checker:
    """A program that finds a file system clean by exit status 0, changing nothing."""

    program: str
    options: tuple[str, ...]
    package: str
    banner: str = ""
    """How the lines begin that say nothing of the volume."""


_EXT = _Checker("e2fsck", ("-fn",), "e2fsprogs", "e2fsck 1.")
_FAT = _Checker("fsck.vfat", ("-n",), "dosfstools", "fsck.fat ")
_CHECKERS = {
    **dict.fromkeys(("ext2", "ext3", "ext4"), _EXT),
    **dict.fromkeys(("fat12", "fat16", "fat32"), _FAT),
    "exfat": _Checker("fsck.exfat", ("-n",), "exfatprogs", "exfatprogs version"),
    # Of what it finds, ntfsfix judges little: the boot sector, the mirror of $MFT, the marks.
    "ntfs": _Checker("ntfsfix", ("-n",), "ntfs-3g"),
    "xfs": _Checker("xfs_repair", ("-n", "-f"), "xfsprogs", "Phase "),
    # Every byte of data against its checksum too.
    "btrfs": _Checker(
        "btrfs", ("check", "--readonly", "--check-data-csum"), "btrfs-progs", "Opening filesystem"
    ),
}


def tool(name: str) -> str | None:
    """Return the path of a program, also where only root looks for it."""
    return shutil.which(name, path=_PLACES)


def restorable(m: Material) -> Verdict:
    """The file system's own checker finds R_k clean, and qemu-img reads the chain as we do."""
    if m.unjudged or m.restored_path is None or m.chain is None:
        return verdict(NAME, False if m.fault else None, m.unjudged)
    evidence: list[dict[str, Any]] = []
    words: list[str] = []
    judged = _file_system(m, words, evidence)
    image = _qemu(m.chain / m.link_name, m.restored_path, words, evidence)
    if judged is False or image is False:
        return verdict(NAME, False, "; ".join(words), evidence)
    return verdict(NAME, judged, "; ".join(words))


def _file_system(m: Material, words: list[str], evidence: list[dict[str, Any]]) -> bool | None:
    kind = m.after.fs if m.after is not None else None
    if kind is None:
        words.append("no file system was recognised, so none can be checked")
        return None
    checker = _CHECKERS.get(kind)
    if checker is None:
        words.append(f"no checker for {kind} is known here")
        return None
    program = tool(checker.program)
    if program is None:
        words.append(f"{checker.program} is not on this machine (Debian: {checker.package})")
        return None
    status, lines = _run([program, *checker.options, str(m.restored_path)])
    if status == 0:
        words.append(f"{checker.program} finds R_k clean")
        return True
    words.append(f"{checker.program} finds faults in R_k (exit status {status})")
    told = [line for line in lines if not (checker.banner and line.startswith(checker.banner))]
    evidence += [item(link=m.link_name, note=line) for line in told[:EVIDENCE_LIMIT]]
    return False


def _qemu(
    link: Path, restored: Path, words: list[str], evidence: list[dict[str, Any]]
) -> bool | None:
    program = tool("qemu-img")
    if program is None:
        words.append("qemu-img is not on this machine (Debian: qemu-utils)")
        return None
    compare = ["compare", "-f", "raw", "-F", "qcow2", str(restored), str(link)]
    for command in (["check", "-f", "qcow2", str(link)], compare):
        status, lines = _run([program, *command])
        if status:
            words.append(f"qemu-img {command[0]} finds a fault in {link.name}")
            evidence += [item(link=link.name, note=line) for line in lines[:EVIDENCE_LIMIT]]
            return False
    words.append("qemu-img opens the link and reads the same bytes")
    return True


def _run(command: list[str]) -> tuple[int, list[str]]:
    """Run a checker; return its exit status and the lines of what it said."""
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=_LIMIT,
            check=False,
            env={**os.environ, "LC_ALL": "C"},
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return -1, [f"{Path(command[0]).name}: {error}"]
    text = done.stdout.decode("utf-8", "backslashreplace").replace(command[-1], "R_k")
    lines = [line.strip() for line in text.splitlines()]
    return done.returncode, [line for line in lines if line]
