"""The broken ext images that e2fsprogs tests its checker with, some two hundred of them.

They come with Debian's source package.  Each must be mapped or refused in a short time; and
where the checker finds what can hide a name, the map must not be silent about it.
"""

from __future__ import annotations

import gzip
import os
import re
import subprocess
import tarfile
import time
from pathlib import Path
from typing import BinaryIO

import ext_images as ext
import numpy as np
import pytest

from cbtlab.errors import InputError
from cbtlab.files import VolumeMap, map_volume, tsk
from cbtlab.files.volume import Volume
from cbtlab.images import open_image
from cbtlab.lab.cache import cache_dir, filled
from cbtlab.lab.packages import Archive

SECONDS = 10.0  # on a busy machine; each takes a tenth of one

#: What e2fsck says of damage that takes a name, or a file, out of sight.
HIDING = re.compile(
    r"Unattached (?:zero-length )?inode|Unconnected directory|directory corrupted"
    r"|has an unallocated block|looks like it is really a directory|Root inode is not"
    r"|fails checksum|has no checksum"
)
#: Images of which the checker says so, and no name is out of sight, with the reason.
SEEN = {
    "f_bb_in_bb": "the list of bad blocks alone is wrong, the root is a folder",
    "f_holedir4": "the holes lie past the folder's size",
    "f_mke2fs2b": "the inode that nothing leads to is empty, without even a mode",
    "f_htree_bad_csum": "the index of a folder alone is wrong, its leaves hold the names",
}

OTHERWISE_BY_PYTSK3 = {
    "f_bigalloc_symlink_with_xattr": "pytsk3 does not open a file system with clusters",
    "f_h_unsigned": "the same",
    "f_okgroup": "pytsk3 does not read a descriptor table that is longer than its groups",
    "f_h_normal": "pytsk3 takes old bytes in a node of a hash tree for a name",
    "d_inline_dump": "pytsk3 misses names past the first 60 bytes of a folder in its inode",
}

pytestmark = [ext.needs_e2fsprogs]


@pytest.fixture(scope="session")
def corpus() -> Path:
    """A folder with all images, unpacked."""

    def fill(draft: Path) -> None:
        Archive().fetch_source("e2fsprogs", draft)
        (archive,) = draft.glob("*.orig.tar.gz")
        with tarfile.open(archive) as source:
            for member in source:
                found = re.search(r"/tests/(\w+)/image\.gz$", member.name)
                packed = source.extractfile(member) if found else None
                if found and packed:
                    with (
                        packed,
                        gzip.GzipFile(fileobj=packed) as data,
                        (draft / found[1]).open("wb") as out,
                    ):
                        sparse(data, out)
        for path in draft.glob("e2fsprogs*"):
            path.unlink()

    try:
        return filled(cache_dir() / "ext-corpus", fill)
    except InputError as error:
        pytest.skip(f"Debian's archive is not to be had: {error}")


def sparse(data: BinaryIO, out: BinaryIO) -> None:
    """Copy, and leave holes where there are zeros: the largest has 500 MiB of them."""
    while part := data.read(1 << 16):
        if any(part):
            out.write(part)
        else:
            out.seek(len(part), os.SEEK_CUR)
    out.truncate()


def looked_at(path: Path) -> VolumeMap | InputError:
    """Map an image and use every part of the map."""
    with open_image(path) as image:
        try:
            volume = map_volume(image)
        except InputError as error:
            return error
        volume.owners(np.arange(0, volume.size, 4096))
        for inode in volume.inodes.index[:2000].tolist():
            try:
                for _ in zip(range(50), volume.file_chunks(inode), strict=False):
                    pass
                volume.xattrs(inode)
            except InputError:
                pass
        return volume


def checker(path: Path) -> str:
    done = subprocess.run(
        ["e2fsck", "-fn", str(path)], capture_output=True, timeout=60, check=False
    )
    return "" if done.returncode == 0 else done.stdout.decode(errors="replace")


@pytest.mark.timeout(900)
def test_no_broken_image_hides_a_name_in_silence(corpus: Path) -> None:
    mapped = hiding = clean = 0
    paths = sorted(path for path in corpus.iterdir() if path.name[0] != ".")
    assert len(paths) > 200
    for path in paths:
        begin = time.monotonic()
        found = looked_at(path)
        assert time.monotonic() - begin < SECONDS, path.name
        if isinstance(found, InputError):
            continue
        mapped += 1
        told = checker(path)
        if not told:
            clean += 1
            assert found.hidden == [], path.name
        elif HIDING.search(told) and path.name not in SEEN:
            hiding += 1
            assert found.hidden or found.damaged, (path.name, HIDING.findall(told))
    assert (mapped, hiding, clean) > (100, 20, 5)


def test_clean_images_have_the_names_that_pytsk3_sees(corpus: Path) -> None:
    compared = 0
    for path in sorted(corpus.iterdir()):
        if (
            path.stat().st_size > 64 << 20
            or path.name[0] == "."
            or path.name in OTHERWISE_BY_PYTSK3
        ):
            continue
        found = looked_at(path)
        if isinstance(found, InputError) or checker(path):
            continue
        with open_image(path) as image:
            walked = tsk.walk(Volume(image), len(found.inodes))
        theirs = sorted(zip(walked.paths, walked.inodes.tolist(), strict=True))
        own = sorted(zip(found.names["raw"], found.names["inode"].tolist(), strict=True))[1:]
        assert own == theirs, path.name
        compared += 1
    assert compared > 20
