"""Makes ext4 cases without root and without a kernel module, for tests.

A volume is a file made by ``mke2fs -d`` and changed by ``debugfs -w``, as a
running system would change it; a snapshot is a copy of it on which the excluded
files are then removed.  Truth comes from the bytes: what a tracker would have
seen is the difference of two images, cut into writes, with some surplus on top.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
from click.testing import CliRunner

from cbtlab.bitmap import Bitmap
from cbtlab.case import Case
from cbtlab.cli import cli
from cbtlab.writes import normalize, save_writes

NEEDS = ("mke2fs", "debugfs", "e2fsck")
PATH = os.pathsep.join([os.environ.get("PATH", ""), "/sbin", "/usr/sbin"])
START = 1_767_600_000_000_000_000  # 2026-01-05T08:00:00Z, in nanoseconds
HOUR = 3_600_000_000_000
_TEXT = """
account audit backup bitmap block carry chain cluster copy delete digest extent file folder
granularity held image interval journal kept ledger merge night office page quarter report
snapshot table unit volume write year zero
"""
_WORDS = _TEXT.split()


def missing_tools() -> list[str]:
    """Return which of the needed programs are not on this machine."""
    return [name for name in NEEDS if shutil.which(name, path=PATH) is None]


def text(seed: int, size: int) -> bytes:
    """Return ``size`` bytes of numbered prose, the same for the same seed."""
    rng = np.random.default_rng(seed)
    lines, length = [], 0
    while length < size:
        words = " ".join(_WORDS[i] for i in rng.integers(0, len(_WORDS), 9))
        lines.append(f"{seed}.{len(lines)} {words} {rng.integers(1 << 40):x}\n".encode())
        length += len(lines[-1])
    return b"".join(lines)[:size]


class Volume:
    """An ext4 file system in a file, changed block by block with ``debugfs``."""

    def __init__(self, path: Path, clock: int = START // 1_000_000_000) -> None:
        self.path, self.clock = path, clock

    @classmethod
    def make(
        cls, path: Path, tree: Path, size: int, block_size: int = 1024, options: str = ""
    ) -> Volume:
        """Make the file system with the content of the folder ``tree``."""
        with path.open("wb") as file:
            file.truncate(size)
        command = ["mke2fs", "-q", "-F", "-t", "ext4", "-b", str(block_size), "-d", str(tree)]
        command += ["-I", "256", "-E", "hash_seed=6f1c7a10-0000-4000-8000-000000000001"]
        journal = max(1, 1024 * block_size >> 20)  # the least that mke2fs takes, in MiB
        command += ["-U", "6f1c7a10-0000-4000-8000-000000000002", "-J", f"size={journal}"]
        command += ["-O", options] if options else []
        _run([*command, str(path), str(size // block_size) if block_size <= size else ""])
        return cls(path)

    def copy(self, path: Path) -> Volume:
        """Return a copy of the volume: a snapshot."""
        _run(["cp", "--sparse=always", str(self.path), str(path)])
        return Volume(path, self.clock)

    def debugfs(self, *commands: str) -> str:
        """Run commands of ``debugfs`` on the volume and return what they print."""
        self.clock += 60
        script = "\n".join([f"set_current_time @{self.clock}", *commands]) + "\n"
        done = _run(["debugfs", "-w", "-f", "-", str(self.path)], script)
        faults = [line for line in done.stderr.splitlines() if not line.startswith("debugfs 1.")]
        assert not faults, faults
        return done.stdout

    def write(self, name: str, data: bytes, *, xattr: tuple[str, str] | None = None) -> None:
        """Make a file."""
        source = self.path.with_suffix(".input")
        source.write_bytes(data)
        source.chmod(0o640)
        commands = [f"write {source} {name}", *self._touch(name)]
        commands += [f"ea_set {name} {xattr[0]} {xattr[1]}"] if xattr else []
        self.debugfs(*commands)
        source.unlink()

    def remove(self, *names: str) -> None:
        """Delete names; the last name of a file frees its blocks."""
        self.debugfs(*(f"rm {name}" for name in names))

    def move(self, old: str, new: str) -> None:
        """Rename a file: its data and its inode's number stay."""
        self.debugfs(f"ln {old} {new}", f"unlink {old}")

    def link(self, old: str, new: str) -> None:
        """Give a file a second name."""
        self.debugfs(f"ln {old} {new}", f"set_inode_field {new} links_count 2")

    def preallocate(self, name: str, blocks: int) -> None:
        """Make a file of unwritten extents: its blocks keep the bytes that they had."""
        source = self.path.with_suffix(".input")
        source.write_bytes(b"")
        size = blocks * self.block_size()
        self.debugfs(
            f"write {source} {name}",
            f"fallocate {name} 0 {blocks - 1}",
            f"set_inode_field {name} size {size}",
            *self._touch(name),
        )
        source.unlink()

    def overwrite(self, name: str, offset: int, data: bytes) -> None:
        """Change bytes of a file in place."""
        size, at = self.block_size(), self.blocks(name)
        with self.path.open("r+b") as file:
            for done in range(0, len(data), size):
                file.seek(at[(offset + done) // size] * size)
                file.write(data[done : done + size])
        self.debugfs(*self._touch(name))

    def blocks(self, name: str) -> list[int]:
        """Return the numbers of a file's blocks, in the file's order."""
        done = _run(["debugfs", "-R", f"blocks {name}", str(self.path)])
        return [int(word) for word in done.stdout.split()]

    def block_size(self) -> int:
        """Return the file system's block size in bytes."""
        with self.path.open("rb") as file:
            file.seek(1024 + 24)
            return 1024 << int.from_bytes(file.read(4), "little")

    def names(self) -> list[str]:
        """Return the paths of all regular files."""
        return sorted(self._walk("/"))

    def _walk(self, folder: str) -> Iterator[str]:
        done = _run(["debugfs", "-R", f"ls -p {folder}", str(self.path)])
        for line in done.stdout.splitlines():
            if match := re.fullmatch(r"/(\d+)/(\d+)/\d+/\d+/(.+)/(\d*)/", line.strip()):
                mode, name = match[2], match[3]
                if name in (".", "..") or match[1] == "0":
                    continue
                if mode.startswith("04"):
                    yield from self._walk(f"{folder.rstrip('/')}/{name}")
                elif mode.startswith("10"):
                    yield f"{folder.rstrip('/')}/{name}"

    def poke(self, offset: int, data: bytes) -> None:
        """Change bytes of the volume behind the file system's back."""
        with self.path.open("r+b") as file:
            file.seek(offset)
            file.write(data)

    def read(self, offset: int, length: int) -> bytes:
        """Return bytes of the volume."""
        with self.path.open("rb") as file:
            file.seek(offset)
            return file.read(length)

    def check(self) -> None:
        """Let the file system's own checker say that it is clean."""
        done = _run(["e2fsck", "-fn", str(self.path)], check=False)
        assert done.returncode == 0, done.stdout

    def _touch(self, name: str) -> list[str]:
        now = f"@{self.clock}"
        return [f"set_inode_field {name} {field} {now}" for field in ("mtime", "ctime")]


@dataclass
class Backup:
    """One backup as it was recorded; a test may spoil any of it before it makes a case."""

    snapshot: Volume
    stored: Volume
    patterns: list[str]
    kept: bool = True
    writes: dict[str, pd.DataFrame] = field(default_factory=dict)
    bitmaps: dict[str, Bitmap] = field(default_factory=dict)
    unusable: list[str] = field(default_factory=list)

    def clear(self, volume: str, block: int) -> None:
        """Clear one bit of a tracker's bitmap."""
        bitmap = self.bitmaps[volume]
        marked = bitmap.to_bool()
        assert marked[block]
        marked[block] = False
        self.bitmaps[volume] = Bitmap.from_bool(marked, bitmap.volume_size, bitmap.granularity)


@dataclass
class Recording:
    """A volume, its backups, and what the trackers would have seen."""

    folder: Path
    volume: Volume
    granularity: int
    backups: list[Backup] = field(default_factory=list)

    @property
    def size(self) -> int:
        """Return the volume's size in bytes."""
        return self.volume.path.stat().st_size

    def backup(self, patterns: list[str], excluded: list[str], *, kept: bool = True) -> Backup:
        """Take a snapshot, and delete the excluded files on it."""
        k = len(self.backups)
        snapshot = self.volume.copy(self.folder / f"{k}-snapshot.img")
        stored = snapshot.copy(self.folder / f"{k}-stored.img")
        if excluded:
            stored.remove(*excluded)
        self.backups.append(Backup(snapshot, stored, patterns, kept))
        return self.backups[-1]

    def trace(self, seed: int = 7) -> Recording:
        """Fill in the write sequences and bitmaps from the difference of the images."""
        rng = np.random.default_rng(seed)
        frames = []
        for k, backup in enumerate(self.backups):
            if k:
                before = self.backups[k - 1].snapshot.path
                frames.append(
                    _traced(rng, before, backup.snapshot.path, "physical", k, self.volume)
                )
            frames.append(
                _traced(rng, backup.snapshot.path, backup.stored.path, "snapshot", k, self.volume)
            )
        every = pd.concat(frames, ignore_index=True).sort_values("time", ignore_index=True)
        every["seq"] = np.arange(1, len(every) + 1)
        # a loss is seen between two events, so none that a test may lose is the first
        assert every["volume"].iloc[0] == "snapshot"
        every = normalize(every)
        for k, backup in enumerate(self.backups):
            for volume in ("physical", "snapshot")[k == 0 :]:
                rows = every[(every["interval"] == k) & (every["volume"] == volume)]
                backup.writes[volume] = rows.reset_index(drop=True)
                backup.bitmaps[volume] = rows.writes.bitmap(self.size, self.granularity)
        return self

    def drop_writes(self, k: int, volume: str, block: int) -> pd.DataFrame:
        """Lose the events that touch a block, as an overrun ring would; return them."""
        rows = self.backups[k].writes[volume]
        at = block * self.granularity
        hit = (rows["offset"] < at + self.granularity) & (rows["offset"] + rows["length"] > at)
        self.backups[k].writes[volume] = rows[~hit].reset_index(drop=True)
        return rows[hit]

    def case(self, path: Path, *, bitmaps: bool = True, sequences: bool = True) -> Case:
        """Make the case through the package."""
        case = Case.create(path, self.size, self.granularity)
        for backup in self.backups:
            case.add(
                snapshot=backup.snapshot.path,
                stored=backup.stored.path,
                writes=backup.writes if sequences else None,
                bitmaps=backup.bitmaps if bitmaps else None,
                patterns=backup.patterns,
                kept=backup.kept,
                unusable=backup.unusable,
            )
        return Case.open(path)

    def by_command_line(self, path: Path) -> Case:
        """Make the case with the commands, from CSV files and plain bitmaps."""
        self._cbtlab("create", path, "--volume-size", self.size, "--granularity", self.granularity)
        for k, backup in enumerate(self.backups):
            arguments: list[object] = [path, "--snapshot", backup.snapshot.path]
            arguments += ["--stored", backup.stored.path]
            for volume, option in (("physical", "--physical"), ("snapshot", "--snapshot-writes")):
                if volume in backup.writes:
                    table = self.folder / f"{k}-{volume}.csv"
                    save_writes(backup.writes[volume], table, force=True)
                    arguments += [option, table]
            for volume, bitmap in backup.bitmaps.items():
                bits = self.folder / f"{k}-{volume}.bits"
                bits.write_bytes(bitmap.to_bytes())
                arguments += [f"--{volume}-bitmap", bits]
            for pattern in backup.patterns:
                arguments += ["--exclude", pattern]
            self._cbtlab("add", *arguments, *([] if backup.kept else ["--not-kept"]))
        return Case.open(path)

    @staticmethod
    def _cbtlab(*arguments: object) -> None:
        done = CliRunner().invoke(cli, ["case", *map(str, arguments)])
        assert done.exit_code == 0, (done.output, done.exception)

    def plant(self, k: int, offset: int, data: bytes) -> None:
        """Put bytes on S_k* as if the delete had written them: marked, and in the sequence."""
        backup = self.backups[k]
        backup.stored.poke(offset, data)
        self.record(k, "snapshot", offset, len(data))

    def record(self, k: int, volume: str, offset: int, length: int) -> None:
        """Add a write to the sequence and the bitmap of a volume."""
        backup = self.backups[k]
        rows = backup.writes[volume]
        every = pd.concat([b.writes[v] for b in self.backups for v in b.writes])
        row = rows.iloc[[-1]].assign(offset=offset, length=length, seq=every["seq"].max() + 1)
        backup.writes[volume] = normalize(pd.concat([rows, row], ignore_index=True))
        mark = Bitmap.from_ranges(
            [offset], [length], volume_size=self.size, granularity=self.granularity
        )
        backup.bitmaps[volume] = backup.bitmaps[volume] | mark

    def copy(self, folder: Path) -> Recording:
        """Return a recording with images of its own, to be spoiled."""
        folder.mkdir(parents=True, exist_ok=True)
        made = Recording(folder, self.volume, self.granularity)
        for k, backup in enumerate(self.backups):
            made.backups.append(
                Backup(
                    backup.snapshot.copy(folder / f"{k}-snapshot.img"),
                    backup.stored.copy(folder / f"{k}-stored.img"),
                    list(backup.patterns),
                    backup.kept,
                    dict(backup.writes),
                    dict(backup.bitmaps),
                )
            )
        return made


def office(folder: Path, *, block_size: int = 1024, granularity: int = 4096) -> Recording:
    """Record five backups of a small office: everything that has ever gone wrong, in little.

    Interval 1: a file moves out of the excluded folder and another into it,
    without being written.  2 is thrown away.  3: a rule is added, an excluded
    file goes and its blocks are reused, a preallocated file lies over old
    bytes.  4: a rule is dropped.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tree = folder / "tree"
    files = {
        "docs/report.txt": text(1, 20_000),
        "docs/notes.txt": text(2, 3_333),
        "docs/database.db": text(3, 98_304),
        "docs/draft.tmp": text(4, 24_576),
        "docs/small.txt": text(5, 100),
        "cache/a.bin": text(6, 40_960),
        "cache/b.bin": text(7, 65_536),
        "cache/shared.bin": text(8, 8_192),
        "cache/tail.bin": text(9, 12_488),
        "old/keep.txt": text(10, 30_000),
        "logs/app.log": text(11, 16_000),
        "pagefile.sys": text(12, 262_144),
    }
    for name, data in files.items():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_bytes(data)
    (tree / "docs/shortcut").symlink_to("report.txt")
    size = (8 << 20) * max(1, block_size // 2048)  # room for the journal
    volume = Volume.make(folder / "volume.img", tree, size, block_size)
    volume.link("/cache/shared.bin", "/docs/shared.bin")
    volume.debugfs("ea_set /docs/notes.txt user.origin office")
    made = Recording(folder, volume, granularity)

    rules = ["/cache/", "/pagefile.sys", "/old/*"]
    cache = ["/cache/a.bin", "/cache/b.bin", "/cache/shared.bin", "/cache/tail.bin"]
    made.backup(rules, [*cache, "/pagefile.sys", "/old/keep.txt"])

    volume.move("/cache/a.bin", "/docs/a.bin")
    volume.move("/docs/notes.txt", "/cache/notes.txt")
    volume.overwrite("/docs/database.db", 16_384, text(21, 12_288))
    volume.overwrite("/pagefile.sys", 0, text(22, 131_072))
    volume.write("/docs/new.txt", text(23, 9_000))
    cache = ["/cache/b.bin", "/cache/shared.bin", "/cache/tail.bin", "/cache/notes.txt"]
    made.backup(rules, [*cache, "/pagefile.sys", "/old/keep.txt"])

    volume.overwrite("/docs/database.db", 49_152, text(31, 8_192))
    volume.write("/cache/c.bin", text(32, 20_480))
    made.backup(rules, [*cache, "/cache/c.bin", "/pagefile.sys", "/old/keep.txt"], kept=False)

    rules = [*rules, "*.tmp"]
    volume.remove("/cache/b.bin")
    volume.write("/docs/reuse.bin", text(41, 20_480))
    volume.preallocate("/docs/reserved.dat", 48)
    volume.overwrite("/pagefile.sys", 131_072, text(42, 65_536))
    cache = ["/cache/shared.bin", "/cache/tail.bin", "/cache/notes.txt", "/cache/c.bin"]
    made.backup(rules, [*cache, "/pagefile.sys", "/old/keep.txt", "/docs/draft.tmp"])

    rules = [rule for rule in rules if not rule.startswith("/old")]
    volume.write("/logs/later.log", text(51, 5_000))
    volume.remove("/docs/new.txt")
    made.backup(rules, [*cache, "/pagefile.sys", "/docs/draft.tmp"])

    for backup in made.backups:
        backup.snapshot.check()
        backup.stored.check()
    return made.trace()


def _traced(
    rng: np.random.Generator, before: Path, after: Path, volume: str, k: int, origin: Volume
) -> pd.DataFrame:
    """Return writes that explain how ``before`` became ``after``, and some that do not show."""
    old, new = np.fromfile(before, np.uint8), np.fromfile(after, np.uint8)
    changed = (old != new).reshape(-1, 512).any(axis=1)
    edges = np.flatnonzero(np.diff(np.concatenate([[0], changed.view(np.int8), [0]])))
    first, end = edges[::2], edges[1::2]
    # long runs are cut, as a block layer would
    cut = [np.arange(a, b, 64) for a, b in zip(first, end, strict=True)]
    starts = np.concatenate(cut) if cut else np.zeros(0, np.int64)
    stops = np.minimum(starts + 64, np.repeat(end, [len(part) for part in cut]) if cut else starts)
    extra = rng.integers(0, len(changed) - 8, 6)  # the same bytes again, and parts of a block
    starts, stops = np.r_[starts, extra], np.r_[stops, extra + rng.integers(1, 8, 6)]
    op = np.full(len(starts), "write", object)
    op[-2:] = "discard"
    order = rng.permutation(len(starts))
    # what the snapshot's delete writes lies between the writes of the next interval
    begin = START + (k if volume == "snapshot" else k - 1) * HOUR
    span = HOUR // 4 if volume == "snapshot" else HOUR
    time = np.sort(rng.integers(begin, begin + span, len(starts)))
    return pd.DataFrame(
        {
            "time": time.astype("datetime64[ns]"),
            "volume": volume,
            "interval": k,
            "op": op[order],
            "offset": (starts[order] * 512).astype(np.uint64),
            "length": ((stops - starts)[order] * 512).astype(np.uint64),
            "pid": rng.integers(300, 310, len(starts)),
            "comm": rng.choice(["postgres", "kworker/u4:1", "writer"], len(starts)),
        }
    )


def _run(
    command: list[str], script: str | None = None, *, check: bool = True
) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [part for part in command if part],
        input=script,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PATH": PATH, "LC_ALL": "C"},
    )
    assert not check or done.returncode == 0, (command, done.stderr)
    return done
