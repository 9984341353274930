"""The manifest of a chain, ``chain.json``, its links, and the names of their files."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from cbtlab.errors import InputError
from cbtlab.manifest import whole
from cbtlab.plan import POLICIES
from cbtlab.units import check_granularity, check_volume_size

FORMAT, VERSION = "cbtlab-chain", 1
MANIFEST = "chain.json"
PLACE = 0x43425431  # "CBT1", the qcow2 header extension in which an image says its place

MIN_CLUSTER, MAX_CLUSTER = 512, 2 << 20
MAX_K = 999_999
MASKS = ("held", "physical", "snapshot")

_KEYS = {"format", "version", "volume_size", "granularity", "cluster", "generation", "policy"}
_OWN_NAME = re.compile(
    r"\d{4,6}\.(qcow2|(held|physical|snapshot)\.bits)(\.part)?|chain\.json\.part"
)
_DIGEST = re.compile(r"[0-9a-f]{64}")
_HEX = re.compile(r"([0-9a-f]{2}){1,4096}")
_GENERATION = re.compile(r"[\x20-\x7e]{0,64}")


@dataclass(frozen=True)
class Mask:
    """A bitmap beside a link: its file, the file's SHA-256, and the bytes of a block."""

    file: str
    sha256: str
    block_size: int


@dataclass(frozen=True)
class Link:
    """One backup of the chain; sizes in bytes, ``copied`` and ``zeroed`` in units."""

    k: int
    file: str
    kind: Literal["full", "incremental"]
    base: int | None
    base_sha256: str | None
    sha256: str
    bytes: int
    generation: str
    volume_size: int
    granularity: int
    copied: int
    zeroed: int
    content_sha256: str
    held: Mask
    snapshot: Mask | None
    physical: Mask | None
    reason: str
    scrubbed: tuple[dict[str, Any], ...] = ()
    """What was overwritten of S_k* before it was stored, see `cbtlab.leftovers`: rising pieces of
    ``offset``, ``length``, ``class``, ``owner``, and the new bytes as ``fill`` or ``data``."""

    def masks(self) -> list[Mask]:
        """Return the masks that the link has."""
        return [mask for mask in (self.held, self.physical, self.snapshot) if mask is not None]

    def document(self) -> dict[str, Any]:
        """Return the link as it stands in the manifest; a link without a scrub does not name it."""
        told = asdict(self)
        told["scrubbed"] = list(self.scrubbed)
        if not self.scrubbed:
            del told["scrubbed"]
        return told


@dataclass(frozen=True)
class Manifest:
    """What ``chain.json`` says; sizes in bytes."""

    volume_size: int
    granularity: int
    cluster: int
    generation: str
    policy: str
    links: tuple[Link, ...] = ()

    @property
    def unit(self) -> int:
        """What is stored at once: the larger of granularity and cluster."""
        return max(self.granularity, self.cluster)

    def link(self, k: int) -> Link:
        """Return backup ``k``; raises InputError where the chain has none."""
        for link in self.links:
            if link.k == k:
                return link
        there = ", ".join(str(link.k) for link in self.links) or "nothing"
        raise InputError(f"backup {k}", "is no restore point of the chain", f"it has {there}")

    def needed(self, k: int) -> list[Link]:
        """Return the links that backup ``k`` is made of, itself first, the full last."""
        found = [self.link(k)]
        while found[-1].base is not None:
            found.append(self.link(found[-1].base))
        return found

    def document(self) -> dict[str, Any]:
        """Return the manifest as JSON, without its digest."""
        links = [link.document() for link in self.links]
        own = {name: value for name, value in vars(self).items() if name != "links"}
        return {"format": FORMAT, "version": VERSION, **own, "links": links}


def place_of(k: int, generation: str, base_sha256: str | None) -> bytes:
    """Return the place of an image in its chain, for its qcow2 header."""
    told = {"k": k, "generation": generation, "base_sha256": base_sha256}
    return json.dumps(told, separators=(",", ":")).encode()


def image_name(k: int) -> str:
    return f"{k:04d}.qcow2"


def mask_name(k: int, mask: str) -> str:
    return f"{k:04d}.{mask}.bits"


def own_name(name: str) -> bool:
    """Return whether a chain writes files of that name, its manifest aside."""
    return _OWN_NAME.fullmatch(name) is not None


def strays(folder: Path, manifest: Manifest) -> list[Path]:
    """Return the files of a chain's names that no link names: an append was broken off."""
    known = {link.file for link in manifest.links}
    known |= {mask.file for link in manifest.links for mask in link.masks()}
    return sorted(
        path for path in folder.iterdir() if own_name(path.name) and path.name not in known
    )


def check_cluster(value: int, piece: object = "cluster") -> int:
    """Return ``value`` if a qcow2 image can have clusters of that many bytes."""
    if not MIN_CLUSTER <= value <= MAX_CLUSTER or value & (value - 1):
        raise InputError(piece, f"cluster {value} cannot be used", "a power of two, 512 to 2M")
    return value


def parse(document: dict[str, Any], path: Path) -> Manifest:
    """Return the manifest that ``document`` holds; raises InputError for the first fault."""
    _same_keys(document, _KEYS | {"links", "digest"}, path, "it")
    links = document["links"]
    if not isinstance(links, list):
        raise InputError(path, "has links that are no list; it is damaged")
    manifest = Manifest(
        volume_size=check_volume_size(whole(document["volume_size"], path, "volume_size"), path),
        granularity=check_granularity(whole(document["granularity"], path, "granularity"), path),
        cluster=check_cluster(whole(document["cluster"], path, "cluster"), path),
        generation=_text(document["generation"], path, "generation", _GENERATION),
        policy=str(document["policy"]),
        links=tuple(_link(item, path) for item in links),
    )
    if manifest.policy not in POLICIES:
        raise InputError(path, f"has the policy {manifest.policy!r}; it is damaged")
    numbers = [link.k for link in manifest.links]
    if numbers != sorted(set(numbers)):
        raise InputError(path, "has links that are out of order; it is damaged")
    return manifest


def binding_faults(manifest: Manifest) -> list[tuple[str, str]]:
    """Return (file, fault) for each link that does not fit its chain, or its base."""
    found: list[tuple[str, str]] = []
    before: Link | None = None
    for link in manifest.links:
        for word in ("volume_size", "granularity"):
            mine, whole_chain = getattr(link, word), getattr(manifest, word)
            if mine != whole_chain:
                told = word.replace("_", " ")
                found.append((link.file, f"has {told} {mine}, and its chain {whole_chain}"))
        if link.kind == "incremental":
            found += [(link.file, fault) for fault in _base_faults(link, before)]
        before = link
    return found


def _base_faults(link: Link, base: Link | None) -> list[str]:
    if base is None or base.k != link.base:
        return [f"has the base {link.base}, which is not the link before it"]
    faults = []
    if link.base_sha256 != base.sha256:
        faults.append(f"names its base {base.file} by another digest: it was made on other bytes")
    if link.generation != base.generation:
        faults.append(f"is of generation {link.generation!r}, and its base of {base.generation!r}")
    return faults


def _link(item: object, path: Path) -> Link:
    names = {field.name for field in fields(Link)}
    if not isinstance(item, dict):
        raise InputError(path, "has a link that is no object; it is damaged")
    k = whole(item.get("k"), path, "k of a link", 0, MAX_K)
    told = f"link {k}"
    item = {"scrubbed": [], **item}
    _same_keys(item, names, path, told)
    kind, base = item["kind"], item["base"]
    if kind not in ("full", "incremental"):
        raise InputError(path, f"{told} is of the kind {kind!r}; it is damaged")
    if kind == "full" and (base is not None or item["base_sha256"] is not None):
        raise InputError(path, f"{told} is full and has a base; it is damaged")
    if kind == "incremental":
        whole(base, path, f"base of {told}", 0, k - 1)
        _text(item["base_sha256"], path, f"base_sha256 of {told}", _DIGEST)
    if item["file"] != image_name(k):
        raise InputError(path, f"{told} has the file {item['file']!r}; it is damaged")
    if not isinstance(item["reason"], str):
        raise InputError(path, f"{told} has a reason that is no text; it is damaged")
    for name in ("bytes", "volume_size", "granularity", "copied", "zeroed"):
        whole(item[name], path, f"{name} of {told}")
    for name in ("sha256", "content_sha256"):
        _text(item[name], path, f"{name} of {told}", _DIGEST)
    _text(item["generation"], path, f"generation of {told}", _GENERATION)
    masks = {name: _mask(item[name], path, k, name) for name in MASKS}
    if masks["held"] is None:
        raise InputError(path, f"{told} does not say what it holds; it is damaged")
    scrubbed = _scrubbed(item["scrubbed"], path, told, item["volume_size"])
    return Link(**{**item, **masks, "scrubbed": scrubbed})


def _scrubbed(items: object, path: Path, told: str, size: int) -> tuple[dict[str, Any], ...]:
    """Return the list of what was overwritten, if it can be one."""
    if not isinstance(items, list):
        raise InputError(path, f"{told} has a scrub that is no list; it is damaged")
    end = 0
    for piece in items:
        if not isinstance(piece, dict):
            raise InputError(path, f"{told} has a scrub of something else; it is damaged")
        written = "data" if "data" in piece else "fill"
        _same_keys(piece, {"offset", "length", "class", "owner", written}, path, told)
        offset = whole(piece["offset"], path, f"scrub of {told}", end, size)
        end = offset + whole(piece["length"], path, f"scrub of {told}", 1, size - offset)
        if written == "data":
            _text(piece["data"], path, f"scrub of {told}", _HEX)
        else:
            whole(piece["fill"], path, f"scrub of {told}", 0, 255)
        words = (piece["class"], piece["owner"])
        if not all(isinstance(word, str) for word in words) or (
            written == "data" and len(piece["data"]) != 2 * piece["length"]
        ):
            raise InputError(path, f"{told} has a scrub that cannot be; it is damaged")
    return tuple(items)


def _mask(item: object, path: Path, k: int, name: str) -> Mask | None:
    if item is None:
        return None
    told = f"{name} of link {k}"
    if not isinstance(item, dict):
        raise InputError(path, f"{told} is no object; it is damaged")
    _same_keys(item, {"file", "sha256", "block_size"}, path, told)
    if item["file"] != mask_name(k, name):
        raise InputError(path, f"{told} has the file {item['file']!r}; it is damaged")
    _text(item["sha256"], path, f"sha256 of {told}", _DIGEST)
    block = whole(item["block_size"], path, f"block_size of {told}", 512, 1 << 30)
    if block & (block - 1):
        raise InputError(path, f"block_size of {told} is {block}; it is damaged")
    return Mask(**item)


def _same_keys(item: dict[str, Any], keys: set[str], path: Path, told: str) -> None:
    if foreign := sorted(set(item) - keys):
        raise InputError(path, f"{told} has the unknown field {foreign[0]!r}; it was altered")
    if missing := sorted(keys - set(item)):
        raise InputError(path, f"{told} has no field {missing[0]!r}; it is damaged")


def _text(value: object, path: Path, name: str, form: re.Pattern[str]) -> str:
    if not isinstance(value, str) or not form.fullmatch(value):
        raise InputError(path, f"{name} is {str(value)[:80]!r}, which cannot be; it is damaged")
    return value
