"""Scenarios in a throw-away virtual machine with a real kernel and the real module.

``packages`` fetches Debian's packages, ``kernels`` builds the module against a
kernel, ``initramfs`` makes the guest's root, ``guest`` boots it, ``laboratory``
runs a scenario of ``datasets/`` in it and packs the result into a case.  The
guest's side (``stage``, ``workload``, ``writer``, ``content``) runs on a bare
Python, so nothing is imported here before it is needed.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cbtlab.case import Case

__all__ = ["run", "scenarios"]


def scenarios() -> list[dict[str, str]]:
    """Return ``name`` and ``summary`` of each scenario."""
    from cbtlab.lab.laboratory import described

    return [{"name": one.name, "summary": one.title} for one in described()]


def run(name: str, kernel: str, to: Path, force: bool = False, *, steps: int | None = None) -> Case:
    """Record a scenario on ``kernel`` ("6.1", "6.12") into the case ``to``; see ``laboratory``."""
    from cbtlab.lab.laboratory import run as run_scenario

    return run_scenario(name, kernel, to, force, steps=steps)
