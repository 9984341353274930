"""unbroken: every link of the chain is the one that its successor names."""

from __future__ import annotations

import re

from cbtlab.checks.material import Material
from cbtlab.checks.verdict import Verdict, count, item, verdict
from cbtlab.manifest import Fault

NAME = "unbroken"
_LINK = re.compile(r"\b(\d{4,})\.(?:qcow2|\w+\.bits\w*)")


def link_number(fault: Fault) -> int | None:
    """Return the backup whose piece a fault names; None where it is of the whole chain."""
    match = _LINK.search(fault.piece)
    return int(match[1]) if match else None


def unbroken(m: Material) -> Verdict:
    """The chain's own verification finds no fault in this link, nor in the chain as a whole."""
    if m.plan is None:
        return verdict(NAME, None, m.unjudged)
    mine = [fault for fault in m.faults if link_number(fault) in (m.k, None)]
    if mine:
        evidence = [item(link=fault.piece, note=fault.fault) for fault in mine]
        first = mine[0]
        return verdict(
            NAME,
            False,
            f"{count(len(mine), 'fault')}: {first.piece}: {first.fault}",
            evidence,
        )
    if m.plan.base is None:
        return verdict(NAME, True, f"{m.link_name} is as it was written, and has no base")
    return verdict(
        NAME, True, f"{m.link_name} is as it was written, and its base is backup {m.plan.base}"
    )
