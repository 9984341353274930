"""Images made by QEMU and by hand, read, compared and refused."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cbtlab import qcow2
from cbtlab.bitmap import Bitmap
from cbtlab.errors import InputError
from cbtlab.images import Image, LayeredImage, RawImage, differing, image_digest, open_image
from cbtlab.images.base import Bytes

needs_qemu = pytest.mark.skipif(
    not (shutil.which("qemu-img") and shutil.which("qemu-io")),
    reason="qemu-img and qemu-io are not installed",
)

SIZE = (3 << 20) + 512 * 5
OPTIONS = [
    "", "compat=0.10", "cluster_size=512", "cluster_size=4096", "cluster_size=2M",
    "preallocation=metadata", "preallocation=full", "extended_l2=on",
    "extended_l2=on,cluster_size=16k", "lazy_refcounts=on", "refcount_bits=1",
    "compression_type=zstd", "compression_type=zstd,cluster_size=4096",
]  # fmt: skip


def run(*command: object) -> str:
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def scribble(path: Path, rng: random.Random, count: int) -> None:
    """Let qemu-io write, zero and discard at random places."""
    commands = []
    for _ in range(count):
        offset = rng.randrange(SIZE // 512) * 512
        length = min(rng.choice([512, 4096, 65536, 300 * 512]), SIZE - offset)
        what = rng.choice([f"write -P {rng.randrange(1, 255)}"] * 3 + ["write -z", "discard"])
        commands += ["-c", f"{what} {offset} {length}"]
    run("qemu-io", "-f", "qcow2", *commands, path)


@needs_qemu
@pytest.mark.parametrize("options", OPTIONS, ids=lambda text: text or "default")
def test_reads_what_qemu_reads(tmp_path: Path, options: str) -> None:
    """Written, backed, converted with compression, and backed again."""
    rng = random.Random(options)
    first, second, packed, third = (tmp_path / f"{name}.qcow2" for name in "abcd")
    plain = ",".join(part for part in options.split(",") if not part.startswith("prealloc"))
    given = ["-o", options] if options else []
    later = ["-o", plain] if plain else []
    run("qemu-img", "create", "-q", "-f", "qcow2", *given, first, SIZE)
    scribble(first, rng, 12)
    run("qemu-img", "create", "-q", "-f", "qcow2", *later, "-b", first.name, "-F", "qcow2", second)
    scribble(second, rng, 8)
    run("qemu-img", "convert", "-c", "-O", "qcow2", *later, second, packed)
    run("qemu-img", "create", "-q", "-f", "qcow2", "-b", packed.name, "-F", "qcow2", third)
    scribble(third, rng, 4)
    for path in (first, second, packed, third):
        run("qemu-img", "convert", "-O", "raw", path, tmp_path / "out.raw")
        expected = (tmp_path / "out.raw").read_bytes()
        with open_image(path) as image, open_image(tmp_path / "out.raw") as raw:
            assert image.read(0, image.size) == expected
            assert not differing(image, raw, 512).any()
            for _ in range(50):
                offset, length = rng.randrange(SIZE), rng.randrange(100_000)
                assert image.read(offset, length) == expected[offset : offset + length]


@needs_qemu
@pytest.mark.parametrize("kind", ["raw", "qcow2"])
@pytest.mark.parametrize("short", [1 << 20, (1 << 20) + 512, 70_000])
def test_past_a_shorter_backing_file_it_reads_zero(tmp_path: Path, kind: str, short: int) -> None:
    base, middle, top = tmp_path / "base", tmp_path / "middle.qcow2", tmp_path / "top.qcow2"
    data = np.random.default_rng(1).integers(1, 256, 2 << 20, dtype=np.uint8).tobytes()
    raw = tmp_path / "raw"
    raw.write_bytes(data)
    run("qemu-img", "convert", "-O", kind, "-f", "raw", raw, base)
    run("qemu-img", "create", "-q", "-f", "qcow2", "-b", "base", "-F", kind, middle, short)
    run("qemu-img", "create", "-q", "-f", "qcow2", "-b", middle.name, "-F", "qcow2", top, "4M")
    seen = -(-short // 512) * 512
    with open_image(top) as image:
        assert image.size == 4 << 20
        assert image.read(0, 4 << 20) == data[:seen].ljust(4 << 20, b"\0")


def test_raw_with_holes(tmp_path: Path) -> None:
    path = tmp_path / "disk.raw"
    with path.open("wb") as file:
        file.truncate(20 << 20)
        file.seek(9 << 20)
        file.write(b"here")
    with open_image(path) as image:
        assert isinstance(image, RawImage)
        assert [offset for offset, data in image.chunks() if data is not None] == [8 << 20]
        assert image.read((9 << 20) - 2, 8) == b"\0\0here\0\0"
        assert image.read(20 << 20, 5) == b""
        with pytest.raises(ValueError, match="read of"):
            image.read(-1, 5)
        assert image_digest(image) == hashlib.sha256(path.read_bytes()).hexdigest()


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def layer(path: Path, backing: str | None, kind: str = "qcow2") -> Path:
    empty = Bitmap(1 << 20, 4096)
    qcow2.write(path, 1 << 20, 4096, empty, None, lambda o, n: None, backing, backing_format=kind)
    return path


@pytest.mark.parametrize(
    ("backing", "fault"),
    [
        ("/etc/hostname", "names the backing file"),
        ("json:{}", "names the backing file"),
        ("nbd:localhost:10809", "names the backing file"),
        ("nbd://localhost/", "names the backing file"),
        ("../outside.raw", "which leaves"),
        ("link.raw", "which leaves"),
        ("missing.qcow2", "is missing"),
        ("own.qcow2", "backed by itself"),
        ("loop.qcow2", "backed by itself"),
        ("folder", "no file and no block device"),
        ("pipe", "no file and no block device"),
        ("short.qcow2", "is no qcow2 image"),
    ],
)
def test_backing_files_stay_in_the_folder(tmp_path: Path, backing: str, fault: str) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (tmp_path / "outside.raw").write_bytes(bytes(1 << 20))
    (home / "link.raw").symlink_to(tmp_path / "outside.raw")
    (home / "folder").mkdir()
    os.mkfifo(home / "pipe")
    (home / "short.qcow2").write_bytes(b"QFI\xfb")
    layer(home / "loop.qcow2", "own.qcow2")
    layer(home / "own.qcow2", backing)
    before = open_files()
    with pytest.raises(InputError, match=fault):
        open_image(home / "own.qcow2")
    assert open_files() == before


def test_a_wider_root_may_be_given(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "base.raw").write_bytes(b"\7" * (1 << 20))
    path = layer(tmp_path / "images" / "top.qcow2", "../base.raw", "raw")
    with pytest.raises(InputError, match="leaves"):
        open_image(path)
    with open_image(path, root=tmp_path) as image:
        assert image.read(5, 3) == b"\7\7\7"


def test_a_backing_file_said_to_be_raw_is_not_looked_into(tmp_path: Path) -> None:
    layer(tmp_path / "base.qcow2", None)
    path = layer(tmp_path / "top.qcow2", "base.qcow2", "raw")
    with open_image(path) as image:
        assert image.read(0, 4) == b"QFI\xfb"


def test_too_long_a_chain_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cbtlab.images.MAX_LAYERS", 5)
    for number in range(6):
        layer(tmp_path / f"{number}", f"{number - 1}" if number else None)
    open_image(tmp_path / "4").close()
    with pytest.raises(InputError, match="more than 5 files"):
        open_image(tmp_path / "5")


@pytest.mark.parametrize(
    ("start", "fault"),
    [
        (b"KDMV\1\0\0\0", "is a VMDK image"),
        (b"vhdxfile", "is a VHDX image"),
        (b"", "is empty"),
    ],
)
def test_other_kinds_are_refused(tmp_path: Path, start: bytes, fault: str) -> None:
    path = tmp_path / "disk"
    path.write_bytes(start.ljust(4096, b"\0") if start else b"")
    with pytest.raises(InputError, match=fault):
        open_image(path)


def test_e01_without_its_library_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyewf", None)
    path = tmp_path / "disk.E01"
    path.write_bytes(b"EVF\x09\x0d\x0a\xff\x00".ljust(4096, b"\0"))
    with pytest.raises(InputError, match="pip install libewf-python"):
        open_image(path)


def test_e01_is_read_through_its_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in for libewf: what is asked of it, and what its errors become."""
    data = np.random.default_rng(3).bytes(300_000)

    class Handle:
        def open(self, names: list[str]) -> None:
            if "bad" in names[0]:
                raise OSError("invalid section")

        def get_media_size(self) -> int:
            return len(data)

        def read_buffer_at_offset(self, length: int, offset: int) -> bytes:
            if offset >= 200_000:
                raise OSError("corrupt chunk")
            return data[offset : offset + length]

        def close(self) -> None:
            pass

    stand_in = SimpleNamespace(handle=Handle, glob=lambda name: [name])
    monkeypatch.setitem(sys.modules, "pyewf", stand_in)
    for name in ("good.E01", "bad.E01"):
        (tmp_path / name).write_bytes(b"EVF\x09\x0d\x0a\xff\x00")
    with open_image(tmp_path / "good.E01") as image:
        assert image.size == 300_000
        assert image.read(1000, 150_000) == data[1000:151_000]
        with pytest.raises(InputError, match="corrupt chunk"):
            image.read(270_000, 10)
    with pytest.raises(InputError, match="invalid section"):
        open_image(tmp_path / "bad.E01")


@pytest.mark.parametrize("name", ["missing", "folder", "pipe", "a\0b", "x" * 300])
def test_what_is_no_file_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError):
        open_image(tmp_path / name)


class Memory(Image):
    """A disk in memory; pieces that are zero are known to be so."""

    def __init__(self, data: bytes) -> None:
        super().__init__("memory", len(data))
        self.data = np.frombuffer(data, np.uint8)

    def load(self, offset: int, length: int) -> Bytes | None:
        piece = self.data[offset : offset + length]
        return piece.copy() if piece.any() else None

    def close(self) -> None:
        pass


@settings(max_examples=200, deadline=None)
@given(
    blocks=st.lists(st.sampled_from(["same", "zero", "left", "right", "both"]), max_size=20),
    tail=st.integers(1, 1024),
    granularity=st.sampled_from([512, 1024, 4096]),
)
def test_differing_is_the_slow_comparison(blocks: list[str], tail: int, granularity: int) -> None:
    rng = np.random.default_rng(len(blocks) * tail)
    one, two = bytearray(), bytearray()
    for block in [*blocks, "both"]:
        piece = rng.bytes(512)
        odd = bytearray(piece)
        odd[int(rng.integers(512))] ^= 1
        one += bytes(512) if block in ("zero", "right") else piece
        two += bytes(512) if block in ("zero", "left") else (odd if block == "both" else piece)
    length = max(1, len(one) - tail % 512)
    left, right = bytes(one[:length]), bytes(two[:length])
    expected = [
        left[at : at + granularity] != right[at : at + granularity]
        for at in range(0, length, granularity)
    ]
    assert differing(Memory(left), Memory(right), granularity).to_bool().tolist() == expected


def test_differing_over_several_chunks() -> None:
    size = (9 << 20) + 700
    left = np.zeros(size, np.uint8)
    right = left.copy()
    right[[0, 4095, 5 << 20, size - 1]] = 1
    found = differing(Memory(left.tobytes()), Memory(right.tobytes()), 4096)
    assert found.indices().tolist() == [0, (5 << 20) // 4096, (9 << 20) // 4096]
    with pytest.raises(InputError, match="has 1 bytes"):
        differing(Memory(left.tobytes()), Memory(b"x"), 4096)


def test_what_two_images_share_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size, cluster = 8 << 20, 4096
    data = np.random.default_rng(2).integers(0, 256, size, dtype=np.uint8)
    fresh = np.random.default_rng(4).integers(0, 256, size, dtype=np.uint8)
    fresh[5 << 20 : 6 << 20] = data[5 << 20 : 6 << 20]
    units = Bitmap.from_indices([3, 700, (5 << 20) // cluster], size, cluster)
    zero = Bitmap.from_indices([1800], size, cluster)
    base, top = tmp_path / "base.qcow2", tmp_path / "top.qcow2"
    qcow2.write(base, size, cluster, Bitmap.full(size, cluster), None, lambda o, n: data[o : o + n])
    qcow2.write(top, size, cluster, units, zero, lambda o, n: fresh[o : o + n], base.name)
    loads: list[int] = []
    load = LayeredImage.load

    def counted(self: LayeredImage, offset: int, length: int) -> Bytes | None:
        loads.append(offset >> 20)
        return load(self, offset, length)

    monkeypatch.setattr(LayeredImage, "load", counted)
    with open_image(base) as one, open_image(top) as two:
        assert differing(one, two, cluster).indices().tolist() == [3, 700, 1800]
        assert differing(two, one, 512) == differing(one, two, 512)
    assert set(loads) == {0, 2, 5, 7}


def test_a_read_that_fails_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "disk.qcow2"
    qcow2.write(path, 8192, 4096, Bitmap.full(8192, 4096), None, lambda o, n: b"x" * n)
    image = open_image(path)
    image.close()
    with pytest.raises(InputError, match=r"disk\.qcow2: cannot be read"):
        image.read(0, 1)
