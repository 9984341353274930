"""What each backup stores, and how much of it had to be."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cbtlab.plan import SURPLUS
from cbtlab.plots.canvas import BLUE, COST_COLOURS, Figure, byte_axis, legend, new_figure, patch
from cbtlab.units import format_bytes


def costs(document: Mapping[str, Any], unit: int) -> Figure:
    """Draw what each backup stores: what it had to, and the surplus by name.

    ``document`` is that of an audit, ``unit`` the bytes of a unit.  A full backup
    that would dwarf the incrementals is cut at the edge, and says so.
    """
    kept = [entry for entry in document["intervals"] if entry.get("copied") is not None]
    sizes = [entry["copied"] * unit for entry in kept if entry["kind"] == "incremental"]
    full = [entry["copied"] * unit for entry in kept if entry["kind"] == "full"]
    edge = max(sizes, default=0) * 1.25 or max(full, default=unit)
    names = ["least", *SURPLUS]
    made = new_figure(1.3 + 0.42 * len(kept))
    axes = made.subplots()
    for place, entry in enumerate(kept):
        surplus = entry.get("surplus") or {}
        left = 0
        needed = entry["copied"] - sum(surplus.values())
        for name in names:
            width = unit * (needed if name == "least" else surplus.get(name, 0))
            axes.barh(place, width, left=left, height=0.62, color=COST_COLOURS[name])
            left += width
        words = f"{entry['copied']:,} units, {format_bytes(left)}"
        if left > edge:
            axes.text(edge * 0.985, place, f"{words}, cut here ▸", ha="right", va="center",
                      fontsize=9, color="white")  # fmt: skip
        else:
            axes.text(left + edge * 0.01, place, words, va="center", fontsize=9)
    labels = [
        f"backup {entry['k']}, full"
        if entry["base"] is None
        else f"{entry['k']} on {entry['base']}"
        for entry in kept
    ]
    axes.set_yticks(range(len(kept)), labels, fontsize=9)
    axes.set_ylim(len(kept) - 0.4, -0.6)
    axes.set_xlim(0, edge)
    byte_axis(axes.xaxis, int(edge), "stored")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    used = {name for entry in kept for name, many in (entry.get("surplus") or {}).items() if many}
    handles = [patch(BLUE, "had to be stored")]
    handles += [patch(COST_COLOURS[name], f"surplus: {name.replace('_', ' ')}")
                for name in SURPLUS if name in used]  # fmt: skip
    legend(made, handles)
    return made
