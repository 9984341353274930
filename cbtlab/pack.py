"""Copies of what a case keeps: images as differences, sequences as Parquet, bitmaps compressed.

Every function writes one piece into the case's folder and returns its entry
in the manifest: ``file`` and ``sha256``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import zstandard

from cbtlab.bitmap import Bitmap
from cbtlab.errors import InputError
from cbtlab.folders import require_regular
from cbtlab.images import Image, differing, image_digest, open_image
from cbtlab.manifest import file_digest, piece_path
from cbtlab.qcow2 import write as write_qcow2
from cbtlab.writes import VOLUMES, read_writes, save_writes
from cbtlab.writes.skipped import ATTRIBUTE, left_out

_FIRST_CLUSTER, _LATER_CLUSTER = 1 << 16, 1 << 14  # differences are scattered: smaller clusters


def pack_image(
    folder: Path, name: str, source: Any, volume_size: int, backing: str | None
) -> dict[str, Any]:
    """Copy an image as the compressed clusters in which it differs from its backing piece."""
    path = _new(folder, name)
    with open_image(source) as image:
        if image.size != volume_size:
            raise InputError(
                source,
                f"has {image.size} bytes, the case's volume {volume_size}",
                "the image must be of the volume's size",
            )
        if backing is None:
            cluster = _FIRST_CLUSTER
            changed = _not_zero(image, cluster)
        else:
            cluster = _LATER_CLUSTER
            with open_image(piece_path(folder, backing)) as base:
                changed = differing(base, image, cluster)
        write_qcow2(
            path,
            image.size,
            cluster,
            changed,
            None,
            image.read,
            backing=None if backing is None else Path(backing).name,
            compress=True,
        )
        content = image_digest(image)
    return {"file": name, "sha256": file_digest(path), "content_sha256": content}


def pack_writes(
    folder: Path, name: str, source: Any, volume_size: int, k: int, volume: str
) -> dict[str, Any]:
    """Copy the rows of one volume and interval.

    A file that names neither is all of both; rows that name others are left
    out, and a file of which nothing is left is refused.
    """
    recorded = isinstance(source, pd.DataFrame)
    told = "writes" if recorded else source
    frame = source if recorded else read_writes(source)
    rows = len(frame)
    named = bool(frame["interval"].any())
    apart = left_out(frame)
    frame = frame[frame["volume"].isna() | (frame["volume"] == volume)]
    if recorded or named:
        frame = frame[frame["interval"] == k]
    if rows and not len(frame) and not recorded:
        raise InputError(
            told,
            f"none of its {rows} rows is of the {volume} volume in interval {k}",
            "correct the columns volume and interval, or leave them out",
        )
    frame = frame.assign(
        volume=pd.Categorical([volume] * len(frame), dtype=frame["volume"].dtype),
        interval=np.full(len(frame), k, np.uint32),
    ).reset_index(drop=True)
    if apart is not None:
        frame.attrs[ATTRIBUTE] = apart.of(VOLUMES.index(volume), k if named else None)
    past = (frame["offset"] + frame["length"] > volume_size).to_numpy()
    if past.any():
        raise InputError(
            told,
            f"row {int(past.argmax()) + 1}: a write ends past the volume's {volume_size} bytes",
            "a volume that has grown starts a new case",
        )
    frame.writes.missing()
    path = _new(folder, name)
    save_writes(frame, path, force=True)
    return {"file": name, "sha256": file_digest(path), "rows": len(frame)}


def pack_bitmap(
    folder: Path, name: str, source: Any, volume_size: int, granularity: int
) -> dict[str, Any]:
    """Copy a Bitmap, or a file of ``ceil(blocks/8)`` bytes, lowest bit first."""
    if isinstance(source, Bitmap):
        bitmap = source
        if (bitmap.volume_size, bitmap.granularity) != (volume_size, granularity):
            raise InputError(folder, "a bitmap is not of the case's size and granularity")
    else:
        bitmap = _read_bitmap(Path(source), volume_size, granularity)
    path = _new(folder, name)
    path.write_bytes(zstandard.ZstdCompressor(level=9).compress(bitmap.to_bytes()))
    return {"file": name, "sha256": file_digest(path)}


def unpack_bitmap(path: Path, volume_size: int, granularity: int) -> Bitmap:
    """Return the bitmap that ``pack_bitmap`` wrote."""
    size = _bitmap_bytes(volume_size, granularity)
    try:
        with path.open("rb") as file, zstandard.ZstdDecompressor().stream_reader(file) as reader:
            data = reader.read(size + 1)
    except OSError as error:
        raise InputError(path, f"cannot be read: {error.strerror}") from error
    except zstandard.ZstdError as error:
        raise InputError(path, f"is damaged: {error}") from error
    if len(data) != size:
        raise InputError(path, f"does not hold the {size} bytes of its bitmap; it is damaged")
    return _bitmap(path, data, volume_size, granularity)


def _read_bitmap(path: Path, volume_size: int, granularity: int) -> Bitmap:
    wanted = _bitmap_bytes(volume_size, granularity)
    require_regular(path)
    try:
        with path.open("rb") as file:
            data = file.read(wanted + 1)
            size = path.stat().st_size
    except OSError as error:
        raise InputError(path, f"cannot be read: {error.strerror}") from error
    if len(data) != wanted:
        raise InputError(
            path,
            f"has {size} bytes",
            f"a bitmap of {-(-volume_size // granularity)} blocks has {wanted}",
        )
    return _bitmap(path, data, volume_size, granularity)


def _bitmap(path: Path, data: bytes, volume_size: int, granularity: int) -> Bitmap:
    try:
        return Bitmap.from_bytes(data, volume_size=volume_size, granularity=granularity)
    except ValueError as error:
        fault = error.fault if isinstance(error, InputError) else str(error)
        raise InputError(path, fault, getattr(error, "remedy", "")) from error


def _bitmap_bytes(volume_size: int, granularity: int) -> int:
    blocks = -(-volume_size // granularity)
    return -(-blocks // 8)


def _not_zero(image: Image, cluster: int) -> Bitmap:
    mark = np.zeros(-(-image.size // cluster), bool)
    for offset, data in image.chunks():
        if data is not None:
            part = np.frombuffer(data, np.uint8)
            part = np.pad(part, (0, -len(part) % cluster)).reshape(-1, cluster)
            mark[offset // cluster : offset // cluster + len(part)] = part.any(axis=1)
    return Bitmap.from_bool(mark, volume_size=image.size, granularity=cluster)


def _new(folder: Path, name: str) -> Path:
    path = piece_path(folder, name)
    path.parent.mkdir(exist_ok=True)
    return path
