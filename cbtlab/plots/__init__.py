"""Pictures of write sequences, bitmaps and audits, as matplotlib figures.

Every function is pure: data in, a `Figure` out; nothing is registered with
pyplot, so that it works without a display and leaves nothing behind.  Volumes
of any size are binned by bitmap operations, never by a loop over blocks.  The
colours are those of Okabe and Ito, which the colour-blind can tell apart; what
a colour says is also said in words.
"""

from __future__ import annotations

from cbtlab.plots.blocks import (
    Layer,
    backup_map,
    block_map,
    excluded_files,
    merge_steps,
    strips,
)
from cbtlab.plots.canvas import Figure, png
from cbtlab.plots.costs import costs
from cbtlab.plots.sequences import snapshot_work, timeline

__all__ = [
    "Figure",
    "Layer",
    "backup_map",
    "block_map",
    "costs",
    "excluded_files",
    "merge_steps",
    "png",
    "snapshot_work",
    "strips",
    "timeline",
]
