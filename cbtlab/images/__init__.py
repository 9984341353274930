"""Disk images as one seekable reader: raw, qcow2 with its backing files, E01.

``open_image`` looks at a file and returns an ``Image``.  A reader never
guesses: a file that is cut, altered or of a kind that is not known here ends
in an InputError that names it.  Backing files are followed only inside the
folder of the image.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from cbtlab.errors import InputError
from cbtlab.images.base import CHUNK, Image
from cbtlab.images.compare import differing, image_digest
from cbtlab.images.ewf import EwfImage
from cbtlab.images.layered import LayeredImage
from cbtlab.images.raw import RawImage, RawLayer
from cbtlab.qcow2.layout import MAGIC
from cbtlab.qcow2.reader import Qcow2Layer

__all__ = [
    "CHUNK",
    "Image",
    "LayeredImage",
    "RawImage",
    "RawLayer",
    "differing",
    "image_digest",
    "open_image",
]

MAX_LAYERS = 500

_OTHER_KINDS = {
    b"KDMV": "VMDK",
    b"vhdxfile": "VHDX",
    b"conectix": "VHD",
    b"QED\0": "QED",
    b"<<< Oracle VM VirtualBox": "VDI",
    b"# Disk DescriptorFile": "VMDK",
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
            again = (about.st_dev, about.st_ino) in seen
            if again or len(layers) >= MAX_LAYERS:
                os.close(fd)
                fault = "itself" if again else f"more than {MAX_LAYERS} files"
                raise InputError(path, f"is backed by {fault}")
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
