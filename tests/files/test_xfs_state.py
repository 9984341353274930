"""An XFS log that must be replayed is refused, and everything else that cannot be mapped."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import ext_images as ext
import pytest
import xfs_images as xfs

from cbtlab.errors import InputError, NotAtRest
from cbtlab.files import VolumeMap, map_volume
from cbtlab.images import open_image

pytestmark = xfs.needs_xfsprogs


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("xfs")
    return xfs.make(folder / "made.img", 32 * xfs.MIB, "-m", "rmapbt=1")


@pytest.fixture()
def image(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(made, tmp_path / "a.img"))


def mapped(path: Path) -> VolumeMap:
    with open_image(path) as image:
        return map_volume(image)


def refusal(path: Path, kind: type[InputError] = InputError) -> str:
    with pytest.raises(kind) as caught:
        mapped(path)
    assert type(caught.value) is kind
    assert "\n" not in str(caught.value)
    return str(caught.value)


def log_of(path: Path) -> tuple[str, int]:
    """What xfs_logprint finds: the log's state, and its head."""
    done = subprocess.run(["xfs_logprint", "-t", path], capture_output=True, text=True, check=False)
    found = re.search(r"log tail: \d+ head: (\d+) state: <(CLEAN|DIRTY)>", done.stdout)
    assert found, done.stdout + done.stderr
    return found[2], int(found[1])


def is_clean(path: Path) -> bool:
    return log_of(path)[0] == "CLEAN"


def write(root: Path, name: str) -> None:
    with (root / name).open("wb") as file:
        file.write(b"x" * 5000)
        os.fsync(file.fileno())


def churn(root: Path) -> None:
    """Make the log grow by some thousand sectors."""
    paths = [root / f"{number}" for number in range(1500)]
    for path in paths:
        if not path.exists():
            os.mknod(path)
    descriptor = os.open(paths[-1], os.O_RDONLY)
    for _ in range(4):
        for path in paths:
            path.chmod(path.stat().st_mode ^ 0o100)
        os.fsync(descriptor)
    os.close(descriptor)


@pytest.mark.root
def test_a_copy_of_a_mounted_volume_until_its_log_is_replayed(image: Path) -> None:
    dirty = image.with_name("dirty.img")
    with ext.mounted(image) as root:
        write(root, "file")
        shutil.copy(image, dirty)
        assert "holds changes" in refusal(dirty, NotAtRest)
        assert "nouuid" in refusal(dirty, NotAtRest)
        assert not is_clean(dirty)
        with ext.mounted(dirty, "-o", "nouuid"):
            pass
    assert is_clean(image) and is_clean(dirty)
    one, two = mapped(image), mapped(dirty)
    assert one.names["path"].tolist() == two.names["path"].tolist()
    assert "/file" in set(one.names["path"])
    inode = int(two.names.set_index("path").loc["/file", "inode"])
    with open_image(dirty) as opened:
        assert map_volume(opened).read_file(inode) == b"x" * 5000


@pytest.mark.root
def test_a_frozen_volume_needs_a_replay(image: Path) -> None:
    frozen = image.with_name("frozen.img")
    with ext.mounted(image) as root:
        write(root, "file")
        ext.run("fsfreeze", "-f", str(root))
        shutil.copy(image, frozen)
        ext.run("fsfreeze", "-u", str(root))
    assert not is_clean(frozen)
    assert "frozen" in refusal(frozen, NotAtRest)


@pytest.mark.root
@pytest.mark.parametrize("options", ["-l size=4m", "-l size=4m,su=32k"])
def test_the_log_is_clean_wherever_its_head_stands(tmp_path: Path, options: str) -> None:
    path = xfs.make(tmp_path / "a.img", 32 * xfs.MIB, *options.split(), "-m", "reflink=0")
    heads = []
    for number in range(4):
        with ext.mounted(path) as root:
            churn(root)
            write(root, f"file-{number}")
            copy = Path(shutil.copy(path, tmp_path / "copy.img"))
        assert log_of(copy)[0] == "DIRTY"
        refusal(copy, NotAtRest)
        state, head = log_of(path)
        assert state == "CLEAN"
        assert f"/file-{number}" in set(mapped(path).names["path"])
        heads.append(head)
    assert heads != sorted(heads)  # the log was gone through more than once


def test_a_new_file_system_and_one_whose_log_is_blank(image: Path) -> None:
    assert is_clean(image)
    assert mapped(image).notes == []
    assert mapped(image).names["path"].tolist() == ["/"]


def test_marks_and_devices(image: Path) -> None:
    for field, value, kind, told in (
        ("features_incompat", "0x10", NotAtRest, "repair"),
        ("inprogress", "1", InputError, "mkfs.xfs"),
        ("logstart", "0", InputError, "another device"),
        ("rblocks", "100", InputError, "realtime"),
        ("features_incompat", "0x101", InputError, "metadir"),
        ("features_incompat", "0x201", InputError, "zoned"),
        ("features_incompat", "0x80000001", InputError, "incompat 0x80000000"),
        ("features_ro_compat", "0x10", InputError, "ro_compat 0x10"),
        ("versionnum", "0xb4a6", InputError, "version 6"),
        ("dblocks", "8193", InputError, "cut short"),
        ("agblocks", "2000", InputError, "impossible"),
        ("agcount", "5", InputError, "impossible"),
        ("inodesize", "4096", InputError, "impossible"),
        ("rootino", "129", InputError, "root"),
    ):
        copy = Path(shutil.copy(image, image.with_name("copy.img")))
        xfs.xfs_db(copy, "sb 0", f"write -d {field} {value}", write=True)
        assert told in refusal(copy, kind), field


def test_an_image_that_was_cut_short(image: Path) -> None:
    os.truncate(image, 31 * xfs.MIB)
    assert "cut short" in refusal(image)


def test_flipped_bytes_in_every_structure_of_the_groups(image: Path) -> None:
    good = image.read_bytes()
    roots = {
        name: xfs.field(image, where, name)
        for where, name in (
            ("agf 0", "bnoroot"),
            ("agf 0", "cntroot"),
            ("agf 0", "rmaproot"),
            ("agf 0", "refcntroot"),
            ("agi 0", "root"),
            ("agi 0", "free_root"),
        )
    }
    places = {f"sector {n}": n * 512 for n in range(4)}
    places |= {name: root * 4096 for name, root in roots.items()}
    for name, place in places.items():
        for at in (0, 5, 20, 45, 100, 217):
            data = bytearray(good)
            data[place + at] ^= 0x55
            with pytest.raises(InputError) as caught:
                map_volume(xfs.Memory(data))
            assert "\n" not in str(caught.value), (name, at)
