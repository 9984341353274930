"""exFAT: files to extents, what is in use, and whose each cluster is."""

from cbtlab.files.exfat.volume import map_exfat

__all__ = ["map_exfat"]
