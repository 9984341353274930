"""What the pictures share: the figure, the colours, legends, and axes of bytes."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from matplotlib import figure
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.patches import Patch

from cbtlab.plan import SURPLUS
from cbtlab.units import format_bytes
from cbtlab.writes.schema import OPS

WIDTH = 10.0  # inches: the report shows them at the width of its text

BLUE, ORANGE, GREEN, RED = "#0072B2", "#E69F00", "#009E73", "#D55E00"
PINK, SKY, YELLOW, GREY, INK = "#CC79A7", "#56B4E9", "#F0E442", "#8C8C8C", "#222222"
HELD, EMPTY = "#D4D4D4", "#F7F7F7"

OP_COLOURS: dict[str, str] = dict(zip(OPS, (BLUE, ORANGE, GREEN, RED), strict=True))
SOURCE_COLOURS = {"physical": BLUE, "snapshot": ORANGE, "carry": PINK, "joined": GREEN}
COST_COLOURS: dict[str, str] = {
    "least": BLUE,
    **dict(zip(map(str, SURPLUS), (GREEN, SKY, PINK, YELLOW, ORANGE, GREY), strict=True)),
}


class Figure(figure.Figure):
    """A figure that shows itself in a notebook without pyplot."""

    def _repr_png_(self) -> bytes:
        return png(self, dpi=96)


def png(drawn: figure.Figure, dpi: int = 144, colours: int = 128) -> bytes:
    """Return a figure as a small PNG with a palette of ``colours``, the same for the same data."""
    from PIL import Image

    before = drawn.dpi
    drawn.set_dpi(dpi)
    canvas = FigureCanvasAgg(drawn)
    canvas.draw()  # type: ignore[no-untyped-call]
    pixels = np.asarray(canvas.buffer_rgba())  # type: ignore[no-untyped-call]
    image = Image.fromarray(pixels).convert("RGB")
    drawn.set_dpi(before)
    small = image.quantize(colours, dither=Image.Dither.NONE)
    out = io.BytesIO()
    small.save(out, format="png", optimize=True)
    return out.getvalue()


def new_figure(height: float) -> Figure:
    """Return an empty figure of the report's width; ``height`` is inches."""
    made = Figure(figsize=(WIDTH, height), layout="constrained", facecolor="white")
    FigureCanvasAgg(made)
    return made


def beside(axes: Axes) -> Any:
    """Return the transform with x in fractions of the panel and y in data."""
    return axes.get_yaxis_transform()


def patch(colour: str, label: str, alpha: float = 1.0) -> Patch:
    """Return an entry of a legend."""
    return Patch(facecolor=colour, edgecolor="#777777", linewidth=0.4, label=label, alpha=alpha)


def legend(made: Figure, handles: list[Patch], columns: int = 5) -> None:
    """Put a legend below the panels."""
    if handles:
        made.legend(
            handles=handles,
            loc="outside lower center",
            ncols=min(columns, len(handles)),
            frameon=False,
            fontsize=9,
        )


def byte_axis(axis: Any, size: int, label: str = "place on the volume") -> None:
    """Label an axis of bytes in the unit that fits ``size``, with round ticks."""
    power = max(min((max(size, 1).bit_length() - 2) // 10, 5), 0)
    name = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")[power]
    scale = 1 << (10 * power)
    steps = size / scale
    step = max(2.0 ** np.ceil(np.log2(max(steps, 1e-9) / 8)), 1.0 / 1024)
    ticks = np.arange(0, steps + step / 2, step)
    axis.set_ticks(ticks * scale, [f"{tick:g}" for tick in ticks], fontsize=9)
    axis.set_label_text(f"{label} ({name})", fontsize=9)


def cut(end: int, size: int) -> int:
    """Return up to where to show a volume of ``size`` bytes of which nothing lies behind ``end``.

    Less than all of it only where that saves much of the picture.
    """
    step = max(size // 16, 1)
    shown = max(-(-end // step), 1) * step
    return shown if shown * 5 <= size * 3 else size


def place_label(shown: int, size: int) -> str:
    """Return the words for an axis of places that ends at ``shown`` of ``size`` bytes."""
    if shown == size:
        return "place on the volume"
    return f"place on the volume of {format_bytes(size)}; nothing lies behind"


def plain(name: str, most: int = 34) -> str:
    """Return a path as text that a picture can show: nothing to interpret, not too long."""
    shown = "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in name).replace("$", r"\$")
    return shown if len(shown) <= most else f"{shown[: most // 3]}…{shown[-(most - most // 3) :]}"
