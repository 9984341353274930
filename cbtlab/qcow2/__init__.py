"""qcow2 images, read and written without QEMU.

``layout`` has the structures on disk, ``reader`` one image file as a layer
over its backing file, ``writer`` the streaming writer.  ``cbtlab.images``
stacks the layers; use ``open_image`` from there to read.
"""

from __future__ import annotations

from cbtlab.qcow2.layout import MAGIC, Header, read_header
from cbtlab.qcow2.writer import Read, write

__all__ = ["MAGIC", "Header", "Read", "read_header", "write"]
