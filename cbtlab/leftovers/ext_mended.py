"""New checksums of ext4's metadata after leftovers in it were overwritten."""

from __future__ import annotations

import numpy as np

from cbtlab.exclude.foresee import holders
from cbtlab.files.checksum import crc32c
from cbtlab.files.ext.inodes import read_inode
from cbtlab.files.ext.superblock import Ext
from cbtlab.files.volume_map import VolumeMap
from cbtlab.images import Image
from cbtlab.leftovers.table import ATTRIBUTES, CLASSES, DIRECTORY, Ints, Leftovers

_TAIL = 12  # the entry at the end of a block of a folder; its last four bytes are the checksum
_TAIL_HEAD = np.frombuffer(bytes((0, 0, 0, 0, 12, 0, 0, 0xDE)), np.uint8)
_ATTRIBUTES_SUM = 16  # where the checksum stands in an attribute block


def mended(
    ext: Ext, volume: VolumeMap, image: Image, changed: Leftovers
) -> list[tuple[int, bytes, str]]:
    """The checksums to write, as offset in the image, bytes, and whose they are."""
    if not ext.has_checksums or not len(changed):
        return []
    found = _folders(ext, volume, image, changed[changed.kind == CLASSES.index(DIRECTORY)])
    attributes = changed[changed.kind == CLASSES.index(ATTRIBUTES)]
    return [*found, *_attributes(ext, volume, image, attributes)]


def _blocks(ext: Ext, volume: VolumeMap, changed: Leftovers) -> tuple[Ints, list[str]]:
    """The blocks that were changed, in bytes of the image, and the owner of each."""
    size = ext.block_size
    block, first = np.unique((changed.start - volume.offset) // size, return_index=True)
    return block * size + volume.offset, changed.owner[first].tolist()


def _folders(
    ext: Ext, volume: VolumeMap, image: Image, changed: Leftovers
) -> list[tuple[int, bytes, str]]:
    """A folder's checksum covers all of a block but its own entry.

    Nodes of a hash tree are summed up to their last slot in use, so theirs stays.
    """
    places, owners = _blocks(ext, volume, changed)
    inode = holders(volume.arrays, places)
    found = []
    for place, owner, number in zip(places.tolist(), owners, inode.tolist(), strict=True):
        row = np.frombuffer(image.read(place, ext.block_size), np.uint8)
        if (row[-_TAIL:-4] == _TAIL_HEAD).all():
            fields = read_inode(ext, number).fields
            name = np.array([[number, int(fields["generation"][0])]], "<u4").view(np.uint8)
            seed = crc32c(name, ext.checksum_seed)
            value = int(crc32c(row[None, :-_TAIL], seed)[0])
            found.append((place + ext.block_size - 4, value.to_bytes(4, "little"), owner))
    return found


def _attributes(
    ext: Ext, volume: VolumeMap, image: Image, changed: Leftovers
) -> list[tuple[int, bytes, str]]:
    """The checksum of an attribute block covers its number, and the block with 0 in its place."""
    places, owners = _blocks(ext, volume, changed)
    found = []
    for place, owner in zip(places.tolist(), owners, strict=True):
        row = np.frombuffer(image.read(place, ext.block_size), np.uint8).copy()
        row[_ATTRIBUTES_SUM : _ATTRIBUTES_SUM + 4] = 0
        number = np.array([(place - volume.offset) // ext.block_size], "<u8").view(np.uint8)
        seed = crc32c(number[None], ext.checksum_seed)
        value = int(crc32c(row[None], seed)[0])
        found.append((place + _ATTRIBUTES_SUM, value.to_bytes(4, "little"), owner))
    return found
