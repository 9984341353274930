"""What an NTFS volume that is not at rest, damaged or odd gives: one line, or the right answer."""

from __future__ import annotations

import struct
import time
from pathlib import Path

import ntfs_images as ntfs
import numpy as np
import pytest

from cbtlab.errors import InputError, NotAtRest
from cbtlab.files import VolumeMap, map_volume
from cbtlab.files.extents import RESERVED
from cbtlab.images import open_image

pytestmark = [pytest.mark.root, ntfs.needs_ntfs3g]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = ntfs.make(tmp_path_factory.mktemp("states") / "a.img", 16 * ntfs.MIB, "-c", "1024")
    with ntfs.mounted(path) as root:
        (root / "folder" / "below").mkdir(parents=True)
        (root / "folder" / "below" / "file").write_bytes(b"content" * 1000)
        (root / "file").write_bytes(b"another" * 1000)
        (root / "hiberfil.sys").write_bytes(bytes(5000))
        with (root / "runs").open("wb") as file:
            for number in range(400):
                file.seek(number * 40_000)
                file.write(b"%d" % number)
    return path.read_bytes()


def mapped(data: bytes | bytearray) -> VolumeMap:
    return map_volume(ntfs.Memory(data))


def refusal(data: bytearray, kind: type[InputError] = InputError) -> str:
    with pytest.raises(kind) as caught:
        mapped(data)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def at_rest(data: bytearray) -> bool:
    try:
        mapped(data)
    except NotAtRest:
        return False
    return True


def change(data: bytearray, inode: int, old: bytes, new: bytes, where: int = 0) -> None:
    """Replace bytes in a record, found from its start or a place behind."""
    place = ntfs.record_place(data, inode)
    at = data.index(old, place + where, place + 1024)
    data[at : at + len(new)] = new


def set_flags(data: bytearray, flags: int) -> None:
    """In $MFT, and in its mirror."""
    mirror = struct.unpack_from("<Q", data, 56)[0] * 1024
    for place in (ntfs.record_place(data, 3), mirror + 3 * 1024):
        at = data.index(struct.pack("<I", 0x70), place + 56, place + 1024)
        at += struct.unpack_from("<H", data, at + 20)[0]
        struct.pack_into("<H", data, at + 10, flags)


@pytest.mark.parametrize(
    ("flags", "words"), [(1, "marked dirty"), (0x4000, "chkdsk"), (2, "being resized")]
)
def test_flags_of_the_volume(plain: bytes, flags: int, words: str) -> None:
    data = bytearray(plain)
    set_flags(data, flags)
    assert words in refusal(data, NotAtRest)


def test_a_dirty_volume_is_dirty_to_ntfsinfo_too(plain: bytes, tmp_path: Path) -> None:
    data = bytearray(plain)
    set_flags(data, 1)
    (tmp_path / "a.img").write_bytes(data)
    assert b"dirty" in ntfs.run("ntfsinfo", "-f", "-m", tmp_path / "a.img").lower()


def log(data: bytearray, in_use: int, flags: int, major: int = 1) -> None:
    """Write two restart pages, the second newer."""
    rows = mapped(data).rows(2)
    place, size = int(rows.physical[0]), int(rows.length[0])
    for number in range(2):
        page, used = bytearray(4096), in_use if number else 0xFFFF
        lists = (0xFFFF, used) if used == 0 else (0, used)
        area = struct.pack("<QHHHHI", 100 + number, 1, *lists, flags, 67 - size.bit_length())
        area += struct.pack("<HHQIHHII", 208, 48, size, 0, 48, 64, 0, 0)
        area += struct.pack("<QQHHH6xI", 0, 0, 0xFFFF, 0xFFFF, 0, 8) + "NTFS".encode("utf-16-le")
        struct.pack_into("<4sHHQIIHhh", page, 0, b"RSTR", 30, 9, 0, 4096, 4096, 0x30, 1, major)
        page[0x30 : 0x30 + len(area)] = area
        page[30:32] = b"\x01\x00"
        for sector in range(8):
            page[sector * 512 + 510 : sector * 512 + 512] = b"\x01\x00"
        data[place + number * 4096 : place + (number + 1) * 4096] = page


def test_a_log_to_be_replayed(plain: bytes) -> None:
    data = bytearray(plain)
    log(data, 0, 0)
    assert "needs a replay" in refusal(data, NotAtRest)
    for in_use, flags in ((0xFFFF, 0), (0, 2)):
        data = bytearray(plain)
        log(data, in_use, flags)
        assert "/file" in set(mapped(data).names["path"])


def test_ntfs3g_judges_logs_alike(plain: bytes, tmp_path: Path) -> None:
    for in_use, flags, sound in ((0, 0, False), (0xFFFF, 0, True), (0, 2, True)):
        data = bytearray(plain)
        log(data, in_use, flags)
        (tmp_path / "a.img").write_bytes(data)
        said = ntfs.status("ntfslabel", tmp_path / "a.img", "label")  # opens it to write
        assert (b"unclean" in said) == (not sound), said
        assert at_rest(data) == sound


def test_windows_keeps_the_volume(plain: bytes) -> None:
    data = bytearray(plain)
    log(data, 0xFFFF, 0, major=2)
    assert "fast startup" in refusal(data, NotAtRest)


def test_a_log_of_rubbish(plain: bytes) -> None:
    data = bytearray(plain)
    place = int(mapped(data).rows(2).physical[0])
    data[place : place + 8192] = b"rubbish!" * 1024
    assert "no sound restart page" in refusal(data, NotAtRest)


@pytest.mark.parametrize("magic", [b"hibr", b"HIBR", b"RSTR"])
def test_a_hibernated_windows(plain: bytes, magic: bytes) -> None:
    data = bytearray(plain)
    volume = mapped(data)
    place = int(volume.rows(ntfs.inode_of(volume, "/hiberfil.sys")).physical[0])
    data[place : place + 4] = magic
    assert "hibernated" in refusal(data, NotAtRest)
    data[place : place + 4] = b"wake"
    mapped(data)


@pytest.mark.parametrize(
    ("offset", "value"),
    [(11, b"\x07\x00"), (13, b"\x03"), (13, b"\xc0"), (40, b"\xff" * 7), (48, b"\xff" * 7),
     (64, b"\x00"), (64, b"\x81"), (68, b"\x7f"), (56, b"\xff" * 7), (48, b"\x05")],
)  # fmt: skip
def test_a_damaged_boot_sector(plain: bytes, offset: int, value: bytes) -> None:
    data = bytearray(plain)
    data[offset : offset + len(value)] = value
    refusal(data)


def test_a_volume_that_was_cut(plain: bytes) -> None:
    assert "cut short" in refusal(bytearray(plain[: 10 * ntfs.MIB]))


def test_the_last_sector_may_be_missing(plain: bytes) -> None:
    volume = mapped(plain[:-512])
    assert volume.size == len(plain) - 512 and "/file" in set(volume.names["path"])


def test_behind_an_offset(plain: bytes) -> None:
    shifted = map_volume(ntfs.Memory(bytes(3 * 512) + plain + bytes(4096)), 3 * 512)
    volume = mapped(plain)
    inode = ntfs.inode_of(volume, "/file")
    assert shifted.read_file(inode) == volume.read_file(inode) == b"another" * 1000
    assert shifted.in_use.granularity == 512
    inner = shifted.in_use.to_bool()[3 : 3 + len(plain) // 512]
    assert (inner == np.repeat(volume.in_use.to_bool(), 2)).all()
    assert shifted.in_use.to_bool()[-8:].all()


def test_a_record_in_use_that_cannot_be_read(plain: bytes) -> None:
    data = bytearray(plain)
    inode = ntfs.inode_of(mapped(data), "/file")
    place = ntfs.record_place(data, inode)
    data[place : place + 4] = b"BAAD"
    volume = mapped(data)
    assert "/file" not in set(volume.names["path"])
    assert any(f"record {inode} " in words for words in volume.hidden)
    assert any("belong to no file" in words for words in volume.notes)


def test_a_name_that_only_the_folder_has(plain: bytes) -> None:
    data = bytearray(plain)
    inode = ntfs.inode_of(mapped(data), "/file")
    change(data, inode, "file".encode("utf-16-le"), "fail".encode("utf-16-le"))
    volume = mapped(data)
    assert {"/fail"} <= set(volume.names["path"])
    assert any(f"inode {inode} that it does not have" in words for words in volume.hidden)
    assert any("no folder has" in words for words in volume.notes)


def test_a_folder_below_itself(plain: bytes) -> None:
    """Its files are told of, and nothing turns in a circle."""
    data = bytearray(plain)
    volume = mapped(data)
    folder, below = ntfs.inode_of(volume, "/folder"), ntfs.inode_of(volume, "/folder/below")
    place = ntfs.record_place(data, below)
    parent = struct.pack("<Q", below | struct.unpack_from("<H", data, place + 16)[0] << 48)
    place = ntfs.record_place(data, folder)
    at = data.index(struct.pack("<Q", 5 | 5 << 48), place, place + 1024)
    data[at : at + 8] = parent
    volume = mapped(data)
    assert "/folder/below" not in set(volume.names["path"])
    assert any(f"inode {below} lies below a folder" in words for words in volume.hidden)


def test_a_parent_whose_record_was_used_again(plain: bytes) -> None:
    data = bytearray(plain)
    inode = ntfs.inode_of(mapped(data), "/folder/below/file")
    below = ntfs.inode_of(mapped(data), "/folder/below")
    place = ntfs.record_place(data, below)
    sequence = struct.unpack_from("<H", data, place + 16)[0]
    change(
        data, inode, struct.pack("<Q", below | sequence << 48), struct.pack("<Q", below | 9 << 48)
    )
    volume = mapped(data)
    assert any(f"inode {inode} names a folder that is not there" in w for w in volume.hidden)


def test_an_index_that_leads_to_itself(plain: bytes) -> None:
    data = bytearray(plain)
    rows = mapped(data).rows(5)
    place = int(rows.physical[0])
    first = place + 24 + struct.unpack_from("<I", data, place + 24)[0]
    length = struct.unpack_from("<H", data, first + 8)[0]
    # The first entry gets a node below it: the block itself.
    struct.pack_into("<H", data, first + 12, 1)
    struct.pack_into("<Q", data, first + length - 8, 0)
    start = time.monotonic()
    volume = mapped(data)
    assert time.monotonic() - start < 10 and 5 in volume.damaged


def test_an_attribute_list_that_lies(plain: bytes) -> None:
    data = bytearray(plain)
    volume = mapped(data)
    inode = ntfs.inode_of(volume, "/runs")
    records = [n for n in range(64, 200) if extends(data, n) == inode]
    assert len(records) > 1
    place = ntfs.record_place(data, records[0])
    struct.pack_into("<H", data, place + 16, 77)  # its sequence number
    volume = mapped(data)
    assert "attribute list" in volume.damaged[inode]
    with pytest.raises(InputError, match="attribute list"):
        volume.read_file(inode)


def extends(data: bytes | bytearray, record: int) -> int:
    place = ntfs.record_place(data, record)
    used = struct.unpack_from("<H", data, place + 22)[0] & 1
    return used and struct.unpack_from("<Q", data, place + 32)[0] & (1 << 48) - 1


def test_two_files_in_one_place(plain: bytes) -> None:
    data = bytearray(plain)
    volume = mapped(data)
    one, other = (ntfs.inode_of(volume, path) for path in ("/file", "/folder/below/file"))
    places = [ntfs.record_place(data, inode) for inode in (one, other)]
    at = [data.index(struct.pack("<I", 0x80), place + 56, place + 1024) for place in places]
    length = struct.unpack_from("<I", data, at[0] + 4)[0]
    assert length == struct.unpack_from("<I", data, at[1] + 4)[0]
    data[at[0] + 64 : at[0] + length] = data[at[1] + 64 : at[1] + length]
    volume = mapped(data)
    assert {one, other} <= set(volume.damaged)
    assert any("belong to no file" in words for words in volume.notes)


def test_bad_clusters_are_nobodys_data(plain: bytes, tmp_path: Path) -> None:
    """They are listed in $BadClus, allocated, and nothing that can be read."""
    data = bytearray(plain)
    free = int(np.flatnonzero(~mapped(data).in_use.to_bool())[100])
    first = b"\x02" + struct.pack("<H", free)
    bad = b"\x31\x01" + struct.pack("<I", free)[:3]
    managed = (len(data) - 512) // 1024
    rest = b"\x02" + struct.pack("<H", managed - free - 1)
    place = ntfs.record_place(data, 8)
    at = data.index(b"$\0B\0a\0d\0", place + 300, place + 1024)
    at = max(n for n in range(place, at, 8) if data[n : n + 4] == b"\x80\0\0\0" and data[n + 8])
    pairs_at = at + struct.unpack_from("<H", data, at + 32)[0]
    runs = first + bad + rest + b"\0"
    room = struct.unpack_from("<I", data, at + 4)[0] - (pairs_at - at)
    if len(runs) > room:  # make room: the attribute is the last of its record
        more = -(-(len(runs) - room) // 8) * 8
        end = at + struct.unpack_from("<I", data, at + 4)[0]
        data[end + more : end + more + 8] = data[end : end + 8]
        struct.pack_into("<I", data, at + 4, end - at + more)
        used = struct.unpack_from("<I", data, place + 24)[0]
        struct.pack_into("<I", data, place + 24, used + more)
    data[pairs_at : pairs_at + len(runs)] = runs
    bitmap = int(mapped(plain).rows(6).physical[0])
    data[bitmap + free // 8] |= 1 << free % 8
    volume = mapped(data)
    assert volume.damaged == {}
    rows = volume.rows(8)
    assert rows.physical[rows.kind == RESERVED].tolist() == [free * 1024]
    assert volume.owner(free * 1024) == "<$BadClus>"
    assert not volume.in_use.to_bool()[free]
    (tmp_path / "a.img").write_bytes(data)
    found = ntfs.described(tmp_path / "a.img", 8)
    assert (free, free, 1) in [run for attribute in found for run in attribute.runs]


def test_version_and_image_file(plain: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.img").write_bytes(plain)
    with open_image(tmp_path / "a.img") as image:
        volume = map_volume(image, names=False)
    assert volume.fs == "ntfs" and len(volume.uuid) == 16 and volume.notes == []
    data = bytearray(plain)
    place = ntfs.record_place(data, 3)
    at = data.index(struct.pack("<I", 0x70), place + 56, place + 1024)
    at += struct.unpack_from("<H", data, at + 20)[0]
    data[at + 8] = 4
    assert "NTFS 4.1" in refusal(data)
