"""LZNT1, the compression of NTFS: chunks of 4 KiB, each a header and tokens.

Source: [MS-XCA], section 2.5.  A token is a byte, or a pair of distance and length whose
widths depend on the place in the chunk.
"""

from __future__ import annotations

CHUNK = 4096
_DATA, _SIZE = 0x8000, 0x0FFF


def decompress(data: bytes, length: int) -> bytes:
    """Return ``length`` bytes; what the data does not reach is zeros.  ValueError on damage."""
    parts, at, done = [], 0, 0
    while done < length and at + 2 <= len(data):
        header = int.from_bytes(data[at : at + 2], "little")
        if not header:
            break
        end = at + 3 + (header & _SIZE)
        if end > len(data):
            raise ValueError("a chunk ends behind its data")
        body = data[at + 2 : end]
        chunk = _chunk(body) if header & _DATA else body
        if len(chunk) > CHUNK:
            raise ValueError("a chunk is too long")
        parts.append(chunk.ljust(CHUNK, b"\0"))
        at, done = end, done + CHUNK
    return b"".join(parts)[:length].ljust(length, b"\0")


def _chunk(body: bytes) -> bytes:
    """The content of one compressed chunk."""
    out = bytearray()
    at, end = 0, len(body)
    bits, limit = 4, 16  # of the distance, and the place up to which it has so many
    while at < end:
        flags = body[at]
        at += 1
        if not flags:
            out += body[at : at + 8]
            at += 8
            continue
        for bit in range(8):
            if at >= end:
                break
            if not flags >> bit & 1:
                out.append(body[at])
                at += 1
                continue
            if at + 2 > end or not out:
                raise ValueError("a pair is cut, or has nothing before it")
            pair = body[at] | body[at + 1] << 8
            at += 2
            while len(out) > limit:
                bits, limit = bits + 1, limit * 2
            if len(out) >= CHUNK:
                raise ValueError("a chunk is too long")
            distance = (pair >> 16 - bits) + 1
            count = (pair & (1 << 16 - bits) - 1) + 3
            start = len(out) - distance
            if start < 0:
                raise ValueError("a pair leads before its chunk")
            if distance >= count:
                out += out[start : start + count]
            else:
                piece = bytes(out[start:])
                out += (piece * (count // distance + 1))[:count]
    return bytes(out)
