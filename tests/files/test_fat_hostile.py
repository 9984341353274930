"""FAT images that are built to cost time or memory: an answer or a refusal, and soon."""

from __future__ import annotations

import struct
import time
from pathlib import Path

import fat_images as fat
import numpy as np
import pytest

from cbtlab.errors import InputError
from cbtlab.files import map_volume

pytestmark = fat.needs("mkfs.fat")
_SECONDS = 10


@pytest.fixture()
def image(tmp_path: Path) -> bytearray:
    """FAT16 with clusters of 512 bytes, almost as many as there can be."""
    path = fat.make(tmp_path / "a.img", 32 * fat.MIB, "-F", "16", "-s", "1", "-r", "512")
    return bytearray(path.read_bytes())


def layout(data: bytearray) -> tuple[int, int, int, int]:
    """The table's place and size, the root folder's and the first cluster's place."""
    reserved, fats, roots = struct.unpack_from("<HBH", data, 14)
    size = struct.unpack_from("<H", data, 22)[0] * 512
    root = reserved * 512 + fats * size
    return reserved * 512, size, root, root + roots * 32


def link(data: bytearray, table: np.ndarray) -> None:
    """Write all entries from the third on, in both tables."""
    place, size, _, _ = layout(data)
    for start in (place, place + size):
        data[start + 4 : start + 4 + 2 * len(table)] = table.astype("<u2").tobytes()


def record(name: bytes, attributes: int, cluster: int, size: int) -> bytes:
    return struct.pack("<11sB14xHI", name, attributes, cluster, size)


def itself(cluster: int) -> bytes:
    """The first record of a folder."""
    return record(b".          ", 0x10, cluster, 0)


def timed(data: bytearray) -> float:
    start = time.monotonic()
    volume = map_volume(fat.Memory(data))
    volume.owners(np.arange(0, len(data), 512))
    return time.monotonic() - start


def test_a_file_of_all_clusters_in_the_worst_order(image: bytearray) -> None:
    """No two clusters of its chain are neighbours: as many extents as clusters."""
    _, _, root, _ = layout(image)
    count = 60_000
    order = np.random.default_rng(1).permutation(count) + 2
    table = np.empty(count, np.int64)
    table[order[:-1] - 2] = order[1:]
    table[order[-1] - 2] = 0xFFFF
    link(image, table)
    image[root : root + 32] = record(b"ALL     BIN", 0x20, int(order[0]), count * 512)
    volume = map_volume(fat.Memory(image))
    rows = volume.rows(root // 32)
    assert rows.length.sum() == count * 512 and volume.damaged == {}
    first = layout(image)[3]
    runs = [(p - first) // 512 + 2 for p in rows.physical[:50].tolist()]
    assert runs == [c for c in order.tolist() if c in runs][: len(runs)]
    assert timed(image) < _SECONDS


def test_many_files_that_share_one_long_chain(image: bytearray) -> None:
    _, _, root, heap = layout(image)
    chain = np.arange(3, 60_003)
    chain[2000:-1:2], chain[2001::2] = 0xFFFF, 0xFFFF
    chain[:2000] = np.arange(3, 2003)
    order = np.concatenate((np.arange(3000, 60_000, 2), np.arange(3001, 60_000, 2)))
    chain[order[:-1] - 2] = order[1:]
    chain[order[-1] - 2] = 0xFFFF
    chain[1998] = 0xFFFF  # the folder: clusters 2 to 2000
    link(image, chain)
    image[root : root + 32] = record(b"FOLDER     ", 0x10, 2, 0)
    files = itself(2) + b"".join(
        record(b"%08d   " % number, 0x20, 3000, len(order) * 512) for number in range(16 * 1998 - 1)
    )
    image[heap : heap + len(files)] = files
    volume = map_volume(fat.Memory(image))
    assert len(volume.damaged) == 16 * 1998 - 1
    assert len(volume.extents) < 100_000
    assert timed(image) < _SECONDS


def test_folders_in_each_other_without_end(image: bytearray) -> None:
    _, _, root, heap = layout(image)
    link(image, np.full(60_000, 0xFFFF))
    image[root : root + 32] = record(b"D          ", 0x10, 2, 0)
    for cluster in range(2, 60_000):
        at = heap + (cluster - 2) * 512
        image[at : at + 64] = itself(cluster) + record(b"D          ", 0x10, cluster + 1, 0)
    start = time.monotonic()
    with pytest.raises(InputError, match="deep in each other"):
        map_volume(fat.Memory(image))
    assert time.monotonic() - start < _SECONDS


def test_a_folder_of_all_clusters(image: bytearray) -> None:
    _, _, root, _ = layout(image)
    link(image, np.append(np.arange(3, 60_002), 0xFFFF))
    image[root : root + 32] = record(b"D          ", 0x10, 2, 0)
    with pytest.raises(InputError, match="more than 65536 records"):
        map_volume(fat.Memory(image))


def test_all_clusters_lead_to_one(image: bytearray) -> None:
    _, _, root, _ = layout(image)
    link(image, np.full(60_000, 2))
    image[root : root + 32] = record(b"LOOP    BIN", 0x20, 60_000, 1 << 20)
    volume = map_volume(fat.Memory(image))
    assert list(volume.damaged) == [root // 32]
    assert timed(image) < _SECONDS
