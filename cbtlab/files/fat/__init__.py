"""FAT12, FAT16 and FAT32: files to extents, what is in use, and whose each cluster is."""

from cbtlab.files.fat.volume import map_fat

__all__ = ["map_fat"]
