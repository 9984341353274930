"""Random backup histories, with the content that every restore point must have, as plain bytes."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from cbtlab.bitmap import Bitmap
from cbtlab.chain import Chain, Link
from cbtlab.images import Image
from cbtlab.images.base import Bytes
from cbtlab.manifest import write_manifest
from cbtlab.plan import plan


class Memory(Image):
    """A disk in memory."""

    def __init__(self, data: Bytes) -> None:
        super().__init__("memory", len(data))
        self.data = data

    def load(self, offset: int, length: int) -> Bytes | None:
        piece = self.data[offset : offset + length]
        return piece.copy() if piece.any() else None

    def close(self) -> None:
        pass


@dataclass
class History:
    """A volume that changes, and the chain of its backups.

    ``expected`` has, for each link, the snapshot's bytes where they are held
    and zero elsewhere: what the theorem says of ``R_k``.
    """

    chain: Chain
    block: int
    rng: np.random.Generator
    data: Bytes
    held: Bitmap | None = None
    changed: Bitmap | None = None
    expected: dict[int, bytes] = field(default_factory=dict)

    @classmethod
    def begin(
        cls,
        folder: Path,
        size: int = 96 << 10,
        granularity: int = 4096,
        cluster: int | None = None,
        block: int = 1024,
        seed: int = 1,
        generation: str = "first",
    ) -> History:
        chain = Chain.create(folder, size, granularity, cluster, generation)
        rng = np.random.default_rng(seed)
        return cls(chain, block, rng, rng.integers(0, 256, size, dtype=np.uint8))

    def run(self, share: float = 0.2) -> Bitmap:
        """Write somewhere on the volume; return the blocks that changed."""
        size, granularity = self.chain.volume_size, self.chain.granularity
        blocks = -(-size // granularity)
        changed = Bitmap.from_bool(self.rng.random(blocks) < share, size, granularity)
        fresh = self.rng.integers(0, 256, size, dtype=np.uint8)
        where = np.repeat(changed.to_bool(), granularity)[:size]
        self.data[where] = fresh[where]
        return changed

    def back_up(self, k: int, *, full: bool = False, share: float = 0.7, **options: Any) -> Link:
        size = self.chain.volume_size
        changed = self.run()
        blocks = -(-size // self.block)
        held = Bitmap.from_bool(self.rng.random(blocks) < share, size, self.block)
        base = None if full or not self.chain.links else self.chain.links[-1].k
        made = plan(
            k, changed, held, base, None if base is None else self.held, self.chain.unit,
            "asked for" if full else "",
        )  # fmt: skip
        link = self.chain.append(made, Memory(self.data), changed, changed, **options)
        self.held, self.changed = held, changed
        where = np.repeat(held.to_bool(), self.block)[:size]
        self.expected[k] = np.where(where, self.data, 0).astype(np.uint8).tobytes()
        return link


def history(folder: Path, links: int = 4, **options: Any) -> History:
    """A chain of ``links`` backups, all on one full."""
    made = History.begin(folder, **options)
    for k in range(links):
        made.back_up(k)
    return made


def rewrite(folder: Path, change: Any) -> None:
    """Alter ``chain.json`` by ``change(document)``, and give it a digest that fits."""
    path = folder / "chain.json"
    document = json.loads(path.read_text())
    change(document)
    write_manifest(path, document)
