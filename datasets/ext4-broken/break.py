"""Breaks two good intervals of the recording: events lost in one, bits cleared in another.

usage: python break.py RECORDING CASE

RECORDING is what ``cbtlab lab run ext4-broken --to RECORDING`` made; CASE is
the case with the faults.  The third fault, an interval switched after the
volume was resumed, is in the recording itself.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pandas as pd

from cbtlab.bitmap import Bitmap
from cbtlab.case import Case, Interval
from cbtlab.images import differing
from cbtlab.writes import VOLUMES

LOST_IN, LOST = 1, 25
CLEARED_IN, CLEARED = 2, 6


def lose_events(frame: pd.DataFrame) -> pd.DataFrame:
    """Drop writes from the middle of a sequence; their numbers stay missing."""
    start = len(frame) // 2
    return frame.drop(frame.index[start : start + LOST])


def clear_bits(case: Case, interval: Interval, bitmap: Bitmap) -> Bitmap:
    """Clear bits of blocks that did change, in files: what a tracker that misses writes does."""
    before = case.intervals[interval.k - 1]
    with before.snapshot() as old, interval.snapshot() as new:
        changed = differing(old, new, case.granularity)
    writes = interval.writes("physical")
    assert writes is not None
    data = writes[writes["inode"].notna() & (writes["comm"] == "python3.11")]
    blocks = np.unique(data["offset"].to_numpy(np.int64) // case.granularity)
    lost = [block for block in blocks.tolist() if block in changed][:CLEARED]
    return bitmap - Bitmap.from_indices(
        np.array(lost), volume_size=case.volume_size, granularity=case.granularity
    )


def break_case(recording: Path, to: Path) -> Case:
    """Make the case ``to`` of ``recording``, with the faults."""
    good = Case.open(recording)
    case = Case.create(
        to, good.volume_size, good.granularity, name=good.name, recorded=good.recorded, force=True
    )
    for interval in good.intervals:
        writes, bitmaps, discarded = {}, {}, {}
        for volume in VOLUMES:
            if (frame := interval.writes(volume)) is not None:
                writes[volume] = frame
            if (bitmap := interval.bitmap(volume)) is not None:
                bitmaps[volume] = bitmap
            if (bitmap := interval.bitmap(volume, "discarded")) is not None:
                discarded[volume] = bitmap
        if interval.k == LOST_IN:
            writes["physical"] = lose_events(writes["physical"])
        if interval.k == CLEARED_IN:
            bitmaps["physical"] = clear_bits(good, interval, bitmaps["physical"])
        images = interval.record
        case.add(
            snapshot=recording / images["snapshot"]["file"],
            stored=recording / images["stored"]["file"],
            writes=writes,
            bitmaps=bitmaps,
            discarded=discarded,
            patterns=list(interval.patterns),
            kept=interval.kept,
            unusable=list(interval.unusable),
            marks=interval.marks,
            log=interval.record["log"],
        )
    return case


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    print(break_case(Path(sys.argv[1]), Path(sys.argv[2])).text())
