"""The archive that the guest's kernel unpacks, listed by somebody else's cpio."""

from __future__ import annotations

import io
import shutil
import subprocess
from pathlib import Path

import pytest

from cbtlab.errors import InputError
from cbtlab.lab import initramfs
from cbtlab.lab.initramfs import Cpio


def unpacked(data: bytes, to: Path) -> Path:
    if shutil.which("cpio") is None:
        pytest.skip("needs cpio")
    to.mkdir()
    subprocess.run(["cpio", "-idm", "--quiet"], input=data, cwd=to, check=True)
    return to


def test_another_cpio_unpacks_files_folders_links_and_modes(tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "__pycache__").mkdir(parents=True)
    (source / "__pycache__" / "left-out").touch()
    (source / "odd").write_bytes(b"123")
    (source / "odd").chmod(0o640)
    (source / "link").symlink_to("odd")
    out = io.BytesIO()
    cpio = Cpio(out)
    cpio.add_content("lab/words", "text")
    cpio.add_content("/lab/source", source)
    cpio.close()
    root = unpacked(out.getvalue(), tmp_path / "root")
    assert (root / "lab/words").read_text() == "text"
    assert (root / "lab/source/odd").read_bytes() == b"123"
    assert (root / "lab/source/odd").stat().st_mode & 0o777 == 0o640
    assert (root / "lab/source/link").readlink() == Path("odd")
    assert not (root / "lab/source/__pycache__").exists()


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere"):
        Cpio(io.BytesIO()).add_content("lab/x", tmp_path / "nowhere")


def test_names_are_those_that_another_cpio_lists(tmp_path: Path) -> None:
    if shutil.which("cpio") is None:
        pytest.skip("needs cpio")
    archive = tmp_path / "archive"
    with archive.open("wb") as out:
        cpio = Cpio(out)
        for size in range(9):  # every padding of names and contents
            cpio.add_content(f"folder/{'n' * (size + 1)}", b"x" * size)
        cpio.close()
    listed = subprocess.run(["cpio", "-t", "--quiet"], input=archive.read_bytes(),
                            capture_output=True, check=True).stdout  # fmt: skip
    assert initramfs.names(archive) == set(listed.decode().split())
    archive.write_bytes(archive.read_bytes()[:300])
    with pytest.raises(InputError, match="no whole cpio archive"):
        initramfs.names(archive)


@pytest.mark.vm
def test_more_packages_come_on_top_and_only_where_asked_for() -> None:
    base = initramfs.names(initramfs.userland())
    archive = initramfs.extra(["dosfstools"])
    assert archive == initramfs.extra(("dosfstools", "dosfstools"))
    more = initramfs.names(archive)
    assert "sbin/mkfs.fat" in more
    assert "sbin/mkfs.fat" not in base
    folders = {str(folder) for name in more for folder in Path(name).parents}
    assert not (more - folders) & base, "a file of the userland comes twice"
    assert archive.stat().st_size < 5 << 20
