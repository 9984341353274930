"""Write sequences over time and place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib import dates
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import to_rgba

from cbtlab.phases import Instant, Span, phase_of
from cbtlab.plots.canvas import (
    GREEN,
    INK,
    OP_COLOURS,
    RED,
    SKY,
    YELLOW,
    Figure,
    byte_axis,
    cut,
    legend,
    new_figure,
    patch,
)
from cbtlab.units import format_bytes
from cbtlab.writes.schema import OPS

SINGLE = 20_000  # up to so many writes are drawn one by one, more as a raster
PHASE_COLOURS = {"mend": GREEN, "mount": SKY, "delete": RED, "unmount": YELLOW, "other": INK}
PHASE_WORDS = {
    "mend": "while bringing to rest",
    "mount": "while mounting",
    "delete": "while deleting",
    "unmount": "while unmounting",
    "other": "outside of these",
}


def timeline(
    writes: pd.DataFrame,
    *,
    volume_size: int,
    instants: Sequence[Instant] = (),
    spans: Sequence[Span] = (),
    every: int = 1,
) -> Figure:
    """Draw the writes on both volumes over time and place, coloured by operation.

    ``writes`` is a write sequence.  ``instants`` are drawn as lines through both
    panels (dashed where estimated), ``spans`` as bands in the snapshot's panel.
    ``every`` is n where ``writes`` has only one in n of the writes, and is told.
    """
    made = new_figure(6.2)
    panels = made.subplots(2, 1, sharex=True, height_ratios=[3, 2])
    limits = _time_limits(writes, instants)
    ends = (writes["offset"] + writes["length"]).to_numpy()
    shown = cut(int(ends.max(initial=0)), volume_size)
    present: set[str] = set()
    for axes, volume in zip(panels, ("physical", "snapshot"), strict=True):
        rows = writes[(writes["volume"] == volume).to_numpy()]
        present |= set(rows["op"].unique())
        _draw_writes(axes, rows, shown, limits)
        byte_axis(axes.yaxis, shown, "place")
        axes.set_ylim(0, shown)
        axes.set_xlim(*limits)
        axes.set_title(
            f"{'Physical volume' if volume == 'physical' else 'Snapshots'}: {_count(rows, every)}",
            loc="left",
            fontsize=10,
        )
        for instant in instants:
            axes.axvline(
                _days(instant.time),
                color=INK,
                linewidth=0.9,
                linestyle="-" if instant.exact else (0, (3, 3)),
                zorder=3,
            )
    least = (limits[1] - limits[0]) * 0.003  # a band of milliseconds is still to be seen
    for begin, end in _joined(spans):
        panels[1].axvspan(begin, max(end, begin + least), color=SKY, alpha=0.45, linewidth=0)
    _label_instants(panels[0], instants)
    _time_axis(panels[1], writes)
    handles = [patch(OP_COLOURS[op], op.replace("_", " ")) for op in OPS if op in present]
    if spans:
        handles.append(patch(SKY, "a snapshot is mounted and deleted on", alpha=0.45))
    legend(made, handles)
    return made


def snapshot_work(writes: pd.DataFrame, spans: Sequence[Span], *, volume_size: int) -> Figure:
    """Draw the writes on one snapshot, the delete's own apart from those of the mount.

    ``writes`` is its sequence, ``spans`` its phases (at least one).  Time counts
    from the first mount, in milliseconds.
    """
    made = new_figure(2.5)
    axes = made.subplots()
    start = min(span.begin for span in spans)
    phase = phase_of(writes, spans)
    time = (writes["time"].to_numpy() - start) / np.timedelta64(1, "ms")
    place = writes["offset"].to_numpy(np.float64)
    shown = cut(int((writes["offset"] + writes["length"]).max() or 0), volume_size)
    handles = []
    for span in spans:
        begin, end = ((t - start) / np.timedelta64(1, "ms") for t in (span.begin, span.end))
        axes.axvspan(begin, end, color=PHASE_COLOURS[span.kind], alpha=0.18, linewidth=0)
    for kind, colour in PHASE_COLOURS.items():
        chosen = phase == kind
        if chosen.any():
            axes.plot(
                time[chosen], place[chosen], "o", color=colour, markersize=5,
                markeredgecolor=INK, markeredgewidth=0.5, clip_on=False,
            )  # fmt: skip
            handles.append(patch(colour, f"{PHASE_WORDS[kind]}: {_writes(int(chosen.sum()))}"))
    axes.set_ylim(-shown * 0.03, shown)
    byte_axis(axes.yaxis, shown, "place")
    axes.set_xlabel("milliseconds from the mount", fontsize=9)
    axes.tick_params(axis="x", labelsize=9)
    legend(made, handles)
    return made


def _joined(spans: Sequence[Span]) -> list[tuple[float, float]]:
    """Return the spans as matplotlib's days, those that follow one another as one."""
    joined: list[tuple[float, float]] = []
    for span in sorted(spans, key=lambda one: one.begin):
        begin, end = _days(span.begin), _days(span.end)
        if joined and begin <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(end, joined[-1][1]))
        else:
            joined.append((begin, end))
    return joined


def _count(rows: pd.DataFrame, every: int) -> str:
    if every > 1:
        return f"one in {every:,} writes is drawn, {len(rows):,}"
    return f"{_writes(len(rows))}, {format_bytes(int(rows['length'].sum()))}"


def _writes(number: int) -> str:
    return "1 write" if number == 1 else f"{number:,} writes"


def _time_limits(writes: pd.DataFrame, instants: Sequence[Instant]) -> tuple[float, float]:
    """Return the first and last moment to show, in matplotlib's days, with a margin."""
    known = [instant.time for instant in instants]
    if len(writes):
        times = writes["time"].to_numpy()
        known += [times.min(), times.max()]
    if not known:
        return 0.0, 1.0
    low, high = (_days(time) for time in (min(known), max(known)))
    margin = max((high - low) * 0.02, 1e-8)
    return low - margin, high + margin


def _draw_writes(axes: Axes, rows: pd.DataFrame, size: int, limits: tuple[float, float]) -> None:
    if len(rows) > SINGLE:
        _draw_raster(axes, rows, size, limits)
        return
    time = _days(rows["time"].to_numpy())
    begin = rows["offset"].to_numpy(np.float64)
    # a short write still gets a mark that the eye can find
    end = begin + np.maximum(rows["length"].to_numpy(np.float64), size / 110)
    thickness = 3.0 if len(rows) < 400 else 1.6
    for op, colour in OP_COLOURS.items():
        chosen = (rows["op"] == op).to_numpy()
        lines = np.stack([time, begin, time, end], axis=1)[chosen].reshape(-1, 2, 2)
        axes.add_collection(
            LineCollection(
                list(lines), colors=colour, linewidths=thickness, alpha=0.75, rasterized=True
            )
        )


def _draw_raster(axes: Axes, rows: pd.DataFrame, size: int, limits: tuple[float, float]) -> None:
    """Paint the cells of time and place that writes touch, darker where there are more."""
    wide, high = 1000, 260
    low, span = limits[0], limits[1] - limits[0]
    for op, colour in OP_COLOURS.items():
        chosen = np.flatnonzero((rows["op"] == op).to_numpy())
        if not len(chosen):
            continue
        steps = np.zeros((high + 1) * wide, np.int64)
        for part in np.array_split(chosen, -(-len(chosen) // (1 << 22))):
            some = rows.iloc[part]
            x = (_days(some["time"].to_numpy()) - low) / span * wide
            x = np.clip(x, 0, wide - 1).astype(np.int64)
            offset = some["offset"].to_numpy(np.float64)
            first = np.clip(offset / size * high, 0, high - 1).astype(np.int64)
            last = (offset + some["length"].to_numpy(np.float64) - 1) / size * high
            last = np.clip(last, 0, high - 1).astype(np.int64)
            steps += np.bincount(first * wide + x, minlength=len(steps))
            steps -= np.bincount((last + 1) * wide + x, minlength=len(steps))
        touched = np.cumsum(steps.reshape(high + 1, wide), axis=0)[:high]
        shade = np.where(touched > 0, 0.35 + 0.65 * _rank(touched), 0.0)
        image = np.zeros((high, wide, 4))
        image[..., :3], image[..., 3] = to_rgba(colour)[:3], shade
        axes.imshow(
            image,
            origin="lower",
            extent=(limits[0], limits[1], 0, size),
            aspect="auto",
            interpolation="nearest",
        )


def _rank(touched: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Return counts on a scale from 0 to 1 by magnitude."""
    return np.log1p(touched) / max(float(np.log1p(touched.max(initial=1))), 1.0)


def _label_instants(axes: Axes, instants: Sequence[Instant]) -> None:
    """Write the labels above the panel, on two lines where they would collide."""
    low, high = axes.get_xlim()
    taken = [-1.0, -1.0]
    for instant in sorted(instants, key=lambda one: one.time):
        x = (_days(instant.time) - low) / (high - low)
        level = 0 if x > taken[0] else 1
        taken[level] = x + 0.008 * len(instant.label.strip("$")) + 0.01
        axes.annotate(
            instant.label,
            (x, 1),
            xycoords="axes fraction",
            xytext=(0, 17 + 12 * level),
            textcoords="offset points",
            ha="center",
            fontsize=10,
            color=INK,
        )


def _time_axis(axes: Axes, writes: pd.DataFrame) -> None:
    locator = dates.AutoDateLocator()  # type: ignore[no-untyped-call]
    axes.xaxis.set_major_locator(locator)
    formatter = dates.ConciseDateFormatter(locator)  # type: ignore[no-untyped-call]
    axes.xaxis.set_major_formatter(formatter)
    axes.set_xlabel("time (UTC)")


def _days(time: Any) -> Any:
    """Return instants as matplotlib counts them: days, as floats."""
    return dates.date2num(time)  # type: ignore[no-untyped-call]
