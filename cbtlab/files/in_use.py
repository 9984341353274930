"""What of an image is in use, around a file system that lies in it."""

from __future__ import annotations

from bitarray import bitarray

from cbtlab.bitmap import Bitmap
from cbtlab.files.volume import Volume


def over_image(volume: Volume, bits: bitarray, size: int, granularity: int) -> Bitmap:
    """The bits of a file system within a bitmap of the whole image; all else is in use.

    ``bits`` has one bit for each ``granularity`` bytes from the volume's start on, ``size``
    bytes of them; what lies before the volume and after those is not managed.  The bitmap is
    finer where the volume does not begin at a multiple of ``granularity``.
    """
    bitmap = Bitmap.from_bytes(bits.tobytes(), size, granularity)
    offset, total = volume.offset, volume.offset + volume.size
    grain = min(granularity, offset & -offset) if offset else granularity
    if offset == 0 and total == size:
        return bitmap
    inner = bitmap.outward(grain).bits
    whole = bitarray(offset // grain, endian="little")
    whole.setall(1)
    whole += inner
    rest = bitarray(-(-total // grain) - len(whole), endian="little")
    rest.setall(1)
    whole += rest
    return Bitmap.from_bytes(whole.tobytes(), total, grain)
