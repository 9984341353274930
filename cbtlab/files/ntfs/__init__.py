"""NTFS: files to extents, what is in use, and whose each cluster is."""

from cbtlab.files.ntfs.volume import map_ntfs

__all__ = ["map_ntfs"]
