"""Raw image files and block devices, by themselves or below a qcow2 image."""

from __future__ import annotations

import errno
import os
import stat

import numpy as np

from cbtlab.errors import InputError
from cbtlab.images.base import Bytes, Image
from cbtlab.qcow2.reader import DATA, HOLE, Hosts, Kinds


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
