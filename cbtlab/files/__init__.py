"""Files to extents, and what a file system has in use.

``map_volume(image)`` gives a `VolumeMap`.  Each field has one source: names are
walked by pytsk3 (``tsk.py``); inodes, extents, attributes and allocation come
from an own reader of the file system's structures (``ext*.py``), because
pytsk3 has no allocation bitmap of ext, no extended attributes, and gives no
address for unwritten extents.  The tests compare the two.
"""

from __future__ import annotations

from cbtlab.files.detect import detect
from cbtlab.files.ext_map import map_ext
from cbtlab.files.tsk import walk
from cbtlab.files.volume import Readable, Volume
from cbtlab.files.volume_map import VolumeMap

__all__ = ["VolumeMap", "map_volume"]


def map_volume(image: Readable, offset: int = 0, *, names: bool = True) -> VolumeMap:
    """Map the file system that begins at byte ``offset`` of ``image``.

    ``names=False`` skips the walk of the folders: everything but paths is there.  Raises
    InputError when there is no file system that can be mapped: none at all, a partition
    table instead, an unknown feature, a journal that needs recovery, damage.
    """
    volume = Volume(image, offset)
    detect(volume)
    result = map_ext(volume)
    if names:
        found = walk(volume, len(result.inodes), result.patches)
        result.set_names(found.paths, found.inodes)
        result.notes += found.faults[:20]
    return result
