"""What FAT may hold and few tools write, states that are refused, and damage.

Every image is made by mkfs.fat and mtools; single fields are changed here.
"""

from __future__ import annotations

import struct
from copy import copy
from pathlib import Path

import fat_images as fat
import numpy as np
import pytest

from cbtlab.errors import InputError, NotAtRest
from cbtlab.files import VolumeMap, map_volume
from cbtlab.files.fat import map_fat
from cbtlab.files.volume import Volume

pytestmark = fat.needs_mtools

FILES = {"A.BIN": 5, "B.BIN": 3, "C.BIN": 4, "EMPTY": 0}  # in clusters


class Fat:
    """An image in memory, with its geometry read from the boot sector once more."""

    def __init__(self, path: Path, bits: int) -> None:
        self.bits = bits
        size = {12: 2, 16: 20, 32: 36}[bits] * fat.MIB
        fat.make(path, size, "-F", str(bits), "-s", "1", "-n", "LABEL")
        fat.run("mmd", "-i", path, "::/FOLDER", "::/FOLDER/BELOW")
        for name, count in FILES.items():
            source = path.with_name(name)
            source.write_bytes(name[:1].encode() * (count * 512 - 5 if count else 0))
            fat.run("mcopy", "-i", path, source, f"::/{name}")
        fat.run("mcopy", "-i", path, path.with_name("A.BIN"), "::/FOLDER/a long name.bin")
        self.path, self.data = path, bytearray(path.read_bytes())
        reserved, self.fats, roots = struct.unpack_from("<HBH", self.data, 14)
        sectors = struct.unpack_from("<H", self.data, 22)[0]
        sectors = sectors or struct.unpack_from("<I", self.data, 36)[0]
        self.table, self.table_size = reserved * 512, sectors * 512
        self.root = self.table + self.fats * self.table_size
        self.heap = self.root + roots * 32
        self.shown = fat.shown(path, ["/A.BIN", "/B.BIN", "/FOLDER", "/FOLDER/BELOW"])

    def copy(self) -> Fat:
        other = copy(self)
        other.data = bytearray(self.data)
        return other

    def at(self, cluster: int) -> int:
        return self.heap + (cluster - 2) * 512

    def link(self, cluster: int, value: int, tables: int | None = None) -> None:
        for number in range(self.fats if tables is None else tables):
            start = self.table + number * self.table_size
            if self.bits == 12:
                place = start + cluster * 3 // 2
                both = struct.unpack_from("<H", self.data, place)[0]
                value &= 0xFFF
                both = both & 0xF | value << 4 if cluster & 1 else both & 0xF000 | value
                struct.pack_into("<H", self.data, place, both)
            elif self.bits == 16:
                struct.pack_into("<H", self.data, start + 2 * cluster, value & 0xFFFF)
            else:
                struct.pack_into("<I", self.data, start + 4 * cluster, value & 0x0FFFFFFF)

    def clusters(self, path: str) -> list[int]:
        return list(self.shown[path])

    def record(self, name: bytes, start: int | None = None) -> int:
        """Where the short record of a name lies, in the root folder or from ``start`` on."""
        at = self.root if start is None else start
        while self.data[at : at + 11] != name:
            at += 32
            assert at < self.heap + 64 * 512
        return at

    def mapped(self) -> VolumeMap:
        return map_volume(fat.Memory(self.data))


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Fat]:
    return {bits: Fat(tmp_path_factory.mktemp("fat") / "a.img", bits) for bits in (12, 16, 32)}


@pytest.fixture(params=[12, 16, 32])
def made(request: pytest.FixtureRequest, images: dict[int, Fat]) -> Fat:
    return images[request.param].copy()


@pytest.fixture()
def wide(images: dict[int, Fat]) -> Fat:
    return images[32].copy()


def refused(made: Fat, words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        made.mapped()
    assert "\n" not in str(caught.value)


def inode(found: VolumeMap, path: str) -> int:
    return int(found.names.set_index("path").loc[path, "inode"])


def test_an_inode_is_the_place_of_its_record(made: Fat, tmp_path: Path) -> None:
    found = made.mapped()
    assert inode(found, "/B.BIN") == made.record(b"B       BIN") // 32
    assert inode(found, "/") == 1
    assert found.inodes.loc[1, "type"] == "directory"
    # The same without names, and after another file is gone.
    again = map_volume(fat.Memory(made.data), names=False)
    assert again.inodes.equals(found.inodes) and len(again.names) == 0
    path = tmp_path / "a.img"
    path.write_bytes(made.data)
    fat.run("mdel", "-i", path, "::/A.BIN")
    later = map_volume(fat.Memory(path.read_bytes()))
    assert inode(later, "/B.BIN") == inode(found, "/B.BIN")
    assert "/A.BIN" not in set(later.names["path"])


def test_dirty_in_the_boot_sector(made: Fat) -> None:
    made.data[65 if made.bits == 32 else 37] |= 1
    with pytest.raises(NotAtRest, match=r"marked dirty.*fsck\.fat"):
        made.mapped()


def test_dirty_in_the_table(made: Fat) -> None:
    if made.bits == 12:
        made.link(1, 0x7FF)
        assert made.mapped().notes == []  # FAT12 has no such bits
        return
    top = (1 << min(made.bits, 28)) - 1
    made.link(1, top & ~(top + 1 >> 1))
    with pytest.raises(NotAtRest, match=r"marked dirty"):
        made.mapped()
    made.link(1, top & ~(top + 1 >> 2))
    assert made.mapped().notes[-1:] == ["the system that used it met errors of the disk"]


def test_tables_that_differ(made: Fat) -> None:
    made.link(1000, 1001, tables=1)
    refused(made, "its tables 1 and 2 differ")


def test_a_table_that_is_not_mirrored(wide: Fat) -> None:
    made = wide
    chain = made.clusters("/B.BIN")
    made.link(chain[0], 0x0FFFFFFF, tables=1)
    struct.pack_into("<H", made.data, 40, 0x81)  # the second counts
    found = made.mapped()
    assert fat.clusters_of(found, inode(found, "/B.BIN"), made.heap) == chain
    struct.pack_into("<H", made.data, 40, 0x80)
    assert inode(made.mapped(), "/B.BIN") in made.mapped().damaged
    struct.pack_into("<H", made.data, 40, 0x85)
    refused(made, "a table that is not there")


def test_bad_and_lost_clusters(made: Fat) -> None:
    made.link(1000, (1 << min(made.bits, 28)) - 9)
    made.link(1100, 1101)
    made.link(1101, 0x0FFFFFFF)
    found = made.mapped()
    assert found.owner(made.at(1000)) == "<bad clusters>"
    assert found.owner(made.at(1101)) == "<lost clusters>"
    place = np.array([made.at(n) for n in (1000, 1101, 1102)])
    assert found._marked(place).tolist() == [False, True, False]
    assert "2 clusters in use belong to no file" in found.notes


def test_clusters_behind_the_end_are_not_in_use(made: Fat) -> None:
    chain = made.clusters("/A.BIN")
    struct.pack_into("<I", made.data, made.record(b"A       BIN") + 28, 513)
    found = made.mapped()
    rows = found.extents[found.extents["inode"] == inode(found, "/A.BIN")]
    assert rows["kind"].tolist() == ["data", "unwritten"]
    assert rows["length"].tolist() == [1024, 3 * 512]
    marked = found._marked(np.array([made.at(c) for c in chain]))
    assert marked.tolist() == [True, True, False, False, False]
    assert found.owner(made.at(chain[4])) == "/A.BIN" and found.damaged == {}
    assert "1 files hold clusters behind their end" in found.notes


def damage(made: Fat, name: str) -> None:
    a, b = made.clusters("/A.BIN"), made.clusters("/B.BIN")
    record = made.record(b"A       BIN")
    if name == "shorter":
        struct.pack_into("<I", made.data, record + 28, 5 * 512 + 1)
    elif name == "no cluster":
        struct.pack_into("<H", made.data, record + 26, 0)
    elif name == "outside":
        struct.pack_into("<H", made.data, record + 26, 0xFFF0)
        struct.pack_into("<H", made.data, record + 20, 0x0FFF)
    elif name == "free":
        struct.pack_into("<H", made.data, record + 26, 1234)
    elif name == "to free":
        made.link(a[1], 1234)
    elif name == "to outside":
        made.link(a[1], (1 << min(made.bits, 28)) - 16)
    elif name == "loop":
        made.link(a[3], a[1])
    elif name == "loop to the head":
        made.link(a[4], a[0])
    elif name == "into another":
        made.link(a[2], b[1])  # as long as it was
    elif name == "into the head of another":
        made.link(a[2], b[0])
    elif name == "inside of another":
        struct.pack_into("<H", made.data, record + 26, b[1])
    else:
        struct.pack_into("<H", made.data, record + 26, b[0])


DAMAGE = (
    "shorter|no cluster|outside|free|to free|to outside|loop|loop to the head|into another"
    "|into the head of another|inside of another|head of another"
)


@pytest.mark.parametrize("name", DAMAGE.split("|"))
def test_a_damaged_chain(made: Fat, name: str) -> None:
    if name == "outside" and made.bits == 16:
        pytest.skip("every number of a cluster lies on this volume")
    damage(made, name)
    found = made.mapped()
    number = inode(found, "/A.BIN")
    bad = {number}
    if name in ("into another", "into the head of another", "inside of another", "head of another"):
        bad.add(inode(found, "/B.BIN"))
    assert set(found.damaged) == bad
    with pytest.raises(InputError, match=r"/A\.BIN: "):
        found.read_file(number)
    good = inode(found, "/C.BIN")
    assert found.read_file(good) == b"C" * (4 * 512 - 5)
    mine = [made.at(c) for path in ("/A.BIN", "/B.BIN") for c in made.clusters(path)]
    assert found._marked(np.array(mine)).all(), "what a damaged chain may hold stays in use"


@pytest.mark.parametrize("value", [0, 1, 1234, 0xFFFFFFF])
def test_a_folder_that_cannot_be_read_is_refused(made: Fat, value: int) -> None:
    if value == 0xFFFFFFF and made.bits == 16:
        value = 0xFFFF
    place = made.record(b"FOLDER     ")
    struct.pack_into("<H", made.data, place + 26, value & 0xFFFF)
    if made.bits == 32:
        struct.pack_into("<H", made.data, place + 20, value >> 16)
    refused(made, "/FOLDER is damaged")


def test_folders_that_lead_to_themselves(made: Fat) -> None:
    folder = made.clusters("/FOLDER")[0]
    below = made.record(b"BELOW      ", made.at(folder))
    struct.pack_into("<H", made.data, below + 26, folder)
    refused(made, "/FOLDER/BELOW is damaged")
    struct.pack_into("<H", made.data, below + 26, made.clusters("/FOLDER/BELOW")[0])
    made.link(folder, folder)
    refused(made, "/FOLDER is damaged")


def test_a_folder_that_is_not_its_own_is_refused(made: Fat) -> None:
    folder = made.at(made.clusters("/FOLDER")[0])
    for at, value in ((0, 0), (0, 0xE5), (1, 0x2E), (26, 77)):
        before = made.data[folder + at]
        made.data[folder + at] = value
        refused(made, "/FOLDER is damaged: (it does not begin with itself|records are in use)")
        made.data[folder + at] = before


def test_a_table_that_is_elsewhere(made: Fat) -> None:
    made.link(0, 0)
    refused(made, "no table where the boot sector says")
    made.link(0, (1 << min(made.bits, 28)) - 1 - 0xFF + 0xF9)
    assert made.mapped().notes[-1:] == ["the first entry of its table is not the media type"]


def test_a_root_folder_that_is_cut_short(made: Fat) -> None:
    if made.bits == 32:
        pytest.skip("it has a chain")
    struct.pack_into("<H", made.data, 17, 16)
    made.data[made.root + 512 : made.heap] = b""
    made.data += bytes(made.heap - made.root - 512)
    for at in range(made.root, made.root + 512, 32):
        if made.data[at] in b"\0C":  # C.BIN stood behind what is left of the folder
            made.data[at] = 0xE5
    refused(made, "the folder / may be cut short")


def test_records_behind_the_end_mark(made: Fat) -> None:
    place = made.record(b"B       BIN")
    made.data[place] = 0
    refused(made, "the folder / is damaged: records are in use behind its end mark")


def test_a_long_name_counts_only_when_it_fits(made: Fat) -> None:
    folder = made.at(made.clusters("/FOLDER")[0])
    place = made.record(b"ALONGN~1BIN", folder)
    for at, value in ((place - 32, 0x99), (place - 32 + 13, 0), (place - 64 + 13, 0)):
        before = made.data[at]
        made.data[at] = value
        found = made.mapped()
        assert "/FOLDER/ALONGN~1.BIN" in set(found.names["path"])
        assert "2 records of long names belong to no file" in found.notes
        made.data[at] = before
    assert "/FOLDER/a long name.bin" in set(made.mapped().names["path"])
    made.data[place - 32 + 1 : place - 32 + 3] = b"\x00\xd8"  # half of a pair
    names = made.mapped().names
    assert rb"/FOLDER/" + b"\xed\xa0\x80" + b" long name.bin" in set(names["raw"])
    assert r"/FOLDER/\xed\xa0\x80 long name.bin" in set(names["path"])
    made.data[place - 32 + 1 : place - 32 + 3] = b"/\0"
    refused(made, "a slash in it")


def test_short_names(made: Fat) -> None:
    place = made.record(b"A       BIN")
    for raw, case, name in (
        (b"\x9a\x81SER   TXT", 0, "Üü" + "SER.TXT"),
        (b"\x9a\x81SER   TXT", 0x08, "üü" + "ser.TXT"),
        (b"NAME    EXT", 0x10, "NAME.ext"),
        (b"NAME       ", 0x18, "name"),
        (b"A B C   E F", 0, "A B C.E F"),
        (b"\x05AME    EXT", 0, "\u03c3AME.EXT"),
    ):
        made.data[place : place + 11], made.data[place + 12] = raw, case
        found = made.mapped()
        assert "/" + name in set(found.names["path"]), name
    assert found.notes == ["1 short names are not in ASCII, and taken as code page 437"]
    made.data[place : place + 11] = b"\x9b\x9dSER   TXT"
    other = map_fat(Volume(fat.Memory(made.data)), codepage="cp850")
    assert "/øØSER.TXT" in set(other.names["path"])
    made.data[place : place + 11] = b"A\0       TX"
    refused(made, "a byte of zero")


def test_the_label_is_no_file(made: Fat) -> None:
    found = made.mapped()
    assert not any("LABEL" in path for path in found.names["path"])
    assert len(found.inodes) == len(found.names) == 8


@pytest.mark.parametrize(
    ("at", "form", "value"),
    [
        (11, "<H", 500),
        (13, "<B", 3),
        (13, "<B", 0),
        (14, "<H", 0),
        (16, "<B", 0),
        (21, "<B", 3),
    ],
)
def test_an_impossible_boot_sector(made: Fat, at: int, form: str, value: int) -> None:
    struct.pack_into(form, made.data, at, value)
    refused(made, "the boot sector's .* is impossible")


def test_a_volume_that_was_cut(made: Fat) -> None:
    del made.data[len(made.data) - 4096 :]
    refused(made, "cut short")


def test_the_backup_boot_sector(wide: Fat) -> None:
    made = wide
    assert made.mapped().owner(6 * 512) == "<backup boot sector>"
    made.data[6 * 512 + 100] ^= 1
    assert made.mapped().notes == ["the backup boot sector differs from the boot sector"]
    assert made.mapped().owner(512) == "<FSInfo>"


def test_impossible_times_are_no_error(made: Fat) -> None:
    place = made.record(b"A       BIN")
    for date, time, expected in (
        (0, 0, 0),
        (1 << 9 | 0 << 5 | 0, 0, 347155200),
        (0x7F << 9 | 15 << 5 | 31, 0xFFFF, None),
        (44 << 9 | 2 << 5 | 29, 12 << 11 | 34 << 5 | 28, 1709210096),
    ):
        struct.pack_into("<HH", made.data, place + 22, time, date)
        found = made.mapped()
        seconds = found.inodes.loc[inode(found, "/A.BIN"), "mtime_ns"] // 10**9
        assert expected is None or seconds == expected


def test_a_folder_whose_chain_was_cut_is_refused(tmp_path: Path) -> None:
    made = Fat(tmp_path / "a.img", 12)
    empty = tmp_path / "EMPTY"
    names = [f"::/FOLDER/{number}" for number in range(40)]
    for name in names:
        fat.run("mcopy", "-i", made.path, empty, name)
    made.data = bytearray(made.path.read_bytes())
    chain = fat.shown(made.path, ["/FOLDER"])["/FOLDER"]
    assert len(chain) == 3 and len(made.mapped().names) == 48
    made.link(chain[0], 0xFFF)
    refused(made, "the folder /FOLDER may be cut short: it has no end mark, and 2 clusters")
