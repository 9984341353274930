"""What runs in the guest, as far as it needs no guest: text, deleting, a short writer."""

from __future__ import annotations

import time
import zlib
from pathlib import Path

from cbtlab.lab.content import text
from cbtlab.lab.writer import Writer
from cbtlab.record.mounted import delete


def test_text_is_the_same_for_a_seed_and_different_in_every_sector() -> None:
    one, other = text("one", 1 << 18), text("other", 1 << 18)
    assert one == text("one", 1 << 18)
    assert len(one) == 1 << 18
    sectors = [t[i : i + 512] for t in (one, other) for i in range(0, len(t), 512)]
    assert len(set(sectors)) == len(sectors)
    assert len(zlib.compress(one)) < len(one) // 4


def test_texts_of_two_seeds_have_no_run_of_bytes_in_common() -> None:
    """Else a search for the one would find the other, which is somebody else's."""
    one, other = text("one", 1 << 15), text("other", 1 << 15)
    windows = {one[i : i + 32] for i in range(len(one) - 31)}
    assert not [i for i in range(len(other) - 31) if other[i : i + 32] in windows]


def test_delete_takes_files_and_symlinks_and_stays_below_the_root(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").write_text("x")
    root = tmp_path / "root"
    (root / "cache" / "deep").mkdir(parents=True)
    (root / "cache" / "deep" / "file").write_text("12345")
    (root / "cache" / "way-out").symlink_to(outside)
    (root / "kept").symlink_to("cache/deep/file")
    gone = delete(root, lambda path: path.startswith("cache/"))
    assert [(one.path, one.size) for one in gone if "file" in one.path] == [("/cache/deep/file", 5)]
    assert {one.path for one in gone} == {"/cache/deep/file", "/cache/way-out"}
    assert (outside / "kept").exists()
    assert (root / "kept").is_symlink()
    assert (root / "cache" / "deep").is_dir(), "folders stay"


def test_the_writer_tells_of_its_writes_and_whether_they_cover_a_span(tmp_path: Path) -> None:
    writer = Writer(tmp_path / "mail" / "spool", tmp_path / "log", pause=0.005, pages=4)
    before = time.monotonic_ns()
    writer.start()
    begin = time.monotonic_ns()
    time.sleep(0.15)
    end = time.monotonic_ns()
    time.sleep(0.1)
    writer.stop()
    stalls = writer.stalls(begin, end)
    assert stalls.covered
    assert stalls.writes >= 2
    assert 0 < stalls.longest < 5
    assert not writer.stalls(before, end).covered, "it had not begun"
    assert not writer.stalls(begin, time.monotonic_ns()).covered, "it had ended"
    assert (tmp_path / "mail" / "spool").stat().st_size == 4 * 4096
