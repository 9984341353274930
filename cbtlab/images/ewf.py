"""Expert Witness (E01) images, where libewf is installed."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from cbtlab.errors import InputError
from cbtlab.images.base import Bytes, Image


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
