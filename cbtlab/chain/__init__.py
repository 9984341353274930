"""Backups as a chain of qcow2 images in a folder that stands by itself.

``layout`` has the manifest, ``store`` creates and appends, ``verify`` names
what is wrong, ``restore`` writes a restore point as a raw image.  What is
safe against what: a backup is appended by writing its files under new names,
made durable, and replacing ``chain.json`` last; killed at any step, the old
chain is whole, and what was left over is removed by the next append.  Every
file has its SHA-256 in the manifest, the manifest has its own, and every
image says in its header which link of which generation it is, on which base:
that tells accidents and exchanges, not a forger who makes all of them anew.
"""

from __future__ import annotations

from cbtlab.chain.layout import Link
from cbtlab.chain.restore import restore
from cbtlab.chain.show import chain_document, chain_text
from cbtlab.chain.store import Chain, open_chain
from cbtlab.chain.verify import verify
from cbtlab.manifest import Fault

__all__ = [
    "Chain",
    "Fault",
    "Link",
    "chain_document",
    "chain_text",
    "open_chain",
    "restore",
    "verify",
]
