"""cbtlab: records, replays and proves block-level incremental backups.

In a notebook::

    import cbtlab
    case = cbtlab.load_example("ext4-office")
    case.audit()

Names are loaded on first use: ``cbtlab.record`` also runs on a bare Python,
inside a guest that has neither numpy nor pandas.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "Bitmap": "cbtlab.bitmap",
    "CbtlabError": "cbtlab.errors",
    "InputError": "cbtlab.errors",
    "load_example": "cbtlab.notebook",
    "open_case": "cbtlab.notebook",
    "open_chain": "cbtlab.chain",
    "open_image": "cbtlab.images",
    "read_writes": "cbtlab.writes",
}

__all__ = ["__version__", *sorted(_HOMES)]


def __getattr__(name: str) -> Any:
    try:
        return getattr(import_module(_HOMES[name]), name)
    except KeyError:
        raise AttributeError(f"module 'cbtlab' has no attribute {name!r}") from None


def __dir__() -> list[str]:
    return __all__
