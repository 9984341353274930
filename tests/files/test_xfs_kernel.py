"""XFS of version 4, and with quotas, as Debian's kernel writes it: compared file by file.

One guest for all volumes: newer kernels are built without version 4.
"""

from __future__ import annotations

import pickle
from pathlib import Path

import ext_images as ext
import numpy as np
import pytest
import xfs_content
import xfs_images as xfs

from cbtlab.files import map_volume
from cbtlab.files.extents import DATA, META, UNWRITTEN
from cbtlab.images import open_image
from cbtlab.lab import guest
from cbtlab.lab.initramfs import MODULES

pytestmark = [pytest.mark.vm, xfs.needs_xfsprogs]

DISKS = {  # name: MiB, options of mkfs.xfs
    "v4": (48, "-m crc=0,finobt=0 -b size=512 -i size=256 -d agcount=3"),
    "v4-old": (48, "-m crc=0,finobt=0 -n ftype=0,size=8192 -i attr=1,projid32bit=0 -l version=1"),
    "quota": (48, "-m rmapbt=1"),
}
Kernel = tuple[dict[str, xfs_content.Truth], dict[str, Path]]


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Kernel:
    folder = tmp_path_factory.mktemp("kernel")
    images = {
        name: xfs.make(folder / f"{name}.img", size * xfs.MIB, *words.split())
        for name, (size, words) in DISKS.items()
    }
    here = Path(__file__)
    done = guest.boot(
        "6.1",
        f"python3.11 -B /tests/xfs_guest.py {' '.join(DISKS)}",
        files={f"tests/{n}": here.with_name(n) for n in ("xfs_guest.py", "xfs_content.py")},
        disks=images,
        module=False,
        modules=[*MODULES, "xfs"],
        work=folder / "work",
        timeout=600,
    ).check()
    print(f"the guest took {done.seconds:.0f} s")
    return pickle.loads((done.output / "truths").read_bytes()), images


@pytest.mark.parametrize("name", list(DISKS))
def test_everything_is_as_the_kernel_says(kernel: Kernel, name: str) -> None:
    truth, path = kernel[0][name], kernel[1][name]
    ext.run("xfs_repair", "-n", str(path))
    with open_image(path) as image:
        volume = map_volume(image)
        assert (volume.notes, volume.damaged, volume.hidden) == ([], {}, [])
        names = dict(zip(volume.names["raw"], volume.names["inode"].tolist(), strict=True))
        assert names == {raw: info.st_ino for raw, info in truth.stat.items()}
        for raw, info in truth.stat.items():
            row = volume.inodes.loc[info.st_ino]
            assert (row["mode"], row["uid"], row["gid"]) == (info.st_mode, info.st_uid, info.st_gid)
            assert (row["nlink"], row["mtime_ns"]) == (info.st_nlink, info.st_mtime_ns), raw
            assert volume.xattrs(info.st_ino) == truth.xattrs[raw], raw
            assert raw not in truth.content or volume.read_file(info.st_ino) == truth.content[raw]
        for raw, listed in truth.bmap.items():
            rows = volume.rows(names[raw])
            mine = rows[np.isin(rows.kind, (DATA, UNWRITTEN))]
            columns = mine.logical, mine.physical, mine.length, mine.kind == UNWRITTEN
            kernels = {row for row in xfs.expand(listed) if row[0] < 1 << 35}
            assert xfs.expand(zip(*columns, strict=True)) == kernels, raw
            mine = rows[rows.kind == META]
            meta = xfs.expand((0, p, n, 0) for p, n in zip(mine.physical, mine.length, strict=True))
            places = {place for _, place, _ in meta}
            theirs = xfs.expand((0, *row[1:]) for row in truth.attribute_map[raw])
            assert {place for _, place, _ in theirs} <= places, raw
        free, apart = xfs.free_by_db(path)
        owners = volume.owners(np.arange(len(free)) * volume.block_size)
    assert np.array_equal(owners == "<free>", free)
    assert np.array_equal(owners == "<set apart for trees>", apart)
    assert "<allocated, no owner>" not in owners
    if name == "quota":
        assert {"<user quota>", "<project quota>"} <= set(owners)
