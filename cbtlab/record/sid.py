"""The owner in a Windows security descriptor, as text: ``S-1-5-21-…-1001``.

Layout: [MS-DTYP] 2.4.6 (self-relative SECURITY_DESCRIPTOR) and 2.4.2.2 (SID).
"""

from __future__ import annotations


def owner_sid(descriptor: bytes) -> str | None:
    """The owner's SID of a self-relative security descriptor; None for none, or damage."""
    if len(descriptor) < 20 or descriptor[0] != 1:
        return None
    at = int.from_bytes(descriptor[4:8], "little")
    return sid_text(descriptor[at:]) if 20 <= at < len(descriptor) else None


def sid_text(raw: bytes) -> str | None:
    """A binary SID as text; None for damage."""
    if len(raw) < 8 or raw[0] != 1 or raw[1] > 15 or len(raw) < 8 + 4 * raw[1]:
        return None
    parts = [int.from_bytes(raw[8 + 4 * n : 12 + 4 * n], "little") for n in range(raw[1])]
    return "-".join(["S-1", str(int.from_bytes(raw[2:8], "big")), *map(str, parts)])
