"""Where the laboratory keeps what it fetched and built."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


def cache_dir() -> Path:
    """Return the cache folder: ``$CBTLAB_CACHE``, or ``cbtlab`` in the user's cache."""
    named = os.environ.get("CBTLAB_CACHE")
    if named:
        return Path(named).absolute()
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "cbtlab"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Let one process at a time work in ``folder``; the others wait."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def filled(place: Path, fill: Callable[[Path], None]) -> Path:
    """Return ``place``, a folder that ``fill`` makes when it is not there yet.

    It is made beside its place and moved there whole, so that an interrupted
    run or two runs at once leave no half-filled folder.
    """
    if place.is_dir():
        return place
    place.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{place.name}-", dir=place.parent))
    try:
        fill(draft)
        draft.chmod(0o755)
        try:
            draft.rename(place)
        except OSError:
            if not place.is_dir():  # else another run was faster: take its folder
                raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return place
