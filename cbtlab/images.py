"""Disk images as one seekable reader: raw, qcow2 with its backing files, E01.

``open_image`` looks at a file and returns an ``Image``.  A reader never
guesses: a file that is cut, altered or of a kind that is not known here ends
in an InputError that names it.  Backing files are followed only inside the
folder of the image.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Iterator
from math import gcd
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cbtlab.bitmap import Bitmap
from cbtlab.errors import InputError
from cbtlab.qcow2.layout import MAGIC
from cbtlab.qcow2.reader import DATA, HOLE, PACKED, ZEROS, Hosts, Kinds, Qcow2Layer

CHUNK = 4 << 20
PAGE = 64 << 10
PAGES_KEPT = 256
MAX_LAYERS = 500

Bytes = NDArray[np.uint8]


class Image(ABC):
    """A disk of ``size`` bytes that can be read at any offset; a context manager."""

    name: str
    size: int

    def __init__(self, name: str, size: int) -> None:
        self.name = name
        self.size = size
        self._pages: OrderedDict[int, bytes] = OrderedDict()

    @abstractmethod
    def load(self, offset: int, length: int) -> Bytes | None:
        """Return ``length`` bytes inside the disk as a fresh array; None: all zero, not read."""

    @abstractmethod
    def close(self) -> None:
        """Close the files below."""

    def read(self, offset: int, length: int) -> bytes:
        """Return the bytes at ``offset``, fewer at the disk's end; small reads are cached."""
        if offset < 0 or length < 0:
            raise ValueError(f"{self.name}: read of {length} bytes at {offset}")
        length = max(0, min(length, self.size - offset))
        if not length:
            return b""
        first, last = offset // PAGE, (offset + length - 1) // PAGE
        if last - first > 1:
            data = self.load(offset, length)
            return bytes(length) if data is None else data.tobytes()
        whole = b"".join(self._page(number) for number in range(first, last + 1))
        skip = offset - first * PAGE
        return whole[skip : skip + length]

    def _page(self, number: int) -> bytes:
        page = self._pages.get(number)
        if page is not None:
            self._pages.move_to_end(number)
            return page
        length = min(PAGE, self.size - number * PAGE)
        data = self.load(number * PAGE, length)
        page = bytes(length) if data is None else data.tobytes()
        self._pages[number] = page
        if len(self._pages) > PAGES_KEPT:
            self._pages.popitem(last=False)
        return page

    def chunks(
        self, length: int = CHUNK, start: int = 0, end: int | None = None
    ) -> Iterator[tuple[int, memoryview | None]]:
        """Yield (offset, bytes) over the disk in pieces of ``length``; None is a known zero."""
        end = self.size if end is None else min(end, self.size)
        for offset in range(start, end, length):
            data = self.load(offset, min(length, end - offset))
            yield offset, None if data is None else data.data

    def __enter__(self) -> Image:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}: {self.size} bytes>"


class RawLayer:
    """The bytes of a file or block device as they lie; holes are found with SEEK_DATA."""

    def __init__(self, fd: int, name: str) -> None:
        self.fd = fd
        self.name = name
        self.size = os.lseek(fd, 0, os.SEEK_END)
        self.sparse = stat.S_ISREG(os.fstat(fd).st_mode)

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
        self.fd = -1

    def is_hole(self, offset: int, length: int) -> bool:
        if not self.sparse:
            return False
        try:
            return os.lseek(self.fd, offset, os.SEEK_DATA) >= offset + length
        except OSError as error:
            if error.errno == errno.ENXIO:
                return True
            self.sparse = False
            return False

    def locate(self, offset: int, count: int, grain: int) -> tuple[Kinds, Hosts]:
        hosts = offset + np.arange(count, dtype=np.int64) * grain
        hole = self.is_hole(offset, count * grain)
        kinds = np.where((hosts < self.size) & (not hole), DATA, HOLE).astype(np.uint8)
        return kinds, hosts

    def read_plain(self, out: Bytes, host: int) -> None:
        done = 0
        while done < len(out):
            try:
                got = os.preadv(self.fd, [out.data[done:]], host + done)
            except OSError as error:
                raise InputError(self.name, f"cannot be read at {host + done}: {error}") from error
            if got == 0:
                out[done:] = 0
                return
            done += got


class RawImage(Image):
    """A raw image file, or a block device."""

    def __init__(self, layer: RawLayer) -> None:
        super().__init__(layer.name, layer.size)
        self._layer = layer

    def load(self, offset: int, length: int) -> Bytes | None:
        if self._layer.is_hole(offset, length):
            return None
        out = np.empty(length, np.uint8)
        self._layer.read_plain(out, offset)
        return out

    def close(self) -> None:
        self._layer.close()


class LayeredImage(Image):
    """A qcow2 image over its backing files, the topmost layer first."""

    def __init__(self, layers: list[Qcow2Layer | RawLayer]) -> None:
        super().__init__(layers[0].name, layers[0].size)
        self.layers = layers
        # The largest piece that no layer's cluster and no shorter backing file divides.
        grains = [layer.grain for layer in layers if isinstance(layer, Qcow2Layer)]
        ends = [-(-layer.size // 512) * 512 for layer in layers[1:] if layer.size < self.size]
        self.grain = gcd(*grains, *ends)

    def close(self) -> None:
        for layer in self.layers:
            layer.close()

    def locate(self, first: int, count: int) -> tuple[Kinds, Hosts, NDArray[np.int16]]:
        """Say of ``count`` grains from grain ``first`` on what, where, and in which layer they are.

        Kinds are as in ``cbtlab.qcow2.reader``, with no HOLE left.
        """
        kinds = np.full(count, HOLE, np.uint8)
        hosts = np.zeros(count, np.int64)
        owner = np.zeros(count, np.int16)
        end = self.size  # where the layers above can still see the one below
        for number, layer in enumerate(self.layers):
            end = min(end, layer.size)
            inside = min(count, -(-end // self.grain) - first)
            todo = kinds[: max(0, inside)] == HOLE
            if not todo.any():
                break
            kind, host = layer.locate(first * self.grain, inside, self.grain)
            take = todo & (kind != HOLE)
            kinds[:inside][take] = kind[take]
            hosts[:inside][take] = host[take]
            owner[:inside][take] = number
        kinds[kinds == HOLE] = ZEROS
        return kinds, hosts, owner

    def load(self, offset: int, length: int) -> Bytes | None:
        first = offset // self.grain
        skip = offset - first * self.grain
        kinds, hosts, owner = self.locate(first, -(-(skip + length) // self.grain))
        if (kinds == ZEROS).all():
            return None
        out = np.zeros(len(kinds) * self.grain, np.uint8)
        packed = kinds == PACKED
        step = np.where(kinds == DATA, self.grain, 0)
        joined = (
            (kinds[1:] == kinds[:-1])
            & (owner[1:] == owner[:-1])
            & (hosts[1:] == hosts[:-1] + step[:-1])
        )
        # Grains of one compressed cluster are together; two uses of one cluster are not.
        starts = np.flatnonzero(np.concatenate(([True], ~joined)))
        ends = np.append(starts[1:], len(kinds))
        for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
            if kinds[start] == ZEROS:
                continue
            layer = self.layers[owner[start]]
            piece = out[start * self.grain : end * self.grain]
            if packed[start]:
                self._unpack(layer, piece, first + start, int(hosts[start]))
            else:
                layer.read_plain(piece, int(hosts[start]))
        return out[skip : skip + length]

    def _unpack(self, layer: Any, piece: Bytes, grain: int, entry: int) -> None:
        """Fill ``piece``, which begins at ``grain``, from clusters that share one entry."""
        data = np.frombuffer(layer.unpack(entry), np.uint8)
        begin = grain * self.grain % layer.cluster
        if begin + len(piece) <= layer.cluster:
            piece[:] = data[begin : begin + len(piece)]
        else:
            piece[:] = np.resize(np.roll(data, -begin), len(piece))


class EwfImage(Image):
    """An Expert Witness (E01) image, read by libewf."""

    def __init__(self, path: Path) -> None:
        try:
            import pyewf
        except ImportError:
            raise InputError(
                path, "is an E01 image, which needs libewf", "pip install libewf-python"
            ) from None
        self._handle = pyewf.handle()
        try:
            self._handle.open(pyewf.glob(str(path)))
        except OSError as error:
            raise InputError(path, f"cannot be opened as E01: {error}") from error
        super().__init__(str(path), self._handle.get_media_size())

    def load(self, offset: int, length: int) -> Bytes | None:
        try:
            data = self._handle.read_buffer_at_offset(length, offset)
        except OSError as error:
            raise InputError(self.name, f"cannot be read at {offset}: {error}") from error
        if len(data) != length:
            raise InputError(self.name, f"ends at {offset + len(data)}; it was cut")
        return np.frombuffer(bytearray(data), np.uint8)

    def close(self) -> None:
        self._handle.close()


_OTHER_KINDS = {
    b"KDMV": "VMDK",
    b"vhdxfile": "VHDX",
    b"conectix": "VHD",
    b"QED\0": "QED",
    b"<<< Oracle VM VirtualBox": "VDI",
    b"# Disk DescriptorFile": "VMDK",
    b"LUKS\xba\xbe": "LUKS",
}
_E01 = b"EVF\x09\x0d\x0a\xff\x00"


def open_image(
    path: str | os.PathLike[str], *, root: str | os.PathLike[str] | None = None
) -> Image:
    """Open a raw, qcow2 or E01 image, or a block device, for reading.

    Backing files must lie below ``root``, the image's own folder by default.
    Raises InputError naming the file that cannot be used.
    """
    top = Path(path)
    fd, start = _open(top)
    if start.startswith(MAGIC):
        return _open_qcow2(top, fd, Path(root) if root is not None else top.resolve().parent)
    if start.startswith(_E01):
        os.close(fd)
        return EwfImage(top)
    for magic, kind in _OTHER_KINDS.items():
        if start.startswith(magic):
            os.close(fd)
            raise InputError(top, f"is a {kind} image", "convert it with: qemu-img convert -O raw")
    layer = RawLayer(fd, str(top))
    if not layer.size:
        layer.close()
        raise InputError(top, "is empty", "an image has at least one byte")
    return RawImage(layer)


def _open(path: Path) -> tuple[int, bytes]:
    """Return a descriptor and the first bytes of a regular file or block device."""
    try:
        # Not blocking: the path may be a pipe.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(path, f"cannot be opened: {reason}") from error
    mode = os.fstat(fd).st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
        os.close(fd)
        raise InputError(path, "is no file and no block device")
    try:
        return fd, os.pread(fd, 64, 0)
    except OSError as error:
        os.close(fd)
        raise InputError(path, f"cannot be read: {error.strerror}") from error


def _open_qcow2(path: Path, fd: int, root: Path) -> LayeredImage:
    """Open ``path``, already open as ``fd``, and the files below it."""
    root = root.resolve()
    layers: list[Qcow2Layer | RawLayer] = []
    seen: set[tuple[int, int]] = set()
    try:
        while True:
            about = os.fstat(fd)
            if (about.st_dev, about.st_ino) in seen or len(layers) >= MAX_LAYERS:
                os.close(fd)
                raise InputError(path, f"is backed by itself, or by more than {MAX_LAYERS} files")
            seen.add((about.st_dev, about.st_ino))
            try:
                layer = Qcow2Layer(fd, str(path))
            except BaseException:
                os.close(fd)
                raise
            layers.append(layer)
            if layer.header.backing is None:
                return LayeredImage(layers)
            kind = layer.header.backing_format
            path = _backing_path(path, layer.header.backing, root)
            fd, start = _open(path)
            if kind == "raw" or (kind is None and not start.startswith(MAGIC)):
                layers.append(RawLayer(fd, str(path)))
                return LayeredImage(layers)
            if kind not in (None, "qcow2"):
                os.close(fd)
                raise InputError(layer.name, f"has a backing file of the format {kind!r}")
    except BaseException:
        for opened in layers:
            opened.close()
        raise


def _backing_path(path: Path, name: str, root: Path) -> Path:
    """Return the backing file that ``name`` in ``path`` means, if it lies below ``root``."""
    remedy = "put the files into one folder and name them relatively (qemu-img rebase -u)"
    if name.startswith("/") or ":" in name.split("/", 1)[0]:
        raise InputError(path, f"names the backing file {name!r}", remedy)
    found = path.parent / name
    try:
        real = found.resolve(strict=True)
    except (OSError, RuntimeError) as error:
        raise InputError(found, f"is missing; it is the backing file of {path}") from error
    if not real.is_relative_to(root):
        raise InputError(path, f"names the backing file {name!r}, which leaves {root}", remedy)
    return found


def image_digest(image: Image) -> str:
    """Return the SHA-256 of the disk's whole content, zeros included, in hexadecimal."""
    digest = hashlib.sha256()
    zeros = bytes(CHUNK)
    for offset, data in image.chunks():
        digest.update(memoryview(zeros)[: image.size - offset] if data is None else data)
    return digest.hexdigest()


def differing(a: Image, b: Image, granularity: int) -> Bitmap:
    """Return the blocks of ``granularity`` bytes whose content is not the same in both.

    Streaming; where both are known to be zero nothing is read.  Raises
    InputError when the images have different sizes.
    """
    if a.size != b.size:
        raise InputError(b.name, f"has {b.size} bytes, and {a.name} has {a.size}")
    length = max(CHUNK, granularity)
    found = []
    for (offset, left), (_, right) in zip(a.chunks(length), b.chunks(length), strict=True):
        if left is None and right is None:
            continue
        blocks = _differing_blocks(left, right, granularity)
        found.append(np.flatnonzero(blocks) + offset // granularity)
    indices = np.concatenate(found) if found else np.zeros(0, np.int64)
    return Bitmap.from_indices(indices, volume_size=a.size, granularity=granularity)


def _differing_blocks(
    left: memoryview | None, right: memoryview | None, granularity: int
) -> NDArray[np.bool_]:
    one = np.frombuffer(left if left is not None else right or b"", np.uint8)
    other = np.frombuffer(right, np.uint8) if left is not None and right is not None else None
    whole = len(one) // granularity * granularity
    result = np.zeros(-(-len(one) // granularity), bool)
    words = one[:whole].view(np.uint64)
    unequal = words != (0 if other is None else other[:whole].view(np.uint64))
    result[: whole // granularity] = unequal.reshape(-1, granularity // 8).any(axis=1)
    if whole < len(one):
        result[-1] = (one[whole:] != (0 if other is None else other[whole:])).any()
    return result
