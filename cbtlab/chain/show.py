"""What is in a chain, as JSON and as lines."""

from __future__ import annotations

from typing import Any

from cbtlab.chain.layout import FORMAT, VERSION
from cbtlab.chain.store import Chain
from cbtlab.units import format_bytes


def chain_document(chain: Chain) -> dict[str, Any]:
    """Return what ``chain show --json`` prints; sizes in bytes, ``copied`` and ``zeroed`` in units.

    ``strays`` are files that an append left over when it was broken off; the
    next append removes them.
    """
    return {
        "chain": str(chain.path),
        "format": FORMAT,
        "version": VERSION,
        "volume_size": chain.volume_size,
        "granularity": chain.granularity,
        "cluster": chain.cluster,
        "unit": chain.unit,
        "generation": chain.generation,
        "policy": chain.policy,
        "links": [link.document() for link in chain.links],
        "strays": chain.strays(),
    }


def chain_text(document: dict[str, Any]) -> str:
    """Return the document as lines for a person."""
    lines = [
        f"{document['chain']}: {format_bytes(document['volume_size'])}, "
        f"units of {format_bytes(document['unit'])}, policy {document['policy']}",
        f"{'backup':>6}  {'kind':11}  {'base':>4}  {'copied':>9}  {'zeroed':>9}  {'bytes':>10}",
    ]
    for link in document["links"]:
        base = "" if link["base"] is None else link["base"]
        line = (
            f"{link['k']:>6}  {link['kind']:11}  {base:>4}  {link['copied']:>9}  "
            f"{link['zeroed']:>9}  {format_bytes(link['bytes']):>10}  {link['reason']}"
        )
        lines.append(line.rstrip())
    lines += [f"left over by a broken append: {name}" for name in document["strays"]]
    return "\n".join(lines)
