"""Pictures: what they show can be read back from their pixels and their words."""

from __future__ import annotations

import io
import time

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb
from PIL import Image

from cbtlab import plots
from cbtlab.bitmap import Bitmap
from cbtlab.phases import Instant, Span
from cbtlab.plan import plan
from cbtlab.plots import Layer
from cbtlab.plots.blocks import BINS, CELLS, _binned, _cells, _spread
from cbtlab.plots.canvas import BLUE, GREEN, INK, ORANGE, PINK, RED, YELLOW, plain
from cbtlab.replay import merge
from cbtlab.writes import empty, normalize

SIZE, GRAIN = 1 << 20, 4096
START = 1_767_600_000_000_000_000


def marked(*blocks: int, size: int = SIZE, grain: int = GRAIN) -> Bitmap:
    return Bitmap.from_indices(np.array(blocks, np.int64), size, grain)


def sequence(rows: int = 40, seed: int = 1) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    return normalize(
        pd.DataFrame(
            {
                "time": (START + np.sort(rng.integers(0, 10**10, rows))).astype("datetime64[ns]"),
                "seq": np.arange(1, rows + 1),
                "volume": np.where(np.arange(rows) % 4, "physical", "snapshot"),
                "op": np.where(np.arange(rows) % 5, "write", "discard"),
                "offset": rng.integers(0, SIZE // 4096, rows).astype(np.uint64) * 4096,
                "length": np.full(rows, 4096, np.uint64),
            }
        )
    )


def words(figure: plots.Figure) -> str:
    """Return every text that a figure shows."""
    from matplotlib.text import Text

    return "\n".join(text.get_text() for text in figure.findobj(Text))


def colours(figure: plots.Figure) -> set[tuple[int, ...]]:
    image = Image.open(io.BytesIO(plots.png(figure, dpi=80)))
    return {colour for _, colour in image.convert("RGB").getcolors(1 << 20)}  # type: ignore[misc]


def near(colour: str, found: set[tuple[int, ...]]) -> bool:
    wanted = np.array(to_rgb(colour)) * 255
    return any(np.abs(np.array(one) - wanted).max() < 6 for one in found)


def test_a_picture_is_a_png_and_the_same_for_the_same_data() -> None:
    first, second = (
        plots.png(plots.timeline(sequence(), volume_size=SIZE, instants=[])) for _ in range(2)
    )
    assert first == second
    with Image.open(io.BytesIO(first)) as image:
        assert image.format == "PNG"
        assert image.width == 1440


def test_a_figure_shows_itself_without_pyplot() -> None:
    figure = plots.strips([Layer("one", BLUE, marked(1))])
    assert figure._repr_png_().startswith(b"\x89PNG")


def test_timeline_shows_both_volumes_the_instants_and_the_operations() -> None:
    at = np.datetime64(START + 5 * 10**9, "ns")
    figure = plots.timeline(
        sequence(),
        volume_size=SIZE,
        instants=[Instant(at, "$T_0$"), Instant(at + 10**9, "$T_1$", exact=False)],
        spans=[Span(at, at + 10**8, "mount"), Span(at + 10**8, at + 10**9, "delete")],
    )
    shown = words(figure)
    assert "Physical volume: 30 writes, 120.0 KiB" in shown
    assert "Snapshots: 10 writes, 40.0 KiB" in shown
    assert "$T_0$" in shown and "$T_1$" in shown
    assert "time (UTC)" in shown and "place (KiB)" in shown
    assert "discard" in shown and "write zeroes" not in shown
    assert "a snapshot is mounted and deleted on" in shown


@pytest.mark.parametrize("rows", [0, 1])
def test_timeline_of_next_to_nothing(rows: int) -> None:
    frame = sequence(rows) if rows else empty()
    assert f"{0}" in words(plots.timeline(frame, volume_size=SIZE))


def test_timeline_of_many_writes_is_a_raster_that_shows_each_place(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("cbtlab.plots.sequences.SINGLE", 10)
    frame = sequence(200)
    frame.loc[frame["op"] == "discard", "length"] = np.uint64(SIZE // 2)
    frame["offset"] = np.minimum(frame["offset"].to_numpy(), np.uint64(SIZE // 2))
    figure = plots.timeline(frame, volume_size=SIZE)
    discards = figure.axes[0].images[1].get_array()
    assert discards is not None
    touched = np.asarray(discards)[..., 3] > 0
    columns = touched.any(axis=0)
    # a discard of half the volume is half the height of its column
    assert (touched[:, columns].sum(axis=0) >= touched.shape[0] // 2).all()


def test_a_map_paints_each_block_with_the_first_layer_that_has_it() -> None:
    figure = plots.block_map(
        [Layer("first", BLUE, marked(0, 1)), Layer("second", ORANGE, marked(1, 255))]
    )
    cells = np.asarray(figure.axes[0].images[0].get_array()).ravel()
    assert cells[:256].tolist() == [1, 1, *[0] * 253, 2]
    shown = words(figure)
    assert "first: 2" in shown and "second: 1" in shown and "unchanged: 253" in shown
    assert near(BLUE, colours(figure)) and near(ORANGE, colours(figure))


def test_one_block_of_a_huge_volume_is_never_lost_and_takes_no_loop() -> None:
    size = 1 << 40
    block = 212_345_678
    one = marked(block, size=size)
    started = time.process_time()
    figure = plots.block_map([Layer("one", BLUE, one)])
    cells = np.asarray(figure.axes[0].images[0].get_array()).ravel()
    assert time.process_time() - started < 5
    assert cells.sum() == 1
    assert int(cells.argmax()) == block * 4096 // (size // CELLS)
    assert "one cell is 8,192 blocks" in words(figure)
    assert "unchanged: 268,435,455" in words(figure)


def test_a_long_end_without_a_mark_is_cut_off_and_told() -> None:
    size = 1 << 27
    layers = [Layer("one", BLUE, marked(0, 6000, size=size))]
    figure = plots.block_map(layers)
    assert "24.0 MiB of 128.0 MiB shown, behind: unchanged" in words(figure)
    assert np.asarray(figure.axes[0].images[0].get_array()).ravel()[6000] == 1
    assert "unchanged: 32,766" in words(figure)
    assert "of 128.0 MiB; nothing lies behind" in words(plots.strips(layers))
    far = [Layer("one", BLUE, marked(0, 32767, size=size))]
    assert "behind" not in words(plots.block_map(far)) + words(plots.strips(far))


def test_the_work_on_a_snapshot_parts_the_delete_from_the_mount() -> None:
    frame = sequence(20)
    frame = frame[frame["volume"] == "snapshot"]
    time = frame["time"].to_numpy()
    seq = frame["seq"].to_numpy(np.uint64)
    phases = [
        Span(time[0], time[2], "mount", int(seq[0]), int(seq[2])),
        Span(time[2], time[4], "delete", int(seq[2]), int(seq[4])),
    ]
    shown = words(plots.snapshot_work(frame, phases, volume_size=SIZE))
    assert "while mounting: 2 writes" in shown and "while deleting: 2 writes" in shown
    assert "outside of these: 1 write" in shown and "while unmounting" not in shown
    assert "milliseconds from the mount" in shown


def test_cells_of_a_volume_that_is_no_power_of_two() -> None:
    size = (CELLS + 3) * 4096 + 512
    bitmap = Bitmap.from_indices(np.array([CELLS + 3]), size, 4096)
    cell, cells = _cells(size, 4096)
    assert (cell, cells) == (8192, CELLS // 2 + 2)
    assert np.flatnonzero(_binned(bitmap, cell, cells)).tolist() == [cells - 1]


def test_beyond_the_coarsest_granularity_cells_are_still_found() -> None:
    size = 1 << 50
    bitmap = Bitmap(size, 1 << 30)
    bitmap.set_ranges(np.array([size - (1 << 30)]), np.array([1 << 30]))
    cell, cells = _cells(size, 1 << 30)
    assert np.flatnonzero(_binned(bitmap, cell, cells)).tolist() == [cells - 1]


@pytest.mark.parametrize("blocks", [1, 7, 256, BINS, BINS + 1, 100_000])
def test_a_strip_shows_the_first_and_the_last_block(blocks: int) -> None:
    size = blocks * 4096
    shown = np.flatnonzero(_spread(marked(0, blocks - 1, size=size), size))
    assert shown[0] == 0 and shown[-1] == BINS - 1
    assert _spread(Bitmap.full(size, 4096), size).all()
    assert not _spread(Bitmap(size, 4096), size).any()


def test_the_merge_is_shown_step_by_step() -> None:
    physical = {2: marked(1, 2), 3: marked(3)}
    merged = merge(list(physical.values()), marked(2, 9), marked(7))
    figure = plots.merge_steps(physical, merged.snapshot, merged.carry, merged.master, k=3, base=1)
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert [label.split(":")[0] for label in labels] == [
        "W_P(2)", "W_P(3)", "W_S(3)", "W_S(1)", "M_3",
    ]  # fmt: skip
    counts = [text.get_text() for text in figure.axes[0].texts]
    assert counts[:5] == ["2", "1", "2", "1", "5"]
    assert all(near(colour, colours(figure)) for colour in (BLUE, ORANGE, PINK))


def test_a_backup_is_mapped_by_what_became_of_each_block() -> None:
    merged = merge([marked(0, 1, 2)], marked(3), marked(4))
    held, base_held = marked(0, 3, 4, 5, 8), marked(0, 3, 4, 6, 8)
    made = plan(1, merged.master, held, 0, base_held, GRAIN)
    figure = plots.backup_map(made, merged, marked(1))
    shown = words(figure)
    for label in (
        "stored: written in use: 1",
        "stored: the delete: 1",
        "stored: the carry-over: 1",
        "stored: joined, not written: 1",
        "declared zero: 1",
        "changed, excluded: left out: 1",
        "changed, not in use: left out: 1",
        "not changed: 249",
    ):
        assert label in shown
    found = colours(figure)
    for colour in (BLUE, ORANGE, PINK, GREEN, INK, RED, YELLOW):
        assert near(colour, found)


def test_a_full_backup_is_mapped_by_what_is_held() -> None:
    made = plan(0, Bitmap(SIZE, GRAIN), marked(0, 3), None, None, GRAIN)
    merged = merge([], marked(3), None)
    shown = words(plots.backup_map(made, merged, marked(9)))
    assert "stored: in use: 2" in shown and "excluded files: left out: 1" in shown
    assert "not in use: 253" in shown
    assert "stored: in use: 2" in words(plots.backup_map(made, merged, None))


def test_excluded_files_have_a_row_each_and_the_small_ones_one_together() -> None:
    extents = pd.DataFrame(
        {
            "path": [f"/cache/{n}" for n in range(20)] + ["/cache/0", "/inline"],
            "physical": pd.array([n * 8192 for n in range(21)] + [pd.NA], dtype="UInt64"),
            "length": np.array([4096] * 21 + [60], np.uint64),
        }
    )
    figure = plots.excluded_files(extents, marked(0, 2), marked(2), most=3)
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert labels[0] == "/cache/0"
    assert labels[3:] == ["17 more files", "changed since the base", "stored in the backup"]
    assert figure.axes[0].texts[0].get_text() == "2"
    without = plots.excluded_files(extents, None, marked(2), most=3)
    assert "changed since the base" not in words(without)


def test_a_hostile_name_is_only_text() -> None:
    assert plain("/a$x_1$\n\u202e.txt") == r"/a\$x_1\$\u000a\u202e.txt"
    assert len(plain("x" * 500)) <= 36
    name = "/$\\frac{$_{\x1b[31m\u202e\u2066<b>"
    extents = pd.DataFrame(
        {
            "path": [name],
            "physical": np.array([4096], np.uint64),
            "length": np.array([4096], np.uint64),
        }
    )
    assert plots.png(plots.excluded_files(extents, marked(1), marked(2)))


def test_costs_part_what_was_needed_from_the_surplus() -> None:
    document = {
        "intervals": [
            {"k": 0, "kind": "full", "base": None, "copied": 5000, "surplus": {"same_bytes": 3}},
            {"k": 1, "kind": "incremental", "base": 0, "copied": 80, "surplus": {"joined": 4}},
            {"k": 2, "kind": "incremental", "base": 1, "copied": None, "surplus": None},
        ]
    }
    figure = plots.costs(document, 4096)
    shown = words(figure)
    assert "5,000 units, 19.5 MiB, cut here" in shown
    assert "80 units, 320.0 KiB" in shown
    assert "surplus: joined" in shown and "surplus: rounding" not in shown
    widths = [patch.get_width() for patch in figure.axes[0].patches]  # type: ignore[attr-defined]
    assert widths[7] == 76 * 4096 and 4 * 4096 in widths
