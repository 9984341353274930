"""restorable: each file system's own checker is asked, and finds damage that is there."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from factory import PATH

from cbtlab.checks import restorable as check

MIB = 1 << 20
# Kind, size, what makes it, and a place whose bytes are then not what they must be.
MADE: dict[str, tuple[int, tuple[str, ...], int]] = {
    "ext4": (8, ("mkfs.ext4", "-q", "-F"), 1024 + 12),  # the count of free blocks
    "fat32": (40, ("mkfs.vfat", "-F", "32", "-s", "1"), 32 * 512 + 40),  # one of two tables
    "exfat": (8, ("mkfs.exfat",), 0x70),  # the boot sector, which has a checksum
    "ntfs": (8, ("mkntfs", "-F", "-Q", "-q"), 3),  # the boot sector
    "xfs": (32, ("mkfs.xfs", "-q", "--unsupported"), 512),  # the first AGF
    "btrfs": (128, ("mkfs.btrfs", "-q"), 0x10000 + 80),  # the superblock
}


@pytest.mark.parametrize("kind", MADE)
def test_a_clean_volume_is_clean_and_a_damaged_one_is_not(kind: str, tmp_path: Path) -> None:
    size, words, place = MADE[kind]
    path = tmp_path / "R"
    with path.open("wb") as out:
        out.truncate(size * MIB)
    program = shutil.which(words[0], path=PATH)
    if program is None:
        pytest.skip(f"{words[0]} is not installed")
    subprocess.run([program, *words[1:], str(path)], check=True, capture_output=True)
    told: list[str] = []
    before = path.read_bytes()
    assert asked(kind, path, told, []) is True, told
    assert path.read_bytes() == before, "the checker changed what it was to look at"
    with path.open("r+b") as file:
        file.seek(place)
        file.write(b"\xa5\x5a\xa5\x5a")
    evidence: list[dict[str, Any]] = []
    assert asked(kind, path, told, evidence) is False
    assert "finds faults in R_k" in told[-1]
    assert evidence and evidence[0]["link"] == "0000.qcow2"


def asked(kind: str, path: Path, told: list[str], evidence: list[dict[str, Any]]) -> bool | None:
    module = sys.modules[check.__module__]
    backup = SimpleNamespace(
        after=SimpleNamespace(fs=kind), restored_path=path, link_name="0000.qcow2"
    )
    answer: bool | None = module._file_system(backup, told, evidence)  # type: ignore[attr-defined]
    return answer
