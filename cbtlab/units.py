"""Sizes, instants and names as people write them, and as JSON shows them."""

from __future__ import annotations

import re
from datetime import datetime, timezone

import numpy as np

from cbtlab.errors import InputError

_SIZE = re.compile(r"([0-9]{1,20})([KMGTkmgt]?)")
_FACTOR = {"": 0, "K": 10, "M": 20, "G": 30, "T": 40}
_ISO = re.compile(
    r"(\d{4}-\d\d-\d\d)[Tt ](\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?\s*([Zz]|[+-]\d\d:?\d\d)", re.ASCII
)

SECTOR = 512
MIN_GRANULARITY = 512
MAX_GRANULARITY = 1 << 20
MAX_VOLUME = 1 << 56  # what a qcow2 offset can address


def parse_size(text: str, name: str = "size") -> int:
    """Return the bytes that ``text`` names: digits, with K, M, G or T (1024) behind."""
    match = _SIZE.fullmatch(text)
    if not match:
        raise InputError(name, f"{text!r} is no size", "give bytes, or a number with K, M, G or T")
    value = int(match[1]) << _FACTOR[match[2].upper()]
    if value >= 1 << 63:
        raise InputError(name, f"{text!r} is too large", "a size fits in 63 bits")
    return value


def check_granularity(value: int, piece: object = "granularity") -> int:
    """Return ``value`` if it can be a granularity: a power of two from 512 to 1M."""
    if not MIN_GRANULARITY <= value <= MAX_GRANULARITY or value & (value - 1):
        raise InputError(
            piece, f"granularity {value} cannot be used", "a power of two from 512 to 1M is needed"
        )
    return value


def check_volume_size(value: int, piece: object = "volume size") -> int:
    """Return ``value`` if a block device can have that many bytes: whole 512-byte sectors."""
    if value <= 0 or value % SECTOR or value > MAX_VOLUME:
        raise InputError(
            piece,
            f"volume size {value} cannot be used",
            "a positive multiple of 512, at most 64 PiB, is needed",
        )
    return value


def parse_time(text: str, name: str = "time") -> np.datetime64:
    """Return an instant given as integer nanoseconds since 1970 UTC, or ISO 8601 with a zone."""
    text = text.strip()
    if re.fullmatch(r"[0-9]{1,19}", text) and int(text) < 1 << 63:
        return np.datetime64(int(text), "ns")
    match = _ISO.fullmatch(text)
    if match:
        zone = match[4].upper().replace("Z", "+00:00")
        if ":" not in zone:
            zone = zone[:3] + ":" + zone[3:]
        try:
            moment = datetime.fromisoformat(f"{match[1]}T{match[2]}{zone}").astimezone(timezone.utc)
        except (ValueError, OverflowError):
            moment = None
        if moment is not None and 1970 <= moment.year < 2262:
            whole = np.datetime64(moment.replace(tzinfo=None), "ns")
            return np.datetime64(whole + np.timedelta64(int((match[3] or "").ljust(9, "0")), "ns"))
    raise InputError(
        name,
        f"{text!r} is no instant",
        "give integer nanoseconds since 1970 UTC, or ISO 8601 with a zone",
    )


def format_time(value: object) -> str | None:
    """Return an instant as ISO 8601 in UTC with nanoseconds, or None for none."""
    # numpy takes a pandas stamp for a datetime, which ends at microseconds.
    value = value.to_datetime64() if hasattr(value, "to_datetime64") else value
    stamp = np.datetime64(value, "ns")  # type: ignore[call-overload]
    return None if np.isnat(stamp) else f"{np.datetime_as_string(stamp, unit='ns')}Z"


def format_bytes(count: float) -> str:
    """Return a count of bytes in the largest binary unit that leaves a figure of one or more."""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if abs(count) < 1024 or unit == "TiB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    raise AssertionError("not reached")
