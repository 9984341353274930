"""The qcow2 writer and reader against each other, against plain bytes, and against QEMU."""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
import tempfile
import time
import tracemalloc
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cbtlab import qcow2
from cbtlab.bitmap import Bitmap
from cbtlab.errors import InputError
from cbtlab.images import image_digest, open_image
from cbtlab.qcow2 import layout

needs_qemu = pytest.mark.skipif(not shutil.which("qemu-img"), reason="qemu-img is not installed")

Bytes = np.ndarray[Any, np.dtype[np.uint8]]


def qemu(*arguments: object) -> str:
    command = ["qemu-img", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def clean(path: Path) -> None:
    """QEMU finds no error, no leak, and every refcount right."""
    found = json.loads(qemu("check", "--output=json", path))
    assert found["check-errors"] == 0
    assert not found.get("corruptions") and not found.get("leaks")


def content(size: int, seed: int, top: int = 256) -> Bytes:
    return np.random.default_rng(seed).integers(0, top, size, dtype=np.uint8)


def write_over(path: Path, base: Bytes, data: Bytes, cluster: int, **options: Any) -> Bytes:
    """Write a random top over ``base``; return what the disk must read as."""
    size, rng = len(data), np.random.default_rng(len(data) + cluster)
    blocks = -(-size // cluster)
    stored, zero = rng.random(blocks) < 0.4, rng.random(blocks) < 0.3
    qcow2.write(
        path,
        size,
        cluster,
        Bitmap.from_bool(stored, size, cluster),
        Bitmap.from_bool(zero, size, cluster),
        lambda offset, length: data[offset : offset + length],
        **options,
    )
    expected = base.copy()
    expected[np.repeat(zero, cluster)[:size]] = 0
    where = np.repeat(stored, cluster)[:size]
    expected[where] = data[where]
    return expected


@needs_qemu
@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize(
    ("cluster", "size"),
    [(512, 1 << 20), (512, (600 << 10) + 512), (4096, 9 << 20), (65536, (5 << 20) + 1536),
     (2 << 20, 11 << 20)],
)  # fmt: skip
def test_qemu_reads_what_was_written(
    tmp_path: Path, cluster: int, size: int, compress: bool
) -> None:
    base, top = content(size, 1, top=4), content(size, 2)
    full = Bitmap.full(size, cluster)
    read = lambda offset, length: base[offset : offset + length]  # noqa: E731
    qcow2.write(tmp_path / "base.qcow2", size, cluster, full, None, read, compress=compress)
    expected = write_over(
        tmp_path / "top.qcow2", base, top, cluster, backing="base.qcow2", compress=compress
    )
    for name, wanted in (("base.qcow2", base), ("top.qcow2", expected)):
        clean(tmp_path / name)
        qemu("convert", "-O", "raw", tmp_path / name, tmp_path / "out.raw")
        assert (tmp_path / "out.raw").read_bytes() == wanted.tobytes()
        with open_image(tmp_path / name) as image:
            assert image.read(0, size) == wanted.tobytes()
    about = json.loads(qemu("info", "--output=json", tmp_path / "top.qcow2"))
    assert about["backing-filename"] == "base.qcow2"
    assert about["backing-filename-format"] == "qcow2"
    assert about["virtual-size"] == size


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_a_stack_of_images_reads_as_plain_bytes(data: st.DataObject) -> None:
    """Random stored and zero sets, clusters and sizes, over random layers, against a byte array."""
    with tempfile.TemporaryDirectory() as folder:
        size = data.draw(st.integers(1, 40)) * 512
        expected = np.zeros(size, np.uint8)
        below: str | None = None
        for number in range(data.draw(st.integers(1, 4))):
            cluster = data.draw(st.sampled_from([512, 1024, 4096]))
            blocks = -(-size // cluster)
            kinds = np.array(
                data.draw(st.lists(st.sampled_from("-sz"), min_size=blocks, max_size=blocks))
            )
            fresh = content(size, data.draw(st.integers(0, 99)), data.draw(st.sampled_from([1, 9])))
            name = f"{number}.qcow2"
            qcow2.write(
                Path(folder, name),
                size,
                cluster,
                Bitmap.from_bool(kinds == "s", size, cluster),
                Bitmap.from_bool(kinds == "z", size, cluster),
                lambda offset, length, fresh=fresh: fresh[offset : offset + length],
                backing=below,
                compress=data.draw(st.booleans()),
                detect_zeros=data.draw(st.booleans()),
            )
            below = name
            expected[np.repeat(kinds == "z", cluster)[:size]] = 0
            where = np.repeat(kinds == "s", cluster)[:size]
            expected[where] = fresh[where]
        with open_image(Path(folder, name)) as image:
            assert image.read(0, size) == expected.tobytes()
            offset = data.draw(st.integers(0, size))
            length = data.draw(st.integers(0, size))
            assert image.read(offset, length) == expected[offset : offset + length].tobytes()


@needs_qemu
def test_what_is_stored_zero_and_absent_is_told_apart(tmp_path: Path) -> None:
    size, cluster = 64 << 10, 4096
    units = Bitmap.from_indices([0, 5], size, cluster)
    zeros = Bitmap.from_indices([2, 5], size, cluster)
    plain = lambda offset, length: b"\1" * length  # noqa: E731
    qcow2.write(tmp_path / "base.qcow2", size, cluster, Bitmap.full(size, cluster), None, plain)
    qcow2.write(tmp_path / "top.qcow2", size, cluster, units, zeros, plain, "base.qcow2")
    spans = json.loads(qemu("map", "--output=json", tmp_path / "top.qcow2"))
    own = {
        (s["start"] // cluster, s["length"] // cluster, s["zero"]) for s in spans if not s["depth"]
    }
    assert own == {(0, 1, False), (2, 1, True), (5, 1, False)}


@needs_qemu
def test_zero_clusters_of_a_read_take_no_space(tmp_path: Path) -> None:
    size, cluster = 32 << 20, 4096
    path = tmp_path / "sparse.qcow2"
    qcow2.write(path, size, cluster, Bitmap.full(size, cluster), None, lambda o, n: None)
    assert path.stat().st_size > size
    assert path.stat().st_blocks * 512 < 1 << 20  # plain: allocated in the image, holes in the file
    clean(path)
    empty = lambda offset, length: bytes(length)  # noqa: E731
    qcow2.write(path, size, cluster, Bitmap.full(size, cluster), None, empty, detect_zeros=True)
    assert path.stat().st_size < 1 << 20
    clean(path)


@needs_qemu
def test_a_foreign_header_extension_does_not_disturb_qemu(tmp_path: Path) -> None:
    path = tmp_path / "own.qcow2"
    units = Bitmap.full(4096, 512)
    qcow2.write(
        path, 4096, 512, units, None, lambda o, n: b"x" * n, extensions={0x43425431: b'{"k":1}'}
    )
    clean(path)
    fd = os.open(path, os.O_RDONLY)
    assert qcow2.read_header(fd, "own").extensions == {0x43425431: b'{"k":1}'}
    os.close(fd)


def test_nothing_is_left_when_the_reader_fails(tmp_path: Path) -> None:
    def broken(offset: int, length: int) -> bytes:
        raise InputError("source", "is gone")

    with pytest.raises(InputError, match="is gone"):
        qcow2.write(tmp_path / "a.qcow2", 8192, 4096, Bitmap.full(8192, 4096), None, broken)
    assert not list(tmp_path.iterdir())


def test_a_disk_too_large_for_its_clusters_is_refused(tmp_path: Path) -> None:
    size = 16 << 40
    with pytest.raises(InputError, match="larger than 4096"):
        units = Bitmap(size, 1 << 20)
        qcow2.write(tmp_path / "a.qcow2", size, 4096, units, None, lambda o, n: None)


def test_clusters_that_share_one_compressed_cluster(tmp_path: Path) -> None:
    """No writer makes them so, but the format allows it; read from within a cluster, too."""
    data = content(4096, 3, top=3)
    read = lambda offset, length: np.resize(data, length)  # noqa: E731
    path, base = tmp_path / "top.qcow2", tmp_path / "base.qcow2"
    qcow2.write(base, 16384, 512, Bitmap(16384, 512), None, read)
    units = Bitmap.from_indices([0], 16384, 4096)
    qcow2.write(path, 16384, 4096, units, None, read, "base.qcow2", compress=True)
    image = bytearray(path.read_bytes())
    image[8192 + 8 : 8192 + 16] = image[8192 : 8192 + 8]  # the second L2 entry
    path.write_bytes(image)
    expected = np.tile(data, 2).tobytes()
    with open_image(path) as opened:
        for offset in (0, 512, 4096, 5120):
            loaded = opened.load(offset, 8192 - offset)
            assert loaded is not None and loaded.tobytes() == expected[offset:]
        assert opened.load(8192, 4096) is None


# Damage -----------------------------------------------------------------------------------------


def header(**changes: int) -> bytes:
    """A header of version 3 with an L1 table at 4096, one value changed."""
    names = [
        "magic",
        "version",
        "backing",
        "backing_length",
        "bits",
        "size",
        "encryption",
        "l1_entries",
        "l1_offset",
        "refcount",
        "clusters",
        "snapshots",
        "snapshot_offset",
    ]
    values: dict[str, Any] = dict.fromkeys(names, 0)
    values |= {"magic": layout.MAGIC, "version": 3, "bits": 12, "size": 1 << 20}
    values |= {"l1_entries": 1, "l1_offset": 4096}
    extra = {"incompatible": 0, "compatible": 0, "autoclear": 0, "order": 4, "length": 112}
    values |= {key: value for key, value in changes.items() if key in values}
    extra |= {key: value for key, value in changes.items() if key in extra}
    packed = layout.HEADER.pack(*values.values()) + layout.HEADER_3.pack(*extra.values())
    return packed + bytes([changes.get("compression", 0)]) + bytes(7)


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"version": 4}, "version 4"),
        ({"version": 1}, "version 1"),
        ({"bits": 8}, "2.8 bytes"),
        ({"bits": 22}, "2.22 bytes"),
        ({"bits": 2**32 - 1}, "bytes"),
        ({"size": 0}, "virtual size of 0"),
        ({"size": 2**64 - 1}, "virtual size"),
        ({"size": 2**62}, "L1 entries"),
        ({"size": 4 << 20}, "1 L1 entries where its size needs 2"),
        ({"encryption": 1}, "encrypted"),
        ({"l1_offset": 4097}, "L1 table outside"),
        ({"l1_offset": 1 << 40}, "L1 table outside"),
        ({"incompatible": 2}, "marked corrupt"),
        ({"incompatible": 4}, "another file"),
        ({"incompatible": 8, "compression": 7}, "unknown compression type 7"),
        ({"incompatible": 16}, "subclusters"),
        ({"incompatible": 32}, "unknown here"),
        ({"autoclear": 2}, "another file"),
        ({"order": 7}, "refcount order 7"),
        ({"length": 2**32 - 1}, "header of"),
        ({"backing": 5000, "backing_length": 4}, "outside of the header"),
        ({"backing": 112, "backing_length": 2**32 - 1}, "outside of the header"),
        ({"backing": 112, "backing_length": 4}, "zero byte"),
    ],
)
def test_headers_that_cannot_be_are_refused_by_name(
    tmp_path: Path, changes: dict[str, int], fault: str
) -> None:
    path = tmp_path / "hostile.qcow2"
    path.write_bytes(header(**changes).ljust(8192, b"\0"))
    with pytest.raises(InputError, match=fault) as caught:
        open_image(path)
    assert caught.value.piece == str(path)


def test_the_constructed_header_is_right_unchanged(tmp_path: Path) -> None:
    path = tmp_path / "fine.qcow2"
    path.write_bytes(header().ljust(8192, b"\0"))
    with open_image(path) as image:
        assert image.size == 1 << 20
        assert list(image.chunks()) == [(0, None)]


def test_a_claimed_size_takes_no_memory(tmp_path: Path) -> None:
    """Half an exabyte in a file of 32 MiB that is one hole."""
    path = tmp_path / "huge.qcow2"
    with path.open("wb") as file:
        file.write(header(size=1 << 59, bits=21, l1_offset=2 << 20, l1_entries=1 << 20))
        file.truncate(34 << 20)
    tracemalloc.start()
    with open_image(path) as image:
        assert image.read((1 << 59) - 10, 100) == bytes(10)
        assert image.load(1 << 58, 4 << 20) is None
    assert tracemalloc.get_traced_memory()[1] < 64 << 20
    tracemalloc.stop()


def test_a_compressed_bomb_stops_at_its_cluster(tmp_path: Path) -> None:
    packer = zlib.compressobj(9, zlib.DEFLATED, -12)
    bomb = packer.compress(bytes(64 << 20)) + packer.flush()
    path = tmp_path / "bomb.qcow2"
    cluster, bits = 2 << 20, 21
    sectors = len(bomb) // 512
    entry = 1 << 62 | sectors << (62 - (bits - 8)) | 3 * cluster
    l1, l2 = struct.pack(">Q", 2 * cluster), struct.pack(">Q", entry)
    with path.open("wb") as file:
        file.write(header(bits=bits, size=cluster, l1_offset=cluster))
        for place, data in ((cluster, l1), (2 * cluster, l2), (3 * cluster, bomb)):
            file.seek(place)
            file.write(data)
    tracemalloc.start()
    with open_image(path) as image:
        assert image.read(0, cluster) == bytes(cluster)
    assert tracemalloc.get_traced_memory()[1] < 32 << 20
    tracemalloc.stop()


@pytest.fixture(scope="module", params=["plain", "packed"])
def sample(request: pytest.FixtureRequest) -> Iterator[tuple[Path, bytes, bytes]]:
    """An image over another one, its bytes, and its content."""
    with tempfile.TemporaryDirectory() as folder:
        base, top = content(48 << 10, 5, 3), content(48 << 10, 6, 5)
        read = lambda offset, length: base[offset : offset + length]  # noqa: E731
        path = Path(folder, "top.qcow2")
        qcow2.write(path.with_name("base.qcow2"), len(base), 512, Bitmap.full(len(base), 512),
                    None, read)  # fmt: skip
        expected = write_over(
            path, base, top, 512, backing="base.qcow2", compress=request.param == "packed"
        )
        yield path, path.read_bytes(), expected.tobytes()


def read_all(path: Path) -> bytes | None:
    try:
        with open_image(path) as image:
            return image.read(0, min(image.size, 1 << 24))
    except InputError as error:
        assert "\n" not in str(error)
        assert str(path.parent) in str(error)
        return None


def test_a_cut_image_is_refused_or_still_right(sample: tuple[Path, bytes, bytes]) -> None:
    path, data, expected = sample
    answers = []
    for length in {*range(0, 200, 7), *range(200, len(data), 997), len(data) - 1}:
        path.write_bytes(data[:length])
        if not length:
            continue
        found = read_all(path)
        if data[:4] == data[:length][:4]:  # shorter ones are raw images of a few bytes
            assert found in (None, expected)
            answers.append(found)
    assert None in answers and expected in answers  # what is cut at the end is the refcounts
    path.write_bytes(data)


def test_flipped_bits_never_end_in_a_traceback(sample: tuple[Path, bytes, bytes]) -> None:
    path, data, expected = sample
    rng, refused, begin = np.random.default_rng(9), 0, time.monotonic()
    metadata = list(range(112)) + rng.integers(112, 4096, 300).tolist()
    for place in metadata + rng.integers(0, len(data), 200).tolist():
        broken = bytearray(data)
        broken[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(broken)
        refused += read_all(path) is None
    path.write_bytes(data)
    assert refused > 20
    assert read_all(path) == expected
    assert time.monotonic() - begin < 60


def test_overwritten_tables_never_end_in_a_traceback(sample: tuple[Path, bytes, bytes]) -> None:
    path, data, _ = sample
    rng = np.random.default_rng(10)
    for _ in range(300):
        broken = bytearray(data)
        place = int(rng.integers(0, 4000)) & ~7
        broken[place : place + 8] = rng.bytes(8) if rng.random() < 0.5 else b"\xff" * 8
        path.write_bytes(broken)
        read_all(path)
    path.write_bytes(data)


def test_the_digest_is_that_of_the_bytes(sample: tuple[Path, bytes, bytes]) -> None:
    import hashlib

    path, _, expected = sample
    with open_image(path) as image:
        assert image_digest(image) == hashlib.sha256(expected).hexdigest()
