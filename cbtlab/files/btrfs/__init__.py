"""btrfs on one device: files to extents, what is in use, and whose each block is."""

from cbtlab.files.btrfs.volume import map_btrfs

__all__ = ["map_btrfs"]
