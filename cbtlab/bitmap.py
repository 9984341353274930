"""Bitmap: one bit per block of ``granularity`` bytes over a volume's size.

The bits live once, in a little-endian `bitarray`; numpy sees the same memory as
bytes (bit ``n`` is bit ``n % 8`` of byte ``n // 8``), and does the wide work.
The bits behind the last block, up to the end of its byte, are always zero.

Rounding has two directions.  *Changed, in use, held* go outward: a block is
marked when one byte of it is.  *Zero, discarded, free, excluded* go inward: a
block is claimed only when every byte of it is.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from bitarray import bitarray
from bitarray.util import subset

from cbtlab.bits import (
    Bytes,
    coarser,
    edges,
    finer,
    indices_of,
    scatter,
    set_ranges,
)
from cbtlab.errors import InputError

SMALLEST, LARGEST = 512, 1 << 30

__all__ = ["Bitmap"]


class Bitmap:
    """The blocks of a volume, each marked or not.

    ``volume_size`` and ``granularity`` are bytes; ``granularity`` is a power of
    two, 512 or more.  The last block may be partial.  A bitmap is a value: the
    operators and conversions give a new one, and only the methods called
    ``set_…`` change it.  Two bitmaps combine, and are equal, only over the same
    volume size and granularity; `outward` and `inward` lead from one
    granularity to another.
    """

    __slots__ = ("_bytes", "bits", "blocks", "granularity", "volume_size")

    bits: bitarray
    """One bit a block, little-endian, ``blocks`` long; shares the bitmap's memory."""

    def __init__(self, volume_size: int, granularity: int) -> None:
        """Make a bitmap with no block marked; raises InputError on an impossible geometry."""
        self.volume_size, self.granularity = _geometry(volume_size, granularity)
        self.blocks = -(-self.volume_size // self.granularity)
        try:
            self.bits = bitarray(self.blocks, endian="little")
        except (MemoryError, OverflowError) as error:
            raise InputError(
                f"bitmap of {self.blocks} blocks", "does not fit in memory", "coarsen it"
            ) from error
        self.bits.setall(0)
        # The export pins the bitarray's length, so that nothing can part the two.
        self._bytes: Bytes = np.asarray(memoryview(self.bits))

    # Making ---------------------------------------------------------------------------------

    @classmethod
    def full(cls, volume_size: int, granularity: int) -> Bitmap:
        """Every block marked."""
        made = cls(volume_size, granularity)
        made.bits.setall(1)
        made._clear_padding()
        return made

    @classmethod
    def from_ranges(
        cls,
        offset: npt.ArrayLike,
        length: npt.ArrayLike,
        *,
        volume_size: int,
        granularity: int,
        inward: bool = False,
    ) -> Bitmap:
        """The blocks that the ranges touch; see `set_ranges`."""
        made = cls(volume_size, granularity)
        made.set_ranges(offset, length, inward=inward)
        return made

    @classmethod
    def from_indices(cls, blocks: npt.ArrayLike, volume_size: int, granularity: int) -> Bitmap:
        """The blocks with these numbers, in any order, repeated or not."""
        made = cls(volume_size, granularity)
        array = _whole(blocks, "block number")
        if array.size and (int(array.min()) < 0 or int(array.max()) >= made.blocks):
            raise InputError("block number", f"outside of the {made.blocks} blocks of the volume")
        scatter(made._bytes, array.astype(np.int64, copy=False))
        return made

    @classmethod
    def from_bool(cls, mask: npt.NDArray[np.bool_], volume_size: int, granularity: int) -> Bitmap:
        """The blocks where ``mask``, one value a block, is true."""
        made = cls(volume_size, granularity)
        array = np.asarray(mask, dtype=np.bool_)
        if array.shape != (made.blocks,):
            raise InputError("mask", f"has shape {array.shape} for {made.blocks} blocks")
        made._bytes[:] = np.packbits(array, bitorder="little")
        return made

    @classmethod
    def from_bytes(
        cls,
        data: bytes | bytearray | memoryview,
        volume_size: int,
        granularity: int,
        name: object = "bitmap",
    ) -> Bitmap:
        """Read what `to_bytes` gives.  ``name`` is the piece that an error names.

        Raises InputError when the length is not ⌈blocks/8⌉ bytes, or a bit
        behind the last block is set.
        """
        made = cls(volume_size, granularity)
        array = np.asarray(memoryview(data).cast("B"))
        if array.size != made._bytes.size:
            raise InputError(
                name,
                f"is {array.size} bytes long, and {made.blocks} blocks need {made._bytes.size}",
                "check its volume size and granularity",
            )
        made._bytes[:] = array
        made._clear_padding()
        if array.size and made._bytes[-1] != array[-1]:
            raise InputError(
                name, f"marks blocks behind the last of {made.blocks}", "check its granularity"
            )
        return made

    def copy(self) -> Bitmap:
        """An independent bitmap with the same marks."""
        return self._like(self._bytes)

    def set_ranges(
        self, offset: npt.ArrayLike, length: npt.ArrayLike, *, inward: bool = False
    ) -> None:
        """Mark the blocks that byte ranges touch, or with ``inward`` those that one range covers.

        ``offset`` and ``length`` are arrays of whole numbers, of any integer
        dtype, of bytes; a length of 0 is skipped.  The last, partial block
        counts as covered by a range that reaches the end of the volume.
        Raises InputError, and marks nothing further, when a range is negative
        or leaves the volume.
        """
        offsets, lengths = _whole(offset, "offset"), _whole(length, "length")
        if offsets.shape != lengths.shape:
            raise InputError("ranges", f"{offsets.size} offsets and {lengths.size} lengths")
        set_ranges(self._bytes, offsets, lengths, self.volume_size, self.granularity, inward=inward)

    # Reading --------------------------------------------------------------------------------

    def to_bytes(self) -> bytes:
        """⌈blocks/8⌉ bytes, bit ``n`` in byte ``n // 8``, lowest first."""
        return self._bytes.tobytes()

    def to_bool(self) -> npt.NDArray[np.bool_]:
        """One value a block."""
        unpacked = np.unpackbits(self._bytes, count=self.blocks, bitorder="little")
        return unpacked.view(np.bool_)

    def indices(self) -> npt.NDArray[np.int64]:
        """The numbers of the marked blocks, rising."""
        return indices_of(self._bytes)

    def extents(self) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint64]]:
        """Runs of marked blocks as (offset, length) in bytes, rising, clipped to the volume."""
        first, end = edges(self._bytes, self.blocks)
        shift = np.uint64(self.granularity.bit_length() - 1)
        offset = first.astype(np.uint64) << shift
        stop = np.minimum(end.astype(np.uint64) << shift, np.uint64(self.volume_size))
        return offset, stop - offset

    def count(self) -> int:
        """How many blocks are marked."""
        return self.bits.count()

    def any(self) -> bool:
        """Whether a block is marked."""
        return self.bits.any()

    def issubset(self, other: Bitmap) -> bool:
        """Whether every block marked here is marked in ``other``."""
        self._must_match(other)
        return subset(self.bits, other.bits)

    def __contains__(self, block: object) -> bool:
        if not isinstance(block, int | np.integer):
            return False
        return bool(0 <= block < self.blocks and self.bits[int(block)])

    # Other granularities --------------------------------------------------------------------

    def outward(self, granularity: int) -> Bitmap:
        """The same marks at another granularity: a coarser block by OR, a finer one repeats."""
        made = Bitmap(self.volume_size, granularity)
        if made.granularity > self.granularity:
            packed = coarser(self._bytes, made.granularity // self.granularity)
        else:
            packed = finer(self._bytes, self.granularity // made.granularity)
        made._bytes[:] = packed[: made._bytes.size]
        made._clear_padding()
        return made

    def inward(self, granularity: int) -> Bitmap:
        """As `outward`, but a coarser block is marked only when all of it that exists is."""
        return ~(~self).outward(granularity)

    # Operators ------------------------------------------------------------------------------

    def __or__(self, other: Bitmap) -> Bitmap:
        self._must_match(other)
        return self._like(self._bytes | other._bytes)

    def __and__(self, other: Bitmap) -> Bitmap:
        self._must_match(other)
        return self._like(self._bytes & other._bytes)

    def __xor__(self, other: Bitmap) -> Bitmap:
        self._must_match(other)
        return self._like(self._bytes ^ other._bytes)

    def __sub__(self, other: Bitmap) -> Bitmap:
        self._must_match(other)
        return self._like(self._bytes & ~other._bytes)

    def __invert__(self) -> Bitmap:
        made = self._like(~self._bytes)
        made._clear_padding()
        return made

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Bitmap):
            return NotImplemented
        return self._shape() == other._shape() and self.bits == other.bits

    __hash__ = None  # type: ignore[assignment]  # a bitmap can be changed

    def __reduce__(self) -> tuple[Any, ...]:
        return (Bitmap.from_bytes, (self.to_bytes(), *self._shape()))

    def __repr__(self) -> str:
        return (
            f"<Bitmap {self.count()} of {self.blocks} blocks of {self.granularity} bytes, "
            f"volume of {self.volume_size} bytes>"
        )

    def _repr_html_(self) -> str:
        marked, share = self.count(), self.count() / max(self.blocks, 1)
        return (
            f"<b>Bitmap</b>: {marked:,} of {self.blocks:,} blocks ({share:.2%}) "
            f"of {self.granularity:,} bytes, {len(self.extents()[0]):,} runs"
        )

    # Within ---------------------------------------------------------------------------------

    def _shape(self) -> tuple[int, int]:
        return self.volume_size, self.granularity

    def _like(self, packed: Bytes) -> Bitmap:
        made = Bitmap(self.volume_size, self.granularity)
        made._bytes[:] = packed
        return made

    def _must_match(self, other: Bitmap) -> None:
        if self._shape() != other._shape():
            raise InputError(
                "bitmaps",
                f"one is of {self.volume_size} bytes at {self.granularity}, "
                f"the other of {other.volume_size} at {other.granularity}",
                "bring both to one granularity with outward() or inward()",
            )

    def _clear_padding(self) -> None:
        used = self.blocks % 8
        if used:
            self._bytes[-1] &= (1 << used) - 1


def _geometry(volume_size: int, granularity: int) -> tuple[int, int]:
    """Check both numbers, and give them as plain integers."""
    for name, value in (("volume size", volume_size), ("granularity", granularity)):
        if isinstance(value, bool) or not isinstance(value, int | np.integer):
            raise InputError(name, f"{value!r} is not a whole number of bytes")
    size, grain = int(volume_size), int(granularity)
    if not 0 <= size < 1 << 62:
        raise InputError("volume size", f"{size} bytes is not between 0 and 2^62")
    if not SMALLEST <= grain <= LARGEST or grain & (grain - 1):
        raise InputError("granularity", f"{grain} bytes is not a power of two from {SMALLEST} up")
    return size, grain


def _whole(values: npt.ArrayLike, name: str) -> npt.NDArray[np.integer[Any]]:
    """``values`` as a flat array of an integer dtype."""
    try:
        array = np.atleast_1d(np.asarray(values))
    except OverflowError as error:
        raise InputError(name, "does not fit in 64 bits") from error
    if array.size == 0:
        return np.zeros(0, dtype=np.uint64)
    if array.dtype.kind not in "iu" or array.ndim != 1:
        raise InputError(name, f"an array of {array.dtype}, not of whole numbers")
    return array
