"""What a scrub adds to the plan of a link, and what ``audit.json`` tells of it."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping
from typing import Any

from cbtlab.bitmap import Bitmap
from cbtlab.images import Image
from cbtlab.leftovers import Patches
from cbtlab.plan import Plan

_LISTED = 1000


def added_units(plan: Plan, patches: Patches, earlier: Mapping[int, Patches]) -> Bitmap:
    """The units that are stored for the scrub alone.

    A place can become a leftover without a write in it: a file is cut, and the old bytes lie
    behind its end.  So a held unit is stored where the link overwrites other bytes than its
    base did, even if it is not in ``M_k``: then ``R_k`` is what the scrub makes of ``S_k*``.
    """
    size, unit = plan.copied.volume_size, plan.unit
    before = Patches() if plan.base is None else earlier[plan.base]
    return (patches.changed(before, size, unit) & plan.held.outward(unit)) - plan.copied


def told(patches: Patches, image: Image) -> dict[str, Any]:
    """Return what was overwritten of ``image``: counts, and the pieces with their digests.

    The digests of what was there stand here, and not in the chain: of a few bytes a digest
    is enough to try guesses on.
    """
    bytes_by: Counter[str] = Counter()
    for patch in patches.items:
        bytes_by[patch.kind] += patch.length
    pieces = [
        {
            "offset": patch.offset,
            "length": patch.length,
            "class": patch.kind,
            "owner": patch.owner,
            "before": _digest(image.read(patch.offset, patch.length)),
            "after": _digest(patch.data or bytes([patch.fill]) * patch.length),
        }
        for patch in patches.items[:_LISTED]
    ]
    return {
        "total": len(patches.items),
        "bytes": sum(bytes_by.values()),
        "classes": dict(sorted(bytes_by.items())),
        "pieces": pieces,
    }


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
