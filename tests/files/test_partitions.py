"""Partitions and logical volumes are found: real tables of sfdisk and sgdisk, real LVM metadata.

LVM runs without the device mapper (``--driverloaded n``), which the metadata do not need.
"""

from __future__ import annotations

import json
import os
import struct
import subprocess
from pathlib import Path

import fat_images as fat
import pytest

from cbtlab.errors import InputError
from cbtlab.files import map_volume
from cbtlab.files.lvm import logical_volumes
from cbtlab.files.partitions import find_volumes
from cbtlab.files.signatures import mapped
from cbtlab.files.volume import Volume
from cbtlab.images import open_image

needs_sfdisk = fat.needs("sfdisk", "mkfs.fat", "mke2fs")


def divided(path: Path, script: str, size: int = 64) -> list[dict[str, int]]:
    """Make a partitioned image; what sfdisk says of its partitions."""
    with path.open("wb") as file:
        file.truncate(size * fat.MIB)
    subprocess.run(["sfdisk", "-q", path], input=script, text=True, check=True)
    found = json.loads(fat.run("sfdisk", "--json", path))["partitiontable"]
    size = found.get("sectorsize", 512)
    return [
        {"start": part["start"] * size, "size": part["size"] * size} for part in found["partitions"]
    ]


def refusal(path: Path, offset: int = 0) -> str:
    with open_image(path) as image, pytest.raises(InputError) as caught:
        map_volume(image, offset)
    line = str(caught.value)
    assert "\n" not in line and line.startswith(str(path))
    return line


def filled(path: Path, offset: int, size: int, *command: str) -> None:
    """Make a file system of its own, and put it into the image."""
    alone = path.with_suffix(".part")
    fat.make(alone, size, *command[1:], program=command[0])
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(alone.read_bytes())


@needs_sfdisk
@pytest.mark.parametrize("label", ["dos", "gpt"])
def test_a_partitioned_image(tmp_path: Path, label: str) -> None:
    path = tmp_path / "a.img"
    lines = ["start=2048, size=16384", "start=20480, size=16384", "start=40960, size=20480"]
    if label == "dos":
        lines[1] += ", type=5"
        lines.insert(2, "start=24576, size=8192")
    else:
        lines[0] += ', name="the first; of them"'
    parts = divided(path, "\n".join([f"label: {label}", *lines]))
    filled(path, parts[0]["start"], 8 * fat.MIB, "mkfs.fat", "-F", "16", "-s", "1")
    ext = parts[-1] if label == "gpt" else next(p for p in parts if p["start"] == 40960 * 512)
    filled(path, ext["start"], ext["size"], "mke2fs", "-q", "-F")
    with open_image(path) as image:
        found = find_volumes(image)
        places = {(part["start"], part["size"]) for part in parts}
        if label == "dos":
            places.remove((20480 * 512, 16384 * 512))  # the extended one holds the others
        assert {(volume.offset, volume.size) for volume in found} == places
        kinds = {volume.offset: volume.kind for volume in found}
        assert kinds[parts[0]["start"]] == "fat" and kinds[ext["start"]] == "ext"
        assert sorted(kinds.values()) == ["ext", "fat", "nothing that is known"]
        assert map_volume(image, parts[0]["start"]).fs == "fat16"
        assert map_volume(image, ext["start"]).fs == "ext2"
    line = refusal(path)
    offsets = ", ".join(str(volume.offset) for volume in found)
    assert f"is partitioned; give one of the offsets {offsets} (" in line
    for volume in found:
        assert f"{volume.where} at {volume.offset}, {volume.size} bytes: {volume.kind}" in line


@needs_sfdisk
def test_the_second_table_of_a_gpt(tmp_path: Path) -> None:
    path = tmp_path / "a.img"
    parts = divided(path, "label: gpt\nstart=2048, size=16384\nstart=20480, size=2048\n")
    with path.open("r+b") as file:
        file.seek(512)
        file.write(bytes(4096))
    with open_image(path) as image:
        found = find_volumes(image)
    assert [(v.offset, v.size) for v in found] == [(p["start"], p["size"]) for p in parts]


@fat.needs("mkfs.fat")
@pytest.mark.parametrize("mbr", ["n", "y"])
@pytest.mark.parametrize("bits", ["12", "16", "32"])
def test_fat_is_known_by_its_parameters(tmp_path: Path, bits: str, mbr: str) -> None:
    """Without the names at 54 and 82, and with a partition table in its own boot sector."""
    size = {"12": 2, "16": 16, "32": 40}[bits] * fat.MIB
    path = fat.make(tmp_path / "a.img", size, "-F", bits, f"--mbr={mbr}", "-s", "1")
    data = bytearray(path.read_bytes())
    data[54:62] = data[82:90] = b"whatever"
    assert mapped(Volume(fat.Memory(data))) == ["fat"]
    assert map_volume(fat.Memory(data)).fs == f"fat{bits}"
    # With its name and a field that cannot be it is still a FAT, and refused as one.
    data[54:62] = b"FAT16   "
    data[16] = 0
    with pytest.raises(InputError, match="boot sector's number of tables"):
        map_volume(fat.Memory(data))


@pytest.mark.parametrize(
    ("program", "options", "kind"),
    [
        ("mke2fs", ["-q", "-F", "-t", "ext4"], "ext"),
        ("mkfs.ntfs", ["-q", "-F", "-f"], "ntfs"),
        ("mkfs.exfat", [], "exfat"),
        ("mkfs.xfs", ["-q"], "xfs"),
        ("mkfs.btrfs", ["-q"], "btrfs"),
    ],
)
def test_fat_before_does_not_matter(
    tmp_path: Path, program: str, options: list[str], kind: str
) -> None:
    """A new file system where a FAT was is not taken for it, nor the other way round."""
    mark = fat.needs(program, "mkfs.fat")
    if mark.args[0]:
        pytest.skip(mark.kwargs["reason"])
    size = 320 * fat.MIB if kind in ("xfs", "btrfs") else 40 * fat.MIB
    path = fat.make(tmp_path / "a.img", size, "-F", "32", "-s", "1")
    force = ["-f"] if kind in ("xfs", "btrfs") else []
    fat.run(program, *options, *force, path)
    with open_image(path) as image:
        assert mapped(Volume(image)) == [kind]
    fat.run("mkfs.fat", "-F", "32", "-s", "1", path)
    with open_image(path) as image:
        assert mapped(Volume(image)) == ["fat"]


@fat.needs("mkfs.fat", "mke2fs")
def test_two_file_systems_at_one_place_are_refused(tmp_path: Path) -> None:
    path = fat.make(tmp_path / "a.img", 40 * fat.MIB, "-F", "32", "-R", "32", "-s", "1")
    other = fat.make(tmp_path / "b.img", 40 * fat.MIB, "-q", "-F", program="mke2fs")
    data = bytearray(path.read_bytes())
    data[1024:2048] = other.read_bytes()[1024:2048]
    with pytest.raises(InputError, match="signatures of ext and fat"):
        map_volume(fat.Memory(data))
    data[1024:2048] = bytes(1024)
    data[1024 + 56 : 1024 + 58] = b"\x53\xef"  # two bytes by chance are no ext
    assert map_volume(fat.Memory(data)).fs == "fat32"


def lvm(*words: str) -> None:
    settings = "devices{use_devicesfile=0} backup{backup=0 archive=0}"
    command, *rest = words
    done = subprocess.run(
        [command, "--config", settings, "--driverloaded", "n", *rest],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture()
def with_lvm(tmp_path: Path) -> tuple[Path, int]:
    """A GPT whose second partition holds three logical volumes, and where it begins."""
    mark = fat.needs("sfdisk", "pvcreate", "vgcreate", "lvcreate", "losetup", "mkfs.fat")
    if mark.args[0] or os.geteuid() != 0 or not Path("/dev/loop-control").exists():
        pytest.skip("needs root, loop devices and LVM")
    path, group = tmp_path / "a.img", f"cbtlab{os.getpid()}"
    script = "label: gpt\nstart=2048, size=2048\nstart=43008, size=163840\n"
    start = divided(path, script, 128)[1]["start"]
    words = ("losetup", "-f", "--show", "-o", str(start), "--sizelimit", str(163840 * 512))
    device = fat.run(*words, path).strip()
    try:
        lvm("pvcreate", "-y", device)
        lvm("vgcreate", "-s", "1M", group, device)
        new = ("lvcreate", "-an", "-Zn", "-Wn", "-y")
        lvm(*new, "-n", "in-two", "-L", "8M", group)
        lvm(*new, "-n", "whole", "-L", "16M", group)
        lvm("lvextend", "-L", "+4M", f"{group}/in-two")
        lvm(*new, "-n", "grown", "-L", "4M", group)
        lvm("lvextend", "-L", "+4M", f"{group}/grown")
        (tmp_path / "pvs").write_text(
            subprocess.run(
                ["pvs", "--config", "devices{use_devicesfile=0}", "--driverloaded", "n",
                 "--segments", "--units", "b", "--nosuffix", "--noheadings",
                 "-o", "lv_name,pvseg_start,pvseg_size,pe_start", device],
                capture_output=True, text=True, check=True,
            ).stdout
        )  # fmt: skip
    finally:
        fat.run("losetup", "-d", device)
    return path, start


@pytest.mark.root
def test_logical_volumes(with_lvm: tuple[Path, int]) -> None:
    path, start = with_lvm
    group = f"cbtlab{os.getpid()}"
    segments: dict[str, list[int]] = {}
    for line in path.with_name("pvs").read_text().splitlines():
        if len(words := line.split()) == 4:
            place = start + int(words[3]) + int(words[1]) * fat.MIB
            segments.setdefault(words[0], []).append(place)
    filled(path, segments["whole"][0], 16 * fat.MIB, "mkfs.fat", "-F", "16", "-s", "1")
    with open_image(path) as image:
        found = {volume.where: volume for volume in find_volumes(image)}
        at = "partition 2 of the GPT"
        assert found[at].kind == "an LVM physical volume" and found[at].offset == start
        whole = found[f"logical volume {group}/whole in {at}"]
        assert whole[:3] == (segments["whole"][0], 16 * fat.MIB, "fat")
        assert map_volume(image, whole.offset).fs == "fat16"
        grown = found[f"logical volume {group}/grown in {at}"]
        assert (grown.offset, grown.size) == (segments["grown"][0], 8 * fat.MIB)
        two = found[f"logical volume {group}/in-two in {at}"]
        assert (two.offset, two.size) == (None, 12 * fat.MIB) and len(segments["in-two"]) == 2
        assert two.kind == "no single offset: it lies in 2 segments"
    for line in (refusal(path), refusal(path, start)):
        assert f"{whole.offset}, {16 * fat.MIB} bytes: fat" in line
        assert "it lies in 2 segments" in line
    assert "is an LVM physical volume; give one of the offsets" in refusal(path, start)


@pytest.mark.root
def test_damaged_metadata_of_lvm(with_lvm: tuple[Path, int]) -> None:
    path, start = with_lvm
    data = bytearray(path.read_bytes()[start:])
    assert len(logical_volumes(Volume(fat.Memory(data)))) == 3
    label = data.index(b"LABELONE")
    area = struct.unpack_from("<Q", data, label + 32 + 40 + 32)[0]
    text = area + struct.unpack_from("<Q", data, area + 40)[0]
    for at, value, words in (
        (text + 20, b"#", "checksum of its LVM metadata"),
        (area + 4, b"x", "metadata area is damaged"),
        (area + 40, b"\xff" * 8, "metadata area is damaged"),
        (area + 48, b"\xff" * 8, "metadata area is damaged"),
        (area + 40, bytes(8), "on another physical volume"),
        (label + 20, b"\xff", "label is damaged"),
    ):
        spoilt = bytearray(data)
        spoilt[at : at + len(value)] = value
        with pytest.raises(InputError, match=words):
            logical_volumes(Volume(fat.Memory(spoilt)))
        with pytest.raises(InputError, match="is an LVM physical volume; none can be given"):
            map_volume(fat.Memory(spoilt))
