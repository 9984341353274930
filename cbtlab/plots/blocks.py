"""Blocks over the volume: as a map, as strips, as the steps of the merge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.colors import ListedColormap, to_rgba

from cbtlab.bitmap import Bitmap
from cbtlab.plan import Plan
from cbtlab.plots.canvas import (
    BLUE,
    EMPTY,
    GREY,
    HELD,
    INK,
    RED,
    SOURCE_COLOURS,
    YELLOW,
    Figure,
    beside,
    byte_axis,
    cut,
    legend,
    new_figure,
    patch,
    place_label,
    plain,
)
from cbtlab.replay import Merged
from cbtlab.units import format_bytes

COLUMNS, CELLS = 256, 1 << 15  # of a block map
BINS = 1200  # of a strip: more than a screen shows at report width
LARGEST = 1 << 30  # the coarsest granularity of a Bitmap

Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Layer:
    """Blocks of one kind: what they are called, their colour, and where they are."""

    label: str
    colour: str
    blocks: Bitmap


def block_map(
    layers: Sequence[Layer], *, rest: str = "unchanged", rest_colour: str = HELD
) -> Figure:
    """Draw the volume as a grid of cells, row by row, each coloured by what is in it.

    Where layers meet, the earlier one in the list shows; a cell of several
    blocks shows the earliest layer that one of them is in, so that a single
    block is never lost.  Counts in the legend are blocks, counted once, for the
    layer that claims them.  A long end without a mark is cut off, and told.  All
    bitmaps are of one volume size and granularity.
    """
    first = layers[0].blocks
    shown = _shown([layer.blocks for layer in layers])
    cell, cells = _cells(shown, first.granularity)
    wide = min(COLUMNS, cells, 1 << max(round(np.log2(cells) / 2 + 0.5), 3))
    painted = np.zeros(-(-cells // wide) * wide, np.uint8)
    painted[cells:] = len(layers) + 1  # behind the end of the volume
    for number in range(len(layers), 0, -1):
        painted[:cells][_binned(layers[number - 1].blocks, cell, cells)] = number
    grid = painted.reshape(-1, wide)
    high = len(grid)
    made = new_figure(1.35 + 4.6 * min(1.0, max(high / 128, 0.25)) + 0.22 * (len(layers) // 3))
    axes = made.subplots()
    colours = [rest_colour, *(layer.colour for layer in layers), "white"]
    axes.imshow(
        grid,
        cmap=ListedColormap(colours),
        vmin=-0.5,
        vmax=len(colours) - 0.5,
        aspect="auto",
        interpolation="nearest",
        extent=(0, wide * cell, high * wide * cell, 0),
    )
    byte_axis(axes.yaxis, high * wide * cell, "place" if high < 48 else "place on the volume")
    byte_axis(axes.xaxis, wide * cell, "place within a row")
    grain = first.granularity
    one = "1 block" if cell == grain else f"{cell // grain:,} blocks"
    title = f"{first.blocks:,} blocks of {format_bytes(grain)}; one cell is {one}"
    if shown < first.volume_size:
        title += (
            f"; {format_bytes(shown)} of {format_bytes(first.volume_size)} shown, behind: {rest}"
        )
    axes.set_title(title, loc="left", fontsize=10)
    handles, claimed = [], Bitmap(first.volume_size, grain)
    for layer in layers:
        mine = layer.blocks - claimed
        claimed = claimed | layer.blocks
        if mine.any():
            handles.append(patch(layer.colour, f"{layer.label}: {mine.count():,}"))
    handles.append(patch(rest_colour, f"{rest}: {(~claimed).count():,}"))
    legend(made, handles, columns=3)
    return made


def backup_map(plan: Plan, merged: Merged, excluded: Bitmap | None) -> Figure:
    """Draw what became of each block in a backup.

    Stored blocks by what brought them in; blocks declared zero; and blocks left
    out: because of an excluded file, or because nothing in use lies there.
    ``excluded`` is ``X_k`` at the file system's block, None where it is not known.
    """
    if plan.base is None:
        return block_map(_full_layers(plan, excluded), rest="not in use", rest_colour=EMPTY)
    grain = plan.master.granularity
    nothing = Bitmap(plan.master.volume_size, grain)
    mask = nothing if excluded is None else excluded.outward(grain)
    stored, zeroed = plan.copied.outward(grain), plan.zeroed.outward(grain)
    colours = SOURCE_COLOURS
    layers = [
        Layer("stored: written in use", colours["physical"], stored & (merged.physical or nothing)),
        Layer("stored: the delete", colours["snapshot"], stored & (merged.snapshot or nothing)),
        Layer("stored: the carry-over", colours["carry"], stored & (merged.carry or nothing)),
        Layer("stored: joined, not written", colours["joined"], stored),
        Layer("declared zero", INK, zeroed),
        Layer("changed, excluded: left out", RED, plan.master & mask),
        Layer("changed, not in use: left out", YELLOW, plan.master),
    ]
    return block_map(layers, rest="not changed")


def _full_layers(plan: Plan, excluded: Bitmap | None) -> list[Layer]:
    stored = Layer("stored: in use", BLUE, plan.copied.outward(plan.master.granularity))
    if excluded is None:
        return [stored]
    mask = excluded.outward(plan.master.granularity)
    return [stored, Layer("excluded files: left out", RED, mask)]


def strips(rows: Sequence[Layer | Sequence[Layer]], *, title: str = "") -> Figure:
    """Draw each row as a strip of the whole volume, its count of blocks beside it.

    A row of several layers shows the earlier where they meet, and is called by the
    label of the first.  A long end without a mark is cut off, and told.
    """
    stacked = [[row] if isinstance(row, Layer) else list(row) for row in rows]
    size = stacked[0][0].blocks.volume_size
    shown = _shown([layer.blocks for layers in stacked for layer in layers])
    made = new_figure(0.9 + 0.33 * len(stacked) + (0.25 if title else 0))
    axes = made.subplots()
    for place, layers in enumerate(stacked):
        image = np.full((1, BINS, 4), to_rgba(EMPTY))
        for layer in reversed(layers):
            image[0, _spread(layer.blocks, shown)] = to_rgba(layer.colour)
        axes.imshow(
            image,
            extent=(0, shown, place + 0.41, place - 0.41),
            aspect="auto",
            interpolation="nearest",
        )
        union = layers[0].blocks
        for layer in layers[1:]:
            union = union | layer.blocks
        axes.text(
            1.01, place, f"{union.count():,}", transform=beside(axes), va="center", fontsize=9
        )
    axes.text(1.01, -0.85, "blocks", transform=beside(axes), va="center", fontsize=8, color=GREY)
    axes.set_yticks(range(len(stacked)), [layers[0].label for layers in stacked], fontsize=9)
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(len(stacked) - 0.4, -0.6)
    axes.set_xlim(0, shown)
    byte_axis(axes.xaxis, shown, place_label(shown, size))
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    if title:
        axes.set_title(title, loc="left", fontsize=10)
    return made


def merge_steps(
    physical: Mapping[int, Bitmap],
    snapshot: Bitmap | None,
    carry: Bitmap | None,
    master: Bitmap,
    *,
    k: int,
    base: int | None,
) -> Figure:
    """Draw how ``M_k`` comes about: each ``W_P`` since the base, ``W_S(k)``, ``W_S(j)``, the OR.

    In the last strip a block has the colour of the first that brought it in.
    """
    layers = [
        Layer(f"W_P({number}): the volume in use", SOURCE_COLOURS["physical"], blocks)
        for number, blocks in physical.items()
    ]
    if snapshot is not None:
        layers.append(Layer(f"W_S({k}): the delete", SOURCE_COLOURS["snapshot"], snapshot))
    if carry is not None:
        layers.append(Layer(f"W_S({base}): the carry-over", SOURCE_COLOURS["carry"], carry))
    everything = Layer(f"M_{k}: their OR", INK, master)
    merged = [Layer(f"M_{k}: their OR", layer.colour, layer.blocks) for layer in layers]
    return strips([*layers, [*merged, everything]])


def excluded_files(
    extents: pd.DataFrame, master: Bitmap | None, copied: Bitmap, *, most: int = 9
) -> Figure:
    """Draw where the excluded files lie, above what changed and what was stored.

    ``extents`` has ``path``, ``physical`` and ``length`` in bytes (physical null
    where there is no address).  The ``most`` largest files get a row each, the
    others one together.  ``master`` is None for a full backup; ``copied`` may be at
    another granularity.
    """
    size = copied.volume_size
    grain = copied.granularity if master is None else master.granularity
    placed = extents[extents["physical"].notna().to_numpy()]
    total = placed.groupby("path", sort=False, observed=True)["length"].sum()
    names = list(total.sort_values(ascending=False, kind="stable").index)
    groups = [[name] for name in names[:most]]
    groups += [names[most:]] if names[most:] else []
    rows = []
    for group in groups:
        chosen = placed[placed["path"].isin(group).to_numpy()]
        blocks = Bitmap.from_ranges(
            chosen["physical"].to_numpy(np.uint64),
            chosen["length"].to_numpy(np.uint64),
            volume_size=size,
            granularity=grain,
        )
        label = plain(group[0]) if len(group) == 1 else f"{len(group):,} more files"
        rows.append(Layer(label, RED, blocks))
    if master is not None:
        rows.append(Layer("changed since the base", BLUE, master))
    rows.append(Layer("stored in the backup", INK, copied.outward(grain)))
    return strips(rows)


def _shown(bitmaps: Sequence[Bitmap]) -> int:
    """Return up to which byte to show: all, or less where a long end has no mark."""
    last = max((bitmap.bits.find(1, right=True) for bitmap in bitmaps), default=-1)
    size = bitmaps[0].volume_size
    return cut((last + 1) * bitmaps[0].granularity, size)


def _cells(shown: int, granularity: int) -> tuple[int, int]:
    """Return the bytes of a cell of a block map, a power of two, and how many there are."""
    cell = granularity
    while -(-shown // cell) > CELLS:
        cell *= 2
    return cell, max(-(-shown // cell), 1)


def _binned(bitmap: Bitmap, cell: int, cells: int) -> Bools:
    """Return which of the first ``cells`` cells have a marked block."""
    many = cell // min(cell, LARGEST)
    coarse = bitmap.outward(min(cell, LARGEST)).to_bool()[: cells * many]
    padded = np.zeros(cells * many, np.bool_)
    padded[: len(coarse)] = coarse
    return np.asarray(padded.reshape(cells, many).any(axis=1))


def _spread(bitmap: Bitmap, shown: int) -> Bools:
    """Return which of `BINS` bins over the first ``shown`` bytes touch a marked block."""
    cell = bitmap.granularity
    while -(-shown // cell) > BINS * 64:
        cell *= 2
    marked = _binned(bitmap, cell, max(-(-shown // cell), 1))
    at = np.flatnonzero(marked)
    first = at * BINS // len(marked)
    last = np.minimum(((at + 1) * BINS - 1) // len(marked), BINS - 1)
    steps = np.bincount(first, minlength=BINS + 1) - np.bincount(last + 1, minlength=BINS + 1)
    return np.asarray(np.cumsum(steps)[:BINS] > 0)
