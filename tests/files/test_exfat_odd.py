"""What exFAT may hold and few drivers write, states that are refused, and damage.

Images come from ``exfat_images.Exfat``; where the format allows them, fsck.exfat agrees.
"""

from __future__ import annotations

import struct
from pathlib import Path

import fat_images as fat
import numpy as np
import pytest
from exfat_images import Exfat, set_checksum

from cbtlab.errors import InputError, NotAtRest
from cbtlab.files import VolumeMap

pytestmark = fat.needs_exfatprogs


@pytest.fixture()
def volume(tmp_path: Path) -> Exfat:
    return Exfat(tmp_path / "a.img")


def inode(found: VolumeMap, path: str) -> int:
    return int(found.names.set_index("path").loc[path, "inode"])


def rows(found: VolumeMap, path: str) -> list[tuple[str, int, int, int]]:
    mine = found.extents[found.extents["inode"] == inode(found, path)]
    columns = ("kind", "logical", "physical", "length")
    return list(zip(*(mine[name].tolist() for name in columns), strict=True))


def refused(made: Exfat, words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        made.mapped()
    assert "\n" not in str(caught.value)


def test_files_in_one_piece_need_no_chain_and_no_table(volume: Exfat) -> None:
    size = volume.cluster
    volume.chain([40, 50, 60])  # what an older file left in the table, into other files
    volume.add("whole", b"w" * (3 * size - 1), [50, 51, 52], whole=True)
    volume.add("chained", b"c" * (2 * size), [60, 45])
    volume.make_folder("folder", [70, 71], whole=True)
    volume.add("inside", b"i", [80], folder="/folder")
    volume.check()
    found = volume.mapped()
    assert found.notes == [] and found.damaged == {}
    assert rows(found, "/whole") == [("data", 0, volume.at(50), 3 * size)]
    assert rows(found, "/chained") == [
        ("data", 0, volume.at(60), size),
        ("data", size, volume.at(45), size),
    ]
    assert rows(found, "/folder") == [("data", 0, volume.at(70), 2 * size)]
    assert found.read_file(inode(found, "/folder/inside")) == b"i"
    fat.check_owners(found)


def test_names_and_zones(volume: Exfat) -> None:
    names = ["x" * 255, "é🙂", "fifteen units..", "fifteen units..+"]
    for name in names:
        volume.add(name)
    place = volume.add("half \ud800".encode("utf-16", "surrogatepass").decode("utf-16", "replace"))
    volume.check()
    found = volume.mapped()
    assert {"/" + name for name in names} < set(found.names["path"])
    row = found.inodes.loc[place // 32]
    local = np.datetime64("2024-02-29T12:34:56").astype("datetime64[ns]").astype(np.int64)
    assert row["crtime_ns"] == local + 500_000_000 and row["mtime_ns"] == local
    assert row["atime_ns"] == local - 3600 * 10**9  # four quarters of an hour east


def test_what_was_never_written(volume: Exfat) -> None:
    size = volume.cluster
    content = b"v" * 4 * size
    volume.add("valid", content, [50, 51, 52, 53], whole=True, valid=size + 1)
    volume.add("chained", content, [60, 64, 62, 63], valid=size)
    volume.add("nothing", content, [70, 71, 72, 73], valid=0)
    volume.check()
    found = volume.mapped()
    assert rows(found, "/valid") == [
        ("data", 0, volume.at(50), 2 * size),
        ("unwritten", 2 * size, volume.at(52), 2 * size),
    ]
    assert [row[0] for row in rows(found, "/chained")] == ["data", "unwritten", "unwritten"]
    assert rows(found, "/nothing") == [("unwritten", 0, volume.at(70), 4 * size)]
    number = inode(found, "/valid")
    assert found.inodes.loc[number, "valid"] == size + 1
    assert found.read_file(number) == b"v" * (size + 1) + bytes(3 * size - 1)
    used = [bool(found._marked(np.array([volume.at(c)]))[0]) for c in range(50, 54)]
    assert used == [True, True, False, False]
    assert found.owner(volume.at(53)) == "/valid"


def test_clusters_of_a_vendor(volume: Exfat) -> None:
    record = struct.pack("<BB16sHIQ", 0xE1, 3, b"vendor's own id.", 0, 90, volume.cluster + 1)
    volume.add("file", b"f", [50], more=record)
    volume.mark([90, 91])
    found = volume.mapped()
    assert ("meta", volume.at(90), 2 * volume.cluster) in [
        (kind, place, length) for kind, _, place, length in rows(found, "/file")
    ]
    assert found.owner(volume.at(91)) == "/file" and found.notes == []
    fat.check_owners(found)


def test_records_of_the_volume_that_may_be_passed_over(volume: Exfat) -> None:
    start = volume.place(volume.used["/"])
    guid = struct.pack("<BBHH16s10x", 0xA0, 0, 0, 0, b"the volume's id.")
    volume.data[start : start + 32] = guid
    volume.used["/"] += 32
    volume.add("behind", b"b", [50])
    volume.check()
    assert "/behind" in set(volume.mapped().names["path"])


def test_two_tables_and_two_bitmaps(volume: Exfat) -> None:
    """TexFAT: the flag says which of two tables and of two bitmaps counts."""
    size = struct.unpack_from("<I", volume.data, 84)[0] * volume.sector
    second = volume.fat + size
    assert second + size <= volume.heap
    root = volume.at(volume.root)
    place = next(at for at in range(root, root + 999, 32) if volume.data[at] == 0x81)
    copy = bytearray(volume.data[place : place + 32])
    copy[1] = 1
    struct.pack_into("<I", copy, 20, 100)
    start = volume.place(volume.used["/"])
    volume.data[start : start + 32] = copy
    volume.used["/"] += 32
    volume.mark([100])
    volume.chain([100])
    volume.add("file", b"f" * 2 * volume.cluster, [50, 60])
    both = volume.data[volume.at(2) : volume.at(2) + volume.cluster]
    volume.data[volume.at(100) : volume.at(101)] = both
    volume.data[second : second + size] = volume.data[volume.fat : volume.fat + size]
    volume.link(50, 99)  # the first table is out of date
    volume.mark([60], used=False)
    volume.data[110], volume.data[106] = 2, 1
    volume.seal()
    found = volume.mapped()
    assert [row[2] for row in rows(found, "/file")] == [volume.at(50), volume.at(60)]
    assert found.notes[1:] == [] and found.damaged == {}
    assert found.owner(volume.at(100)) == "<allocation bitmap>"
    assert found.owner(second) == "<FAT 2>"


@pytest.mark.parametrize("bit", [2])
def test_a_dirty_volume(volume: Exfat, bit: int) -> None:
    volume.data[106] |= bit
    with pytest.raises(NotAtRest, match=r"marked dirty.*fsck\.exfat"):
        volume.mapped()
    volume.data[106] = 4
    assert "errors of the disk" in " ".join(volume.mapped().notes)


def test_the_boot_region(volume: Exfat) -> None:
    volume.data[3 * volume.sector] ^= 1
    refused(volume, "checksum of its boot region")
    volume.data[3 * volume.sector] ^= 1
    volume.data[15 * volume.sector] ^= 1
    assert "backup boot region differs" in volume.mapped().notes[0]
    for offset, value, words in (
        (72, 1, "number of clusters"),
        (80, 2, "place of the table"),
        (84, 0, "size of the table"),
        (92, 0xFFFFFFF0, "size of the table"),
        (96, 0, "root folder"),
    ):
        before = volume.data[offset : offset + 4]
        struct.pack_into("<I", volume.data, offset, value)
        refused(volume, words)
        volume.data[offset : offset + 4] = before
    del volume.data[6 * fat.MIB :]
    refused(volume, "cut short")


def test_damaged_files_keep_their_clusters_in_use(volume: Exfat) -> None:
    size = volume.cluster
    content = b"d" * 3 * size
    volume.add("short", content, [50, 51])
    volume.add("long", b"l" * size, [54, 55, 56])
    volume.add("loop", content, [60, 61, 62])
    volume.link(62, 60)
    volume.add("into loop", content, [64, 65, 66])
    volume.link(66, 65)
    volume.add("to nothing", content, [70, 71, 72])
    volume.link(71, 200)
    volume.add("shared", content, [80, 81, 82], whole=True)
    volume.add("sharing", content, [81], valid=0, whole=True, size=size)
    volume.add("free", content, [90, 91, 92], whole=True)
    volume.mark([92], used=False)
    volume.add("outside", content, [volume.clusters], whole=True)
    volume.add("valid", b"x", [100], valid=500)
    volume.add("no clusters", size=7)
    volume.add("twins", content, [110, 111, 112])
    volume.add("twin", content, [110, 111, 112])
    found = volume.mapped()
    bad = {found.label(n) for n in found.damaged}
    expected = "short|loop|into loop|to nothing|shared|sharing|free|outside|valid|no clusters"
    assert bad == {f"/{name}" for name in [*expected.split("|"), "twin", "twins"]}
    for number in found.damaged:
        with pytest.raises(InputError, match=r"^memory: /"):
            found.read_file(number)
    used = found._marked(np.array([volume.at(c) for c in (50, 60, 66, 70, 81, 82, 92, 111)]))
    assert used.all()
    assert not found._marked(np.array([volume.at(c) for c in (55, 56)])).any()
    assert "1 files hold clusters behind their end" in found.notes


@pytest.mark.parametrize(
    ("at", "words"),
    [(2, "checksum of a record"), (1, "cut short|out of order"), (34, "checksum of a record")],
)
def test_a_set_that_is_damaged(volume: Exfat, at: int, words: str) -> None:
    place = volume.add("file", b"f", [50])
    volume.data[place + at] ^= 9
    refused(volume, words)


def test_records_out_of_order(volume: Exfat) -> None:
    place = volume.add("file", b"f", [50])
    record = bytes(volume.data[place : place + 96])
    for bad, words in (
        (bytes(32) + record[32:], "behind its end mark"),
        (b"\x05" + record[1:], "out of order"),
        (record[:32] + record[64:] + bytes(32), "cut short|out of order|end mark|no record"),
        (b"\x84" + record[1:], "not known"),
        (record[:32] + b"\x40" + record[33:], "out of order"),
    ):
        volume.data[place : place + 96] = bad.ljust(96, b"\0")
        refused(volume, words)


def test_folders_that_cannot_be_read_are_refused(volume: Exfat) -> None:
    place = volume.make_folder("folder", [50, 51])
    volume.mapped()
    volume.link(51, 50)
    refused(volume, "/folder is damaged")
    volume.link(51, 300)
    refused(volume, "/folder is damaged")
    volume.link(50, 0xFFFFFFFF)
    refused(volume, "shorter than its size")
    volume.chain([50, 51])
    other = volume.make_folder("other", [50, 51])
    assert other != place
    refused(volume, "/other is damaged: it shares")


def test_a_folder_that_holds_the_root(volume: Exfat) -> None:
    volume.add("folder", b"", [volume.root], size=volume.cluster, attributes=0x10)
    refused(volume, "/folder is damaged: it shares")


def test_the_table_of_capitals_and_the_hashes(volume: Exfat) -> None:
    place = volume.add("strait ÿ é ж", b"f", [50])
    volume.check()
    assert volume.mapped().notes == []
    volume.data[place + 36] ^= 1
    record = bytes(volume.data[place : place + 96])
    struct.pack_into("<H", volume.data, place + 2, set_checksum(record))
    assert "wrong hash" in volume.mapped().notes[0]
    volume.data[volume.at(3) + 100] ^= 1
    refused(volume, "table of capital letters")


def test_a_lost_cluster_has_a_name(volume: Exfat) -> None:
    volume.mark([200, 201])
    volume.link(300, 0xFFFFFFF7)
    volume.mark([300])
    found = volume.mapped()
    assert found.owner(volume.at(201)) == "<lost clusters>"
    assert found.owner(volume.at(300)) == "<bad clusters>"
    assert "2 clusters in use belong to no file" in found.notes
