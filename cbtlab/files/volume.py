"""A file system's own view of an image: exact reads from where the file system begins."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from cbtlab.errors import InputError, NotAtRest

_READ_THROUGH = 16  # blocks of a gap that are read rather than sought over
_READ_AT_MOST = 8 << 20


class Readable(Protocol):
    """What is needed of an image: its size and its bytes."""

    @property
    def size(self) -> int: ...

    def read(self, offset: int, length: int, /) -> bytes: ...


class Volume:
    """The part of an image from ``offset`` on."""

    def __init__(self, image: Readable, offset: int = 0) -> None:
        self.image = image
        self.name = str(getattr(image, "name", "image"))
        self.offset = offset
        self.size = image.size - offset
        self.remedy = "check a copy with the file system's own checker"  # a reader names it
        if offset < 0 or self.size <= 0:
            raise InputError(
                self.name,
                f"offset {offset} lies outside of its {image.size} bytes",
                "give an offset within the image",
            )

    def read(self, offset: int, length: int) -> bytes:
        """Exactly ``length`` bytes at ``offset`` of the volume, or InputError."""
        if offset < 0 or length < 0 or offset + length > self.size:
            raise self.fault(f"bytes {offset} to {offset + length} lie outside of the volume")
        data = bytes(self.image.read(self.offset + offset, length))
        if len(data) != length:
            raise self.fault(f"ends {length - len(data)} bytes early at {offset + length}")
        return data

    def blocks(self, numbers: npt.NDArray[np.int64], size: int) -> npt.NDArray[np.uint8]:
        """The blocks with these numbers as rows of an ``(n, size)`` array.

        Neighbouring blocks are read together, whatever the order they are asked in.
        """
        rows = np.empty((len(numbers), size), np.uint8)
        if not len(numbers):
            return rows
        order = np.argsort(numbers, kind="stable")
        ordered = numbers[order]
        cuts = np.diff(ordered) > _READ_THROUGH
        span = _READ_AT_MOST // size
        group = np.concatenate(([0], np.cumsum(cuts)))
        within = ordered - ordered[np.concatenate(([0], np.flatnonzero(cuts) + 1))][group]
        key = group * (int(within.max()) // span + 1) + within // span
        starts = np.concatenate(([0], np.flatnonzero(np.diff(key)) + 1, [len(ordered)]))
        for begin, end in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True):
            first, last = int(ordered[begin]), int(ordered[end - 1])
            data = np.frombuffer(self.read(first * size, (last - first + 1) * size), np.uint8)
            rows[order[begin:end]] = data.reshape(-1, size)[ordered[begin:end] - first]
        return rows

    def fault(self, fault: str, remedy: str | None = None) -> InputError:
        """The error to raise for something wrong with this volume."""
        return InputError(self._place, fault, self.remedy if remedy is None else remedy)

    def not_at_rest(self, fault: str, remedy: str) -> NotAtRest:
        """The error to raise for a file system that must be replayed or mended first."""
        return NotAtRest(self._place, fault, remedy)

    @property
    def _place(self) -> str:
        return f"{self.name} at {self.offset}" if self.offset else self.name


def structure(data: Any, kind: np.dtype[Any]) -> Any:
    """The bytes at the start of each row (or of one string) as a structured type, not copied."""
    if isinstance(data, bytes):
        return np.frombuffer(data, kind, count=1)[0]
    part = np.ascontiguousarray(data[..., : kind.itemsize])
    return part.view(kind)[..., 0]
