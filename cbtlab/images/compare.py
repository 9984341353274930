"""The content of images: its digest, and where two of them differ."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

from cbtlab.bitmap import Bitmap
from cbtlab.errors import InputError
from cbtlab.images.base import CHUNK, Bytes, Image

STEP = 1 << 20  # what is compared, or found to be shared, at once


def image_digest(image: Image) -> str:
    """Return the SHA-256 of the disk's whole content, zeros included, in hexadecimal."""
    digest = hashlib.sha256()
    zeros = bytes(CHUNK)
    for offset, data in image.chunks():
        digest.update(memoryview(zeros)[: image.size - offset] if data is None else data)
    return digest.hexdigest()


def differing(a: Image, b: Image, granularity: int) -> Bitmap:
    """Return the blocks of ``granularity`` bytes whose content is not the same in both.

    Streaming; what is known to be zero in both, or lies in the same clusters
    of the same files, is not read.  Raises InputError when the images have
    different sizes.
    """
    if a.size != b.size:
        raise InputError(b.name, f"has {b.size} bytes, and {a.name} has {a.size}")
    step = max(STEP, granularity)
    found = []
    for offset in range(0, a.size, step):
        length = min(step, a.size - offset)
        if a.shares(b, offset, length):
            continue
        left, right = a.load(offset, length), b.load(offset, length)
        if left is None and right is None:
            continue
        blocks = _differing_blocks(left, right, granularity)
        found.append(np.flatnonzero(blocks) + offset // granularity)
    indices = np.concatenate(found) if found else np.zeros(0, np.int64)
    return Bitmap.from_indices(indices, volume_size=a.size, granularity=granularity)


def _differing_blocks(
    left: Bytes | None, right: Bytes | None, granularity: int
) -> NDArray[np.bool_]:
    """Compare two pieces, of which None is all zero, and not both are None."""
    one, other = (left, right) if left is not None else (right, None)
    assert one is not None
    whole = len(one) // granularity * granularity
    result = np.zeros(-(-len(one) // granularity), bool)
    words = one[:whole].view(np.uint64)
    unequal = words != (0 if other is None else other[:whole].view(np.uint64))
    result[: whole // granularity] = unequal.reshape(-1, granularity // 8).any(axis=1)
    if whole < len(one):
        result[-1] = (one[whole:] != (0 if other is None else other[whole:])).any()
    return result
