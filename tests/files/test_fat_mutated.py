"""FAT and exFAT with random bytes changed: refused in one line, or a bounded answer.

And never a wrong "nothing to exclude": a file whose own record, and those of the folders above
it, were not touched is still there in every answer.  ``CBTLAB_MUTATIONS`` is the number of
images of each kind (60).
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from pathlib import Path

import fat_images as fat
import numpy as np
import pytest
from exfat_images import Exfat

from cbtlab.errors import InputError, NotAtRest
from cbtlab.files import VolumeMap, map_volume

Zones = dict[int, list[tuple[int, int]]]
MIBS = {"12": 2, "16": 6, "32": 36}
_LENGTH = {"fat": 32, "exfat": 19 * 32}  # bytes that a file hangs on


def fat_image(folder: Path, *options: str) -> bytearray:
    cluster = 512 * int(options[options.index("-s") + 1])
    path = fat.make(folder / "a.img", MIBS[options[1]] * fat.MIB, *options)
    source = folder / "tree"
    source.mkdir()
    fat.tree(source, cluster)
    fat.fill(path, source, cluster)
    return bytearray(path.read_bytes())


def exfat_image(folder: Path, *options: str) -> bytearray:
    volume = Exfat(folder / "a.img", 8 * fat.MIB, *options)
    rng = random.Random(3)
    volume.extend_root([88, 80, 81, 82, 84, 83])
    volume.make_folder("folder", [90, 97, 98, 91, 92, 95])
    volume.make_folder("in one piece", list(range(100, 106)), whole=True)
    free = iter(rng.sample(range(110, 600), 400))
    for number in range(60):
        clusters = [next(free) for _ in range(number % 7)]
        content = rng.randbytes(max(0, len(clusters) * volume.cluster - number))
        where = ("/", "/folder", "/in one piece")[number % 3]
        valid = len(content) // 2 if number % 5 == 0 else None
        volume.add(f"file number {number}", content, clusters, folder=where, valid=valid)
    volume.add("solid", rng.randbytes(20 * volume.cluster), list(range(700, 720)), whole=True)
    volume.check()
    return volume.data


IMAGES: dict[str, Callable[[Path], bytearray]] = {
    "fat12": lambda folder: fat_image(folder, "-F", "12", "-s", "1"),
    "fat16": lambda folder: fat_image(folder, "-F", "16", "-s", "2", "-R", "3"),
    "fat32": lambda folder: fat_image(folder, "-F", "32", "-s", "1"),
    "exfat": lambda folder: exfat_image(folder, "-c", "4K"),
    "exfat-512": lambda folder: exfat_image(folder, "-c", "512"),
}


def zones(good: VolumeMap) -> Zones:
    """The bytes that an inode hangs on: its records and those of the folders above it."""
    length = _LENGTH[good.fs.rstrip("0123456789")]
    inodes = dict(zip(good.names["path"], good.names["inode"].tolist(), strict=True))
    return {
        inode: [
            (inodes[str(part)] * 32, inodes[str(part)] * 32 + length)
            for part in [Path(path), *list(Path(path).parents)[:-1]]
        ]
        for path, inode in inodes.items()
        if path != "/"
    }


def spoil(data: bytearray, good: VolumeMap, rng: random.Random) -> list[int]:
    """Change some bytes, most of them in structures; return where."""
    places = []
    records = good.names["inode"].to_numpy().astype(np.int64)[1:] * 32
    system = good.pieces[good.pieces["kind"] == "system"]
    regions = list(zip(system["physical"].tolist(), system["length"].tolist(), strict=True))
    areas = [rng.choice(["record", "system", "table", "any"]) for _ in range(2)]
    words = [b"\xff" * 4, bytes(4), b"\xff\xff\xff\x7f", b"\x05\0\0\0", b"\xe5", b"\0", b"\x81"]
    for _ in range(rng.choice([1, 1, 2, 5, 30])):
        area, word = rng.choice(areas), rng.choice([*words, rng.randbytes(4), rng.randbytes(1)])
        if area == "record":
            at = int(rng.choice(records.tolist())) + rng.randrange(-64, 64)
        elif area == "system":
            start, length = rng.choice(regions)
            at = start + rng.randrange(min(length, 512))
        elif area == "table":
            is_table = system["path"].str.contains("FAT").tolist()
            tables = [part for part, yes in zip(regions, is_table, strict=True) if yes]
            number = rng.randrange(0, min(tables[0][1], 4000))
            at = tables[0][0] + number
            for start, _ in tables[1:]:  # both tables alike: else they are refused at once
                data[start + number : start + number + len(word)] = word
        else:
            at = rng.randrange(len(data) - 8)
        data[at : at + len(word)] = word
        places += range(at, at + len(word))
    return places


@pytest.mark.parametrize("kind", list(IMAGES))
def test_random_damage(kind: str, tmp_path: Path) -> None:
    tools = ("mkfs.exfat",) if kind.startswith("exfat") else ("mkfs.fat", "mcopy")
    if fat.needs(*tools).args[0]:
        pytest.skip(f"needs {', '.join(tools)}")
    image = IMAGES[kind](tmp_path)
    good = map_volume(fat.Memory(image))
    assert good.notes in ([], ["FAT32 with fewer clusters than FAT32 must have"])
    hangs_on = zones(good)
    rng = random.Random(kind)
    told = {"mapped": 0, "refused": 0, "dirty": 0, "damaged": 0}
    slowest = 0.0
    for number in range(fat.ROUNDS):
        data = bytearray(image)
        places = np.unique(spoil(data, good, rng))
        if number % 20 == 19:
            del data[rng.randrange(512, len(data)) :]
        start = time.monotonic()
        try:
            found = fat.look_at(data)
        except NotAtRest:
            told["dirty"] += 1
        except InputError as error:
            assert "\n" not in str(error)
            told["refused"] += 1
        else:
            told["mapped"] += 1
            told["damaged"] += bool(found.damaged)
            there = set(found.names["inode"])
            for inode, parts in hangs_on.items():
                if not any(np.diff(np.searchsorted(places, part))[0] for part in parts):
                    assert inode in there, f"round {number}: {good.label(inode)} is gone"
        slowest = max(slowest, time.monotonic() - start)
    print(f"{kind}: {told}, slowest {slowest:.2f} s")
    assert told["mapped"] >= fat.ROUNDS // 10 and told["refused"] and told["damaged"]
    assert slowest < 10
