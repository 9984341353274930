"""Files to extents, and what a file system has in use.

``map_volume(image)`` gives a `VolumeMap`, whatever the file system: each has a
folder here with its own reader of the structures on the disk, because no library
gives what the method needs: what is allocated, unwritten extents with their
addresses, extended attributes, owners of the file system's own blocks.  pytsk3
walks the names of ext (``tsk.py``), and is the second opinion on the others.
"""

from __future__ import annotations

from importlib import import_module

from cbtlab.files.detect import detect
from cbtlab.files.volume import Readable, Volume
from cbtlab.files.volume_map import VolumeMap

__all__ = ["VolumeMap", "map_volume"]


def map_volume(image: Readable, offset: int = 0, *, names: bool = True) -> VolumeMap:
    """Map the file system that begins at byte ``offset`` of ``image``.

    ``names=False`` skips the folders: everything but paths is there.  Raises NotAtRest for a
    file system that must be replayed or mended first (a journal, a log, a mark of an unclean
    end), and InputError when there is none that can be mapped: none at all, a partition table
    instead, an unknown feature, damage.
    """
    volume = Volume(image, offset)
    kind = detect(volume)
    reader = import_module(f"cbtlab.files.{kind}")  # only the one that is needed
    found: VolumeMap = getattr(reader, f"map_{kind}")(volume, names=names)
    return found
