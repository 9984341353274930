"""Deleting excluded files below a folder, whatever stands in the way or changes meanwhile."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
from record import devices

from cbtlab.record import beneath, one_uuid
from cbtlab.record.mounted import delete, mount, mounted, unmount
from cbtlab.rules import Rules


def names(root: Path) -> list[bytes]:
    """Every path below a folder, symlinks not followed."""
    found = []
    for folder, folders, files, _ in os.fwalk(os.fsencode(root)):
        above = os.path.relpath(folder, os.fsencode(root))
        found += [os.path.normpath(above + b"/" + name) for name in [*folders, *files]]
    return sorted(found)


@pytest.fixture()
def outside(tmp_path: Path) -> Path:
    """A folder that no delete may touch."""
    place = tmp_path / "outside"
    (place / "inner").mkdir(parents=True)
    (place / "victim").write_text("kept")
    (place / "inner" / "victim").write_text("kept")
    return place


@pytest.fixture()
def root(tmp_path: Path) -> Path:
    """The mounted snapshot."""
    place = tmp_path / "root"
    place.mkdir()
    return place


def everything(path: str) -> bool:
    return True


def test_only_what_is_excluded_goes(root: Path) -> None:
    (root / "folder").mkdir()
    for name in ("a", "b", "folder/a"):
        (root / name).write_bytes(b"123")
    gone = delete(root, lambda path: path.endswith("a"))
    assert sorted((one.path, one.size) for one in gone) == [("/a", 3), ("/folder/a", 3)]
    assert names(root) == [b"b", b"folder"]


def test_a_folder_that_cannot_be_read_is_an_error(root: Path) -> None:
    (root / "folder").mkdir()
    (root / "file").touch()

    def excluded(path: str) -> bool:
        (root / "folder").rmdir()
        return False

    with pytest.raises(FileNotFoundError):
        delete(root, excluded)


# Names ----------------------------------------------------------------------------------------


def test_names_of_every_kind_go_and_only_these(root: Path) -> None:
    odd = [b"two\nlines", b"\xff\xfe not UTF-8", b"-rf", b"..x", b"...", b" ", b"*", b"x" * 255]
    raw = os.fsencode(root)
    for folder in (b"", b"cache\n\xff/"):
        Path(os.fsdecode(raw + b"/" + folder)).mkdir(exist_ok=True)
        for name in odd:
            Path(os.fsdecode(raw + b"/" + folder + name)).write_bytes(b"x")
    gone = delete(root, Rules([r"cache?\udcff/".encode("ascii").decode("unicode_escape")]))
    assert sorted(os.fsencode(one.path) for one in gone) == sorted(
        b"/cache\n\xff/" + name for name in odd
    )
    assert names(root) == sorted([*odd, b"cache\n\xff"])


def test_a_tree_deeper_than_the_longest_path_goes(root: Path) -> None:
    fd = os.open(root, os.O_RDONLY)
    for _ in range(60):
        os.mkdir("d" * 200, dir_fd=fd)
        below = os.open("d" * 200, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(os.open("deepest", os.O_CREAT | os.O_WRONLY, dir_fd=fd))
    gone = delete(root, everything)
    assert [len(one.path) for one in gone] == [60 * 201 + 8]
    assert not any(os.scandir(fd))
    os.close(fd)


# Ways out -------------------------------------------------------------------------------------


def test_symlinks_go_themselves_and_lead_nowhere(root: Path, outside: Path) -> None:
    (root / "out").symlink_to(outside)
    (root / "up").symlink_to("../outside")
    (root / "loop").symlink_to("loop")
    (root / "one").symlink_to("two")
    (root / "two").symlink_to("one")
    (root / "broken").symlink_to("/nowhere")
    gone = delete(root, everything)
    assert len(gone) == 6 and names(root) == []
    assert names(outside) == [b"inner", b"inner/victim", b"victim"]


@pytest.mark.parametrize(
    ("path", "number"),
    [
        (b"../outside/victim", errno.EXDEV),
        (b"folder/../../outside", errno.EXDEV),
        (b"/etc/hostname", errno.EXDEV),
        (b"link/victim", errno.ELOOP),
        (b"folder/link/victim", errno.ELOOP),
    ],
)
def test_nothing_opens_what_is_not_beneath(
    root: Path, outside: Path, path: bytes, number: int
) -> None:
    (root / "folder").mkdir()
    (root / "link").symlink_to(outside)
    (root / "folder" / "link").symlink_to(outside)
    fd = os.open(root, os.O_RDONLY)
    try:
        with pytest.raises(OSError) as refused:
            beneath.open_beneath(fd, path, os.O_RDONLY)
    finally:
        os.close(fd)
    assert refused.value.errno == number


def test_a_folder_that_becomes_a_symlink_is_not_followed(root: Path, outside: Path) -> None:
    """Swapped after its parent was listed, above a folder that still waits to be entered."""
    (root / "deep" / "inner").mkdir(parents=True)
    (root / "deep" / "file").touch()

    def excluded(path: str) -> bool:
        if path == "deep/file":
            (root / "deep").rename(root / "moved")
            (root / "deep").symlink_to(outside)
        return True

    with pytest.raises(OSError, match="symbolic links") as refused:
        delete(root, excluded)
    assert refused.value.errno == errno.ELOOP
    assert names(outside) == [b"inner", b"inner/victim", b"victim"]


_SWAPPER = """
import ctypes, os, sys
swap, here = ctypes.CDLL(None).renameat2, os.open(sys.argv[1], os.O_RDONLY)
while os.getppid() == int(sys.argv[2]):
    for _ in range(1000):
        swap(here, b"deep", here, b"link", 2)  # RENAME_EXCHANGE
"""


def test_a_race_for_a_way_out_is_never_won(root: Path, outside: Path) -> None:
    """Another program exchanges a folder and a symlink to the outside as fast as it can."""
    (root / "deep" / "inner").mkdir(parents=True)
    (root / "link").symlink_to(outside)
    deep = os.open(root / "deep", os.O_RDONLY)
    inner = os.open(root / "deep" / "inner", os.O_RDONLY)
    words = [sys.executable, "-c", _SWAPPER, str(root), str(os.getpid())]
    refused = 0
    with subprocess.Popen(words) as swapper:
        try:
            for _ in range(2000):
                for folder in (deep, inner):
                    os.close(os.open("victim", os.O_CREAT | os.O_WRONLY, dir_fd=folder))
                try:
                    delete(root, lambda path: path.endswith("victim"))
                except OSError:
                    refused += 1
        finally:
            swapper.kill()
    os.close(deep)
    os.close(inner)
    assert names(outside) == [b"inner", b"inner/victim", b"victim"]
    assert refused, "nothing was ever exchanged in time: this showed nothing"


def test_a_kernel_without_openat2_deletes_nothing(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (root / "file").touch()
    monkeypatch.setattr(beneath, "_SYS_OPENAT2", 9999)
    with pytest.raises(OSError, match=r"no openat2 \(Linux 5.6\)"):
        delete(root, everything)
    assert names(root) == [b"file"]


@pytest.mark.root
def test_a_mount_below_is_refused_before_anything_goes(root: Path, outside: Path) -> None:
    (root / "a file").touch()
    (root / "mnt point").mkdir()
    with devices.bound(outside, root / "mnt point"):
        with pytest.raises(OSError, match="mounted below the snapshot"):
            delete(root, everything)
        assert (root / "a file").exists()
    assert names(outside) == [b"inner", b"inner/victim", b"victim"]


@pytest.mark.root
@pytest.mark.parametrize("place", ["b/inner", "b/file"])
def test_a_mount_that_comes_meanwhile_is_not_crossed(root: Path, outside: Path, place: str) -> None:
    (root / "b" / "inner").mkdir(parents=True)
    (root / "a").touch()
    (root / "b" / "file").touch()
    source = outside / "inner" if place.endswith("inner") else outside / "victim"
    bound: list[object] = []

    def excluded(path: str) -> bool:
        if not bound:
            bound.append(devices.bind(source, root / place))
        return True

    try:
        with pytest.raises(OSError) as refused:
            delete(root, excluded)
    finally:
        devices.unbind(root / place)
    assert refused.value.errno in (errno.EXDEV, errno.EBUSY)
    assert names(outside) == [b"inner", b"inner/victim", b"victim"]


# What is protected ----------------------------------------------------------------------------


@pytest.mark.root
def test_immutable_and_append_only_files_go_and_what_stays_keeps_its_flags(tmp_path: Path) -> None:
    with devices.volume(tmp_path, "ext4") as place:
        (place / "locked").mkdir()
        (place / "kept").write_text("linked")
        for name in ("immutable", "appended", "locked/file"):
            (place / name).write_text("x")
        (place / "linked").hardlink_to(place / "kept")
        devices.run("chattr", "+i", place / "immutable", place / "linked", place / "locked/file")
        devices.run("chattr", "+a", place / "appended")
        devices.run("chattr", "+i", place / "locked")
        gone = delete(place, Rules(["*", "!kept", "!locked/", "!lost+found/"]))
        assert len(gone) == 4
        assert names(place) == [b"kept", b"locked", b"lost+found"]
        flags = devices.run("lsattr", "-d", place / "kept", place / "locked").split("\n")
        assert [line.split()[0].strip("-e") for line in flags if line] == ["i", "i"]
        devices.run("chattr", "-i", place / "kept", place / "locked")


@pytest.mark.root
def test_what_cannot_go_is_told_and_all_else_goes(tmp_path: Path) -> None:
    with devices.volume(tmp_path, "btrfs") as place:
        devices.run("btrfs", "subvolume", "create", place / "sub")
        (place / "sub" / "page").write_text("x")
        devices.run("btrfs", "subvolume", "snapshot", "-r", place / "sub", place / "old")
        (place / "page").write_text("x")
        with pytest.raises(OSError, match=r"an excluded file remains: Read-only.*/old/page"):
            delete(place, Rules(["page"]))
        assert names(place) == [b"old", b"old/page", b"sub"]


# One UUID twice -------------------------------------------------------------------------------


@pytest.mark.root
@pytest.mark.parametrize("kind", ["btrfs", "xfs", "ext4"])
def test_beside_its_volume_the_snapshot_is_what_is_mounted(tmp_path: Path, kind: str) -> None:
    with devices.twins(tmp_path, kind) as (live, device):
        place = tmp_path / "snapshot"
        place.mkdir()
        with mounted(device, place, kind) as root:
            assert [one.path for one in delete(root, Rules(["secret"]))] == ["/secret"]
        assert (live / "secret").read_text() == "live"


@pytest.mark.root
def test_a_kernel_that_cannot_tell_two_btrfs_apart_mounts_neither(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with devices.twins(tmp_path, "btrfs") as (live, device):
        known = tmp_path / "sys"
        for entry in one_uuid._BTRFS.iterdir():
            (known / entry.name).mkdir(parents=True)
        monkeypatch.setattr(one_uuid, "_BTRFS", known)
        place = tmp_path / "snapshot"
        place.mkdir()
        with pytest.raises(OSError, match="is mounted already"), mounted(device, place, "btrfs"):
            pass
        assert not place.is_mount()
        assert (live / "secret").exists()


@pytest.mark.root
@pytest.mark.parametrize("kind", ["btrfs", "ext4"])
def test_another_device_at_the_place_is_refused(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where btrfs takes the volume for the snapshot: the kernel shows the other device."""
    with devices.twins(tmp_path, kind) as (live, device):
        real = devices.device_of(live)
        place = tmp_path / "snapshot"
        place.mkdir()
        monkeypatch.setattr("cbtlab.record.mounted.mount", lambda d, p, k, o: mount(real, p, k, o))
        refused = pytest.raises(OSError, match="not the one that was mounted")
        with refused, mounted(device, place, kind):
            pytest.fail("nothing may be deleted there")
        assert not place.is_mount()


# Streams --------------------------------------------------------------------------------------


@pytest.mark.root
def test_streams_go_alone_or_with_their_file(tmp_path: Path) -> None:
    with devices.volume(tmp_path, "ntfs-3g") as place:
        (place / "folder").mkdir()
        for name in ("kept.exe", "gone.exe", "folder/kept.txt"):
            (place / name).write_text("content")
            os.setxattr(place / name, "user.Zone.Identifier", b"[ZoneTransfer]")
            os.setxattr(place / name, "user.other", b"12345")
        os.setxattr(place / "folder", "user.Zone.Identifier", b"of a folder")
        gone = delete(place, Rules(["*:Zone.Identifier", "*:oth* [size>5]", "gone.exe"]))
        assert sorted(one.path for one in gone) == [
            "/folder/kept.txt:Zone.Identifier",
            "/folder:Zone.Identifier",
            "/gone.exe",
            "/kept.exe:Zone.Identifier",
        ]
        assert os.listxattr(place / "kept.exe") == ["user.other"]
        assert (place / "kept.exe").read_text() == "content"
        with pytest.raises(ValueError, match="no owners by number"):
            delete(place, Rules(["* [owner=0]"]))


def test_unmounting_waits_for_nobody_where_nothing_is_mounted(root: Path) -> None:
    with pytest.raises(OSError):
        unmount(root, patience=0)


def test_the_options_of_a_snapshot() -> None:
    told = one_uuid.options_for
    assert told("xfs", "") == "nouuid"
    assert told("xfs", "ro,nouuid") == "ro,nouuid"
    assert told("btrfs", "compress=zstd") == "compress=zstd,subvolid=5"
    assert told("btrfs", "subvol=@home") == "subvol=@home"
    assert told("vfat", "") == "tz=UTC"
    assert told("ext4", "data=journal") == "data=journal"
