"""Bytes of a volume that no reading of its files returns, and what may be overwritten of them.

A file system keeps old bytes in its journal, behind the end of files, in freed records and in
the gaps of folders.  ``leftovers`` finds these places with their class and owner; ``places``
says of any byte what kind of place it lies in; ``scrub`` overwrites what may be.
"""

from __future__ import annotations

from cbtlab.leftovers.find import leftovers
from cbtlab.leftovers.places import Places
from cbtlab.leftovers.scrub import Patches, Scrubbed, scrub
from cbtlab.leftovers.table import Leftovers

__all__ = ["Leftovers", "Patches", "Places", "Scrubbed", "leftovers", "scrub"]
