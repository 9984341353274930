"""exFAT file by file: extents, names, sizes, content and what is in use.

Truth: exfat-fuse (as writer and reader), dump.exfat (free clusters), fsck.exfat and pytsk3.
"""

from __future__ import annotations

import hashlib
import os
import random
import re
from dataclasses import dataclass
from pathlib import Path

import fat_images as fat
import pytest

from cbtlab.files import map_volume
from cbtlab.images import open_image

pytestmark = [fat.needs_exfatprogs, pytest.mark.root]

GEOMETRIES = {  # name: MiB, options of mkfs.exfat, cluster size
    "512": (16, "-c 512", 512),
    "4096": (32, "-c 4K", 4096),
    "64k": (64, "-c 64K", 65536),
    "unaligned": (33, "-c 32K -b 4K", 32768),
}


@dataclass
class Made:
    path: Path
    cluster: int
    heap: int
    sector: int
    content: dict[str, tuple[int, int, str]]  # size, modified in seconds, digest


@pytest.fixture(scope="module", params=list(GEOMETRIES))
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    size, options, cluster = GEOMETRIES[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    path = fat.make(folder / "a.img", size * fat.MIB, *options.split(), program="mkfs.exfat")
    with fat.exfat_mounted(path) as root:
        fat.tree(root, cluster)
        rng = random.Random(5)
        with (root / "one").open("wb") as one, (root / "two").open("wb") as two:
            for _ in range(40):
                for file in (one, two):
                    file.write(rng.randbytes(cluster * 3 // 2))
                    file.flush()
        for number in range(0, 150, 2):
            (root / "many" / f"file number {number:03d}").unlink()
        os.utime(root / "SIZE3.BIN", (1_700_000_000, 1_700_000_001))
    with fat.exfat_mounted(path) as root:
        content = {}
        for place in root.rglob("*"):
            data = place.read_bytes() if place.is_file() else b""
            stat = place.stat()
            digest = hashlib.sha256(data).hexdigest() if place.is_file() else "folder"
            content["/" + str(place.relative_to(root))] = stat.st_size, int(stat.st_mtime), digest
    raw = path.read_bytes()
    sector = 1 << raw[108]
    heap = int.from_bytes(raw[88:92], "little") * sector
    return Made(path, cluster, heap, sector, content)


def test_names_sizes_times_and_content(made: Made) -> None:
    with open_image(made.path) as image:
        volume = map_volume(image)
        assert volume.fs == "exfat" and volume.block_size == made.cluster
        assert volume.notes == [] and volume.damaged == {}
        names = volume.names.set_index("path")["inode"]
        assert set(names.index) == {*made.content, "/"} and len(names) > 90
        for path, (size, modified, digest) in made.content.items():
            row = volume.inodes.loc[names[path]]
            assert (row["type"] == "directory") == (digest == "folder")
            if digest != "folder":
                assert (row["size"], row["mtime_ns"] // 10**9) == (size, modified), path
                assert hashlib.sha256(volume.read_file(names[path])).hexdigest() == digest
        assert len(volume.rows(int(names["/one"]))) > 10, "nothing was in fragments"


def test_pytsk3_sees_the_same_runs(made: Made) -> None:
    with open_image(made.path) as image:
        volume = map_volume(image)
        theirs = fat.by_tsk(image, made.sector)
        names = volume.names[volume.names["inode"] != 1]
        for raw, inode in zip(names["raw"], names["inode"], strict=True):
            size, sectors, content = theirs.pop(raw)
            rows = volume.rows(inode)
            first, many = rows.physical // made.sector, rows.length // made.sector
            mine = [s for a, n in zip(first, many, strict=True) for s in range(a, a + n)]
            assert sectors == mine[: len(sectors)], raw
            assert len(mine) - len(sectors) < max(1, made.cluster // made.sector)
            assert size == volume.inodes.loc[inode, "size"]
            assert not content or content == volume.read_file(inode)
    assert [raw for raw in theirs if not raw.startswith(b"/$")] == []


def test_in_use_is_what_the_tools_count(made: Made) -> None:
    with open_image(made.path) as image:
        volume = map_volume(image)
    text = fat.run("dump.exfat", made.path)
    total, free = (
        int(re.search(rf"{word} Clusters:\s+(\d+)", text)[1]) for word in ("Total", "Free")
    )
    around = volume.size - total * made.cluster
    assert fat.used_bytes(volume) == around + (total - free) * made.cluster
    fat.check_owners(volume)
    assert "clean" in fat.run("fsck.exfat", "-n", made.path)
    serial = re.search(r"Volume Serial:\s+0x([0-9a-f]+)", text)[1]
    assert volume.uuid.replace("-", "").lower() == serial.rjust(8, "0")
