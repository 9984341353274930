"""What the checks of one backup look at, read once and shared between them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cbtlab.bitmap import Bitmap
from cbtlab.case import Case, Interval
from cbtlab.checks.lost import Losses
from cbtlab.checks.streams import Ints, ZeroImage
from cbtlab.checks.verdict import item
from cbtlab.errors import InputError, NotAtRest
from cbtlab.exclude import Exclusion
from cbtlab.files import VolumeMap, map_volume
from cbtlab.images import Image
from cbtlab.leftovers import Patches, Scrubbed
from cbtlab.manifest import Fault
from cbtlab.plan import Plan
from cbtlab.replay import Replay

if TYPE_CHECKING:
    from cbtlab.checks.content import Content


@dataclass
class Material:
    """One backup of a case, and the link that was made of it.

    ``before`` and ``after`` map S_k and S_k*, and are None where no file system
    was recognised.  ``mended`` is S_k at rest, where it was mended: ``before`` maps
    that, and who reads by its extents reads ``mapped_image``.  ``plan`` and
    ``restored`` are None for a backup that was thrown away.  ``plans`` holds the
    plans of this chain so far.
    """

    case: Case
    interval: Interval
    policy: str
    replay: Replay
    snapshot: Image
    stored: Image
    previous: Image | None
    before: VolumeMap | None
    after: VolumeMap | None
    exclusion: Exclusion | None
    reasons: list[str] = field(default_factory=list)
    plan: Plan | None = None
    plans: Mapping[int, Plan] = field(default_factory=dict)
    chain: Path | None = None
    restored_path: Path | None = None
    restored: Image | None = None
    base_restored: Image | None = None
    held_saved: Bitmap | None = None
    content: Content | None = None
    losses: Losses | None = None
    mended: Image | None = None
    scrubbed: Patches = field(default_factory=Patches)
    """What the chain says was overwritten of S_k* before it was stored."""
    added: Bitmap | None = None
    """The units that are stored because other places were overwritten than in the base."""
    leaks: dict[str, Any] = field(default_factory=dict)
    """What `excluded` found beside its verdict: counts by class, and names."""
    fault: str = ""
    """Why R_k could not be read from the chain; empty where it could."""
    faults: list[Fault] = field(default_factory=list)

    @property
    def k(self) -> int:
        """Return the backup's number."""
        return self.interval.k

    @property
    def granularity(self) -> int:
        """Return the bytes of a block of the case."""
        return self.case.granularity

    @property
    def size(self) -> int:
        """Return the bytes of the volume."""
        return self.case.volume_size

    @cached_property
    def lost(self) -> Losses:
        """Return the events that are missing in the case."""
        return self.losses if self.losses is not None else Losses(self.replay)

    @property
    def below(self) -> Image:
        """Return R_j, or zeros where the link has no base."""
        return ZeroImage(self.size) if self.base_restored is None else self.base_restored

    @cached_property
    def restored_map(self) -> VolumeMap:
        """Return the map of R_k; raises InputError where it has none."""
        assert self.restored is not None
        return map_volume(self.restored)

    @property
    def mapped_image(self) -> Image:
        """Return the image that ``before`` maps: S_k, at rest."""
        return self.snapshot if self.mended is None else self.mended

    @property
    def scrubbed_image(self) -> Image:
        """Return S_k* with what was overwritten before it was stored."""
        return Scrubbed(self.stored, self.scrubbed) if self.scrubbed.items else self.stored

    @property
    def link_name(self) -> str:
        """Return the name of the image file that this backup made."""
        return link_name(self.k)

    def link_of(self, offset: int) -> str | None:
        """Return the link whose unit a reader of R_k sees at ``offset``; None for no link."""
        k: int | None = self.k
        while k is not None and k in self.plans:
            plan = self.plans[k]
            if offset // plan.unit in plan.copied or offset // plan.unit in plan.zeroed:
                return link_name(k)
            k = plan.base
        return None

    @property
    def unjudged(self) -> str:
        """Return why nothing of R_k can be judged; empty where it can."""
        if self.plan is None:
            return "thrown away: it has no link in the chain"
        if self.restored is None:
            return f"R_k cannot be restored: {self.fault}"
        return ""

    def owners(self, offsets: Ints) -> list[str | None]:
        """Name whose bytes lie at these offsets of the volume: on S_k, else on S_k*."""
        if self.before is None or not len(offsets):
            return [None] * len(offsets)
        names = [str(name) for name in self.before.owners(offsets)]
        if self.after is not None and "<free>" in names:
            later = self.after.owners(offsets)
            names = [str(b) if a == "<free>" else a for a, b in zip(names, later, strict=True)]
        return list(names)

    def block_items(
        self,
        blocks: Ints,
        times: Mapping[int, str] | None = None,
        notes: Any = None,
        spots: Mapping[int, int] | None = None,
    ) -> list[dict[str, Any]]:
        """Return evidence for blocks of the case's granularity, with the owner of each.

        ``notes`` is one note for all, or a mapping from block to note.  ``spots``
        maps a block to the byte of the volume in it whose owner is meant; the
        first byte where it does not say.
        """
        numbers = blocks.tolist()
        offsets = [number * self.granularity for number in numbers]
        places = [(spots or {}).get(n, at) for n, at in zip(numbers, offsets, strict=True)]
        owners = self.owners(np.array(places, np.int64))
        return [
            item(
                block=block,
                offset=offset,
                length=min(self.granularity, self.size - offset),
                time=(times or {}).get(block),
                path=path,
                note=notes.get(block) if isinstance(notes, Mapping) else notes,
            )
            for block, offset, path in zip(numbers, offsets, owners, strict=True)
        ]


def link_name(k: int) -> str:
    """Return the name of a link's image file."""
    return f"{k:04d}.qcow2"


def mapped(image: Image, policy: str) -> VolumeMap | None:
    """Map the file system of an image; None where none is recognised and the policy needs none.

    A file system that is not at rest is refused under every policy: its rules
    would name files that are not where they seem to be.
    """
    try:
        return map_volume(image)
    except NotAtRest:
        raise
    except InputError as error:
        if policy == "union":
            return None
        ways = [error.remedy, "or keep everything with --policy union"]
        raise InputError(error.piece, error.fault, ", ".join(filter(None, ways))) from error
