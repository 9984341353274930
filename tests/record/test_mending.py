"""A snapshot's file system is brought to rest: the marks are other programs' own."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cbtlab.lab import guest, initramfs
from cbtlab.lab.file_systems import FILE_SYSTEMS
from cbtlab.record import mending
from cbtlab.record.mending import NotMended, faults, mend

PATH = os.pathsep.join([os.environ.get("PATH", ""), "/sbin", "/usr/sbin"])
MIB = 1 << 20


def run(*words: object) -> str:
    """Run a program; skip where it is missing."""
    program = shutil.which(str(words[0]), path=PATH)
    if program is None:
        pytest.skip(f"{words[0]} is not installed")
    done = subprocess.run(
        [program, *map(str, words[1:])], check=True, capture_output=True, text=True
    )
    return done.stdout + done.stderr


def made(path: Path, size: int, *words: object) -> Path:
    with path.open("wb") as out:
        out.truncate(size)
    run(*words, path)
    return path


def change(path: Path, at: int, value: int) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        file.write(bytes([value]))


# Where a mounted volume is marked: fatgen103 (the table), Linux' msdos_fs.h (the boot sector).
@pytest.mark.parametrize(
    ("bits", "size", "boot", "table"),
    [(12, 2 * MIB, 0x25, None), (16, 16 * MIB, 0x25, 3), (32, 40 * MIB, 0x41, 7)],
)
def test_fat_is_mended(bits: int, size: int, boot: int, table: int | None, tmp_path: Path) -> None:
    path = made(tmp_path / "fat", size, "mkfs.vfat", "-F", bits, "-s", 1)
    assert faults(str(path), "vfat") == mend(str(path), tmp_path, "vfat") == []
    clean = path.read_bytes()
    change(path, boot, 1)
    assert mend(str(path), tmp_path, "vfat") == ["its boot sector marks it dirty"]
    assert faults(str(path), "vfat") == []
    if table is not None:
        reserved = int.from_bytes(clean[14:16], "little") * 512
        change(path, reserved + table, 0x7F if bits == 16 else 0x07)
        assert faults(str(path), "vfat") == ["its table marks it dirty"]
    assert path.read_bytes()[boot] == clean[boot]


def test_exfat_is_mended(tmp_path: Path) -> None:
    path = made(tmp_path / "exfat", 8 * MIB, "mkfs.exfat")
    assert faults(str(path), "exfat") == []
    clean = path.read_bytes()
    change(path, 106, 2)
    assert mend(str(path), tmp_path, "exfat") == ["its boot sector marks it dirty"]
    assert path.read_bytes() == clean


def test_ntfs_is_mended(tmp_path: Path) -> None:
    path = made(tmp_path / "ntfs", 8 * MIB, "mkntfs", "-F", "-Q", "-q")
    assert faults(str(path), "ntfs-3g") == faults(str(path), "ntfs3") == []
    run("ntfsfix", path)  # it asks for a check at the next mount
    assert mend(str(path), tmp_path, "ntfs-3g") == ["its volume record marks it dirty"]
    assert faults(str(path), "ntfs-3g") == []


def test_what_cannot_be_mended_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = made(tmp_path / "fat", 2 * MIB, "mkfs.vfat", "-F", 12)
    change(path, 0x25, 1)
    with monkeypatch.context() as patched:
        patched.setattr(mending, "_PLACES", "")
        with pytest.raises(NotMended, match=r"fsck\.vfat is missing; install dosfstools"):
            mend(str(path), tmp_path, "vfat")
    assert faults(str(path), "vfat"), "nothing was written"
    broken = tmp_path / "bin" / "fsck.vfat"
    broken.parent.mkdir()
    broken.write_text("#!/bin/sh\necho it is beyond repair\nexit 4\n")
    broken.chmod(0o755)
    monkeypatch.setattr(mending, "_PLACES", str(broken.parent))
    with pytest.raises(NotMended, match=r"cannot be mended .*it is beyond repair"):
        mend(str(path), tmp_path, "vfat")


@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs", "vfat", "exfat", "ntfs3", "other"])
def test_what_is_no_file_system_has_no_marks(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "noise"
    path.write_bytes(os.urandom(1 << 18))
    assert mend(str(path), tmp_path, kind) == []


@contextmanager
def attached(path: Path) -> Iterator[str]:
    device = run("losetup", "--find", "--show", path).strip()
    try:
        yield device
    finally:
        run("losetup", "--detach", device)


@contextmanager
def written(path: Path, kind: str, place: Path) -> Iterator[None]:
    """Mount, write a file with fsync, and be in the middle of it."""
    with attached(path) as device:
        place.mkdir(exist_ok=True)
        run("mount", "-t", kind, device, place)
        try:
            with (place / "file").open("wb") as out:
                out.write(b"content" * 2000)
                out.flush()
                os.fsync(out.fileno())
                yield
        finally:
            run("umount", place)


@pytest.mark.root
@pytest.mark.parametrize(
    ("kind", "size", "words", "told"),
    [
        ("ext4", 16, ("mkfs.ext4", "-q", "-F"), "its journal is to be replayed"),
        ("xfs", 32, ("mkfs.xfs", "-q", "--unsupported"), "its log is to be replayed"),
        ("btrfs", 128, ("mkfs.btrfs", "-q"), "its log tree is to be replayed"),
    ],
)
def test_a_copy_of_a_mounted_volume_is_mended_by_its_replay(
    kind: str, size: int, words: tuple[str, ...], told: str, tmp_path: Path
) -> None:
    path = made(tmp_path / "volume", size * MIB, *words)
    copy = tmp_path / "copy"
    with written(path, kind, tmp_path / "place"):
        run("cp", "--sparse=always", path, copy)
    assert faults(str(path), kind) == [], "it was unmounted"
    # The twin's UUID is mounted nowhere any more.
    with attached(copy) as device:
        assert faults(device, kind) == [told]
        assert mend(device, tmp_path / "place", kind) == [told]
        assert faults(device, kind) == []
        run("mount", "-t", kind, "-o", "ro", device, tmp_path / "place")
        try:
            assert (tmp_path / "place" / "file").read_bytes() == b"content" * 2000
        finally:
            run("umount", tmp_path / "place")


@pytest.mark.root
def test_a_frozen_xfs_is_not_at_rest(tmp_path: Path) -> None:
    """The kernel leaves a transaction in the log on purpose; xfs_repair says so too."""
    path = made(tmp_path / "volume", 32 * MIB, "mkfs.xfs", "-q", "--unsupported")
    place, copy = tmp_path / "place", tmp_path / "copy"
    with written(path, "xfs", place):
        run("fsfreeze", "--freeze", place)
        try:
            run("cp", "--sparse=always", path, copy)
        finally:
            run("fsfreeze", "--unfreeze", place)
    assert faults(str(copy), "xfs") == ["its log is to be replayed"]
    done = subprocess.run(
        [shutil.which("xfs_repair", path=PATH) or "xfs_repair", "-n", "-f", str(copy)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "valuable metadata changes in a log" in done.stdout + done.stderr


@pytest.mark.vm
def test_the_kernels_ntfs_replays_and_the_mark_it_leaves_is_cleared(tmp_path: Path) -> None:
    """ntfs3 mounts a dirty volume only by force, and leaves the mark that it found."""
    path = made(tmp_path / "ntfs", 8 * MIB, "mkntfs", "-F", "-Q", "-q")
    run("ntfsfix", path)
    words = ["its volume record marks it dirty"]
    assert faults(str(path), "ntfs3") == words
    program = (
        "from cbtlab.record.mending import faults, mend\n"
        "from cbtlab.record.mounted import mounted\n"
        "node = '/dev/lab/data'\n"
        f"assert mend(node, '/mnt', 'ntfs3') == {words}\n"
        "assert mend(node, '/mnt', 'ntfs3') == []\n"
        "with mounted(node, '/mnt', 'ntfs3') as root:\n"
        "    (root / 'file').write_text('written')\n"
    )
    guest.boot(
        "6.12",
        "exec python3.11 /tests/mends.py",
        files={"tests/mends.py": program},
        disks={"data": path},
        modules=(*initramfs.MODULES, *FILE_SYSTEMS["ntfs3"].modules),
        packages=FILE_SYSTEMS["ntfs3"].packages,
        module=False,
        work=tmp_path / "work",
    ).check()
    assert faults(str(path), "ntfs3") == []
    assert "written" in run("ntfscat", path, "file")
