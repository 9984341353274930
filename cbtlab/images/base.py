"""What every image is: a disk of a size, read at any offset, or walked in chunks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

CHUNK = 4 << 20
PAGE = 64 << 10
PAGES_KEPT = 256

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

    def shares(self, other: Image, offset: int, length: int) -> bool:
        """Whether both certainly read these bytes from the same place, so that they are equal."""
        return self is other

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
