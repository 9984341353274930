"""LZO1X, decoded, and how btrfs packs it.

The stream is as the kernel's ``Documentation/staging/lzo.rst`` describes it: an
instruction copies bytes from what was decoded before, and then up to three new
ones; four and more new ones have an instruction of their own.
"""

from __future__ import annotations


class DamagedError(ValueError):
    """What is no LZO stream."""


def unpack(data: bytes, size: int, sector: int) -> bytes:
    """What a compressed extent of btrfs stands for, at most ``size`` bytes.

    Behind the length of all follow segments, each a length and a stream; a segment is at
    most a sector when decoded, and its length never lies across a sector's border.
    """
    total = int.from_bytes(data[:4], "little")
    if not 4 <= total <= len(data):
        raise DamagedError("a length is impossible")
    at, result = 4, bytearray()
    while at < total and len(result) < size:
        left = sector - at % sector
        if left < 4:
            at += left
        length = int.from_bytes(data[at : at + 4], "little")
        if not 0 < length <= total - at - 4:
            raise DamagedError("a length is impossible")
        result += decode(data[at + 4 : at + 4 + length], sector)
        at += 4 + length
    return bytes(result[:size])


def decode(data: bytes, most: int) -> bytes:
    """Decode one stream of LZO1X into at most ``most`` bytes.  Raises DamagedError."""
    result = bytearray()
    try:
        _decode(data, most, result)
    except IndexError as error:
        raise DamagedError("the stream is cut short") from error
    return bytes(result)


def _decode(data: bytes, most: int, result: bytearray) -> None:
    at, state = 0, 0
    if data[0] > 17:
        count = data[0] - 17
        at = _literals(data, 1, count, most, result)
        state = min(count, 4)
    while True:
        code = data[at]
        at += 1
        if code < 16 and state == 0:
            count, at = _count(data, at, code, 15)
            at = _literals(data, at, count + 3, most, result)
            state = 4
            continue
        if code >= 64:
            length = 3 + (code >> 5 & 1) if code < 128 else 5 + (code >> 5 & 3)
            distance = (data[at] << 3) + (code >> 2 & 7) + 1
            at += 1
            state = code & 3
        elif code >= 16:
            narrow = code < 32
            length, at = _count(data, at, code & (7 if narrow else 31), 7 if narrow else 31)
            length += 2
            word = data[at] | data[at + 1] << 8
            at += 2
            distance = (word >> 2) + 1
            if narrow:
                distance += 16383 + ((code & 8) << 11)
                if distance == 16384:
                    return
            state = word & 3
        else:
            length = 2 if state < 4 else 3
            distance = (data[at] << 2) + (code >> 2) + (1 if state < 4 else 2049)
            at += 1
            state = code & 3
        _copy(result, distance, length, most)
        at = _literals(data, at, state, most, result)


def _count(data: bytes, at: int, low: int, base: int) -> tuple[int, int]:
    """A length: the low bits, or where they are zero as many bytes of 255 as there are."""
    if low:
        return low, at
    start = at
    while data[at] == 0:
        at += 1
    return base + 255 * (at - start) + data[at], at + 1


def _literals(data: bytes, at: int, count: int, most: int, result: bytearray) -> int:
    if at + count > len(data) or len(result) + count > most:
        raise DamagedError("too many new bytes")
    result += data[at : at + count]
    return at + count


def _copy(result: bytearray, distance: int, length: int, most: int) -> None:
    if distance > len(result) or len(result) + length > most:
        raise DamagedError("bytes are copied from where there are none")
    start = len(result) - distance
    pattern = bytes(result[start : start + length])
    result += (pattern * (length // len(pattern) + 1))[:length]
