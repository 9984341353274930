"""ext2, ext3 and ext4: files to extents, what is in use, and whose each block is."""

from cbtlab.files.ext.volume import map_ext

__all__ = ["map_ext"]
