"""XFS, read from its structures on the disk."""

from cbtlab.files.xfs.volume import map_xfs

__all__ = ["map_xfs"]
