"""What cannot be mapped is refused in one line that says why, and what to do."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import ext_images as ext
import pytest

from cbtlab.errors import InputError
from cbtlab.files import map_volume
from cbtlab.images import open_image


def refusal(path: Path, offset: int = 0) -> str:
    with open_image(path) as image, pytest.raises(InputError) as caught:
        map_volume(image, offset)
    line = str(caught.value)
    assert "\n" not in line and line.startswith(str(path)[:5])
    return line


@pytest.fixture()
def image(tmp_path: Path) -> Path:
    return ext.make(tmp_path / "a.img", 8 * ext.MIB, "-t", "ext4", "-b", "1024")


def flip(path: Path, offset: int, mask: int = 1) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ mask]))


@ext.needs_e2fsprogs
def test_a_journal_that_needs_recovery(image: Path) -> None:
    ext.debugfs(image, "feature needs_recovery")
    assert "journal needs recovery" in refusal(image)


@pytest.mark.root
@ext.needs_e2fsprogs
def test_a_copy_of_a_mounted_volume(image: Path) -> None:
    copy = image.with_name("copy.img")
    with ext.mounted(image) as root:
        with (root / "file").open("wb") as file:
            file.write(b"x" * 100000)
            os.fsync(file.fileno())
        copy.write_bytes(image.read_bytes())
    assert "journal needs recovery" in refusal(copy)
    with open_image(image) as whole:
        assert "/file" in set(map_volume(whole).names["path"])


@ext.needs_e2fsprogs
@pytest.mark.parametrize("offset", [4, 20, 24, 32, 40, 88, 100, 104, 254, 370, 1020])
def test_a_flipped_superblock(image: Path, offset: int) -> None:
    flip(image, 1024 + offset)
    assert "checksum is wrong" in refusal(image) or "unknown" in refusal(image)


@ext.needs_e2fsprogs
@pytest.mark.parametrize("offset", [4, 20, 32, 40, 88])
def test_a_flipped_superblock_without_checksum(tmp_path: Path, offset: int) -> None:
    path = ext.make(tmp_path / "a.img", 8 * ext.MIB, "-t", "ext2", "-b", "1024")
    flip(path, 1024 + offset + 1, 0x55)
    refusal(path)


@ext.needs_e2fsprogs
@pytest.mark.parametrize("features", ["metadata_csum", "^metadata_csum,uninit_bg"])
def test_a_flipped_group_descriptor(tmp_path: Path, features: str) -> None:
    path = ext.make(tmp_path / "a.img", 32 * ext.MIB, *["-t", "ext4", "-b", "1024", "-O"], features)
    flip(path, 2048 + 2 * (64 if "64bit" in ext.run("dumpe2fs", "-h", str(path)) else 32) + 12)
    assert "descriptor of group 2" in refusal(path)


@ext.needs_e2fsprogs
def test_flipped_bitmaps(image: Path) -> None:
    text = ext.run("dumpe2fs", str(image))
    for name in ("Block bitmap", "Inode bitmap"):
        place = int(text.split(f"{name} at ")[1].split()[0].rstrip(",")) * 1024
        flip(image, place + 20)
        assert f"{name.lower()} of group 0" in refusal(image)
        flip(image, place + 20)
    with open_image(image) as whole:
        map_volume(whole)


@ext.needs_e2fsprogs
def test_a_volume_that_was_cut(image: Path) -> None:
    with image.open("r+b") as file:
        file.truncate(5 * ext.MIB)
    assert "cut short" in refusal(image)


@ext.needs_e2fsprogs
def test_a_feature_that_is_not_known(tmp_path: Path) -> None:
    path = ext.make(tmp_path / "a.img", 8 * ext.MIB, "-t", "ext2")
    flip(path, 1024 + 96 + 3, 0x40)
    assert "0x40000000" in refusal(path)


@pytest.mark.parametrize(
    ("offset", "magic", "name"),
    [(0, b"LUKS\xba\xbe", "LUKS encryption"), (1024, b"\x10\x20\xf5\xf2", "F2FS")],
)
def test_other_file_systems_are_named(tmp_path: Path, offset: int, magic: bytes, name: str) -> None:
    path = tmp_path / "a.img"
    path.write_bytes(bytes(offset) + magic + bytes(ext.MIB))
    assert f"holds {name}," in refusal(path)


@pytest.mark.parametrize("size", [512, 1024, 2000, 1 << 20])
def test_nothing_is_there(tmp_path: Path, size: int) -> None:
    path = tmp_path / "a.img"
    path.write_bytes(bytes(size))
    assert "no file system" in refusal(path)


def test_offsets_that_make_no_sense(tmp_path: Path) -> None:
    path = tmp_path / "a.img"
    path.write_bytes(bytes(1 << 20))
    assert "outside" in refusal(path, 1 << 20)
    assert "outside" in refusal(path, -512)
    assert "multiple of 512" in refusal(path, 100)


def mbr(*entries: tuple[int, int, int]) -> bytes:
    """A partition table of (type, first sector, sectors)."""
    rows = b"".join(struct.pack("<B3xB3xII", 0, *entry) for entry in entries)
    return bytes(446) + rows.ljust(64, b"\0") + b"\x55\xaa"


def test_a_partitioned_image_is_refused_with_its_offsets(tmp_path: Path) -> None:
    path = tmp_path / "a.img"
    disk = bytearray(8 * ext.MIB)
    disk[:512] = mbr((0x83, 2048, 2048), (0x05, 4096, 8192))
    disk[4096 * 512 : 4097 * 512] = mbr((0x83, 63, 1000), (0x05, 2048, 2048))
    disk[6144 * 512 : 6145 * 512] = mbr((0x83, 2, 1000), (0x05, 0, 8192))
    path.write_bytes(disk)
    line = refusal(path)
    assert "partitioned" in line
    assert f"{2048 * 512}, {(4096 + 63) * 512}, {(6144 + 2) * 512}" in line


@pytest.mark.parametrize("sector", [512, 4096])
def test_a_gpt_is_refused_with_its_offsets(tmp_path: Path, sector: int) -> None:
    path = tmp_path / "a.img"
    disk = bytearray(8 * ext.MIB)
    disk[:512] = mbr((0xEE, 1, 16383))
    header = bytearray(92)
    header[:8] = b"EFI PART"
    struct.pack_into("<QII", header, 72, 2, 128, 128)
    disk[sector : sector + 92] = header
    for number, start in enumerate((256, 1024)):
        entry = b"\x0f" * 32 + struct.pack("<QQ", start, start + 100)
        disk[2 * sector + number * 128 : 2 * sector + number * 128 + len(entry)] = entry
    path.write_bytes(disk)
    assert f"offsets {256 * sector}, {1024 * sector}" in refusal(path)
