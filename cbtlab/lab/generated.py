"""A case of many files, made and not recorded: for benchmarks, and for tests in a small size.

``python -m cbtlab.lab.generated CASE [--files N] [--seed N]``.  mke2fs fills the volume from a
folder, debugfs deletes and writes as a running system would; needs neither root nor a kernel
module.  What a tracker would have seen is the difference of two images.  The same number of
files and seed give the same names, sizes and content; times are those of the run.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import pandas as pd

from cbtlab.bitmap import Bitmap
from cbtlab.case import Case
from cbtlab.errors import InputError
from cbtlab.images import differing, open_image
from cbtlab.lab.content import text
from cbtlab.writes.schema import normalize

__all__ = ["FILES", "PATTERNS", "generate"]

FILES, SEED = 100_000, 1
PATTERNS = ("/cache/", "*.tmp")
_BLOCK, _GRANULARITY = 1024, 4096
_SECTOR, _IN_A_FOLDER = 512, 200
_PLACES = os.pathsep.join([os.environ.get("PATH", os.defpath), "/sbin", "/usr/sbin"])
_UUID = "6f0ff1ce-0000-4000-8000-000000000002"
_START = 1_767_600_000_000_000_000  # 2026-01-05T08:00:00Z


@dataclass(frozen=True)
class _File:
    """One file of the volume: its path without a slash in front, its number, its size."""

    path: str
    number: int
    size: int

    @property
    def excluded(self) -> bool:
        return self.path.startswith("cache/") or self.path.endswith(".tmp")


def generate(to: Path, files: int = FILES, seed: int = SEED, *, force: bool = False) -> Case:
    """Make the case ``to`` of two backups of an ext4 volume with ``files`` files.

    One file in ten is excluded.  Between the backups one in fifty is deleted and as many are
    made.  InputError where mke2fs or debugfs is missing.
    """
    chance = random.Random(seed)
    chosen = list(_files(files, chance))
    size = _volume_size(chosen)
    case = Case.create(to, size, _GRANULARITY, force=force)
    with tempfile.TemporaryDirectory(prefix="cbtlab-generated-", dir=to.absolute().parent) as work:
        volume = Path(work) / "volume"
        _make(volume, size, chosen, Path(work) / "tree", _content(seed))
        before: Path | None = None
        seq = 1
        for k in range(2):
            if k:
                chosen = _change(volume, chosen, chance, Path(work) / "new", _content(seed + 1))
            snapshot, stored = Path(work) / f"{k}", Path(work) / f"{k}-stored"
            _copy(volume, snapshot)
            _copy(volume, stored)
            _debugfs(stored, [f'rm "{one.path}"' for one in chosen if one.excluded])
            seq = _add(case, k, before, (snapshot, stored), seq)
            before = snapshot
    return case


def _files(count: int, chance: random.Random) -> Iterator[_File]:
    for number in range(count):
        top = "cache" if number % 11 == 0 else f"{number // (50 * _IN_A_FOLDER):03d}"
        folder = f"{top}/{number // _IN_A_FOLDER % 50:02d} of them"
        ending = "tmp" if number % 101 == 0 else "txt"
        yield _File(f"{folder}/{number:07d}.{ending}", number, chance.randint(0, 5 * _SECTOR))


def _volume_size(chosen: Sequence[_File]) -> int:
    """Room for the files, for a third more inodes than there are, and for what changes."""
    blocks = sum(-(-one.size // _BLOCK) for one in chosen)
    wanted = blocks * _BLOCK * 5 // 4 + len(chosen) * 512 + (16 << 20)
    return -(-wanted >> 20) << 20


def _content(seed: int) -> Callable[[_File], bytes]:
    """Text in whose every sector stand the file's number and the sector's, and nowhere else."""
    pool = text(f"pool {seed}", 1 << 20)

    def content(one: _File) -> bytes:
        parts = []
        for sector in range(-(-one.size // _SECTOR)):
            tag = b"%d of %08d, %03d: " % (seed, one.number, sector)
            at = (one.number * 7919 + sector * 613) % (len(pool) - _SECTOR)
            parts.append(tag + pool[at : at + _SECTOR - len(tag)])
        return b"".join(parts)[: one.size]

    return content


def _make(
    volume: Path, size: int, chosen: Sequence[_File], tree: Path, content: Callable[[_File], bytes]
) -> None:
    _write(tree, chosen, content)
    with volume.open("wb") as out:
        out.truncate(size)
    words = ["mke2fs", "-q", "-F", "-t", "ext4", "-b", str(_BLOCK), "-I", "256", "-U", _UUID]
    words += ["-E", f"hash_seed={_UUID},root_owner=0:0", "-N", str(len(chosen) * 4 // 3 + 1000)]
    _run([*words, "-J", "size=4", "-m", "0", "-d", str(tree), str(volume)])
    shutil.rmtree(tree)


def _write(tree: Path, chosen: Sequence[_File], content: Callable[[_File], bytes]) -> None:
    for folder in sorted({one.path.rpartition("/")[0] for one in chosen}):
        (tree / folder).mkdir(parents=True, exist_ok=True)
    for one in chosen:
        (tree / one.path).write_bytes(content(one))


def _change(
    volume: Path,
    chosen: Sequence[_File],
    chance: random.Random,
    tree: Path,
    content: Callable[[_File], bytes],
) -> list[_File]:
    """Delete some files and make as many in the same folders; return what is there now."""
    count = max(1, len(chosen) // 50)
    gone = chance.sample(chosen, count)
    made = [
        _File(f"{one.path.rpartition('/')[0]}/new {n}.txt", n, chance.randint(1, 5 * _SECTOR))
        for n, one in enumerate(gone)
    ]
    _write(tree, made, content)
    lines = [f'rm "{one.path}"' for one in gone]
    lines += [f'write "{tree / one.path}" "{one.path}"' for one in made]
    _debugfs(volume, lines)
    shutil.rmtree(tree)
    lost = {one.path for one in gone}
    return [one for one in chosen if one.path not in lost] + made


def _add(case: Case, k: int, before: Path | None, images: tuple[Path, Path], seq: int) -> int:
    """Add a backup whose first event has the number ``seq``; return the next one's."""
    snapshot, stored = images
    seen = {"snapshot": images}
    if before is not None:
        seen["physical"] = (before, snapshot)
    bitmaps = {volume: _differing(*pair) for volume, pair in seen.items()}
    writes, first = {}, seq
    for volume in sorted(bitmaps):  # the physical volume's writes come first
        writes[volume] = _writes(bitmaps[volume], volume, k, seq)
        seq += len(writes[volume])
    own = len(writes["snapshot"])
    marks = [{"name": "instant", "time_ns": _instant(k), "seq": max(first, seq - own)}]
    case.add(
        snapshot=snapshot,
        stored=stored,
        writes=writes,
        bitmaps=bitmaps,
        patterns=list(PATTERNS),
        marks=marks,
    )
    return seq


def _instant(k: int) -> int:
    return _START + k * 86_400_000_000_000


def _differing(one: Path, other: Path) -> Bitmap:
    with open_image(one) as left, open_image(other) as right:
        return differing(left, right, _GRANULARITY)


def _writes(bitmap: Bitmap, volume: str, k: int, seq: int) -> pd.DataFrame:
    """One write for each run of changed blocks, a microsecond apart, after or before T_k."""
    offset, length = bitmap.extents()
    count = len(offset)
    begin = _instant(k) + (1_000_000 if volume == "snapshot" else -1_000 * count - 1_000_000)
    columns: dict[str, Any] = {
        "time": pd.to_datetime(begin + 1_000 * np.arange(count), utc=True).tz_localize(None),
        "seq": np.arange(seq, seq + count, dtype=np.uint64),
        "volume": volume,
        "interval": np.uint32(k),
        "op": "write",
        "offset": offset,
        "length": length,
    }
    return normalize(pd.DataFrame(columns, index=range(count)))


def _copy(source: Path, target: Path) -> None:
    _run(["cp", "--sparse=always", str(source), str(target)])


def _debugfs(volume: Path, lines: Sequence[str]) -> None:
    script = volume.with_suffix(".script")
    script.write_text("".join(f"{line}\n" for line in lines))
    try:
        said = _run(["debugfs", "-w", "-f", str(script), str(volume)])
    finally:
        script.unlink()
    faults = [line for line in said.splitlines() if line and not line.startswith("debugfs 1.")]
    if faults:
        raise InputError(volume, f"debugfs: {faults[0]}")


def _run(words: Sequence[str]) -> str:
    """Run a program; return what it said on standard error."""
    program = shutil.which(words[0], path=_PLACES)
    if program is None:
        raise InputError(words[0], "is missing", "install e2fsprogs")
    done = subprocess.run(
        [program, *words[1:]], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, check=False
    )
    said = done.stderr.decode(errors="replace")
    if done.returncode:
        raise InputError(words[0], f"failed: {said.strip() or done.returncode}")
    return said


@click.command()
@click.argument("case", type=click.Path(path_type=Path))
@click.option("--files", default=FILES, show_default=True, help="How many files.")
@click.option("--seed", default=SEED, show_default=True)
@click.option("--force", is_flag=True, help="Replace a case.")
def main(case: Path, files: int, seed: int, force: bool) -> None:
    """Make the case of many files."""
    made = generate(case, files, seed, force=force)
    click.echo(made.text())


if __name__ == "__main__":
    main()
