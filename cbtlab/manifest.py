"""Manifests of cases and chains: JSON that carries its own digest, and pieces with theirs."""

from __future__ import annotations

import hashlib
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cbtlab.errors import InputError

_LIMIT = 64 << 20  # a manifest is small; what is larger is not one
_PIECE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)*")


class DamagedManifest(InputError):
    """A manifest that is cut, altered or not JSON: a fault to ``verify``, unusable to others."""


@dataclass(frozen=True)
class Fault:
    """What ``verify`` found: the piece, and what is wrong with it."""

    piece: str
    fault: str

    def document(self) -> dict[str, str]:
        """Return the fault as it stands in JSON."""
        return {"piece": self.piece, "fault": self.fault}


def digest_of(document: dict[str, Any]) -> str:
    """Return the SHA-256 of a manifest without its ``digest``, as canonical JSON."""
    rest = {key: value for key, value in document.items() if key != "digest"}
    text = json.dumps(rest, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def write_manifest(path: Path, document: dict[str, Any]) -> None:
    """Write a manifest with its digest, durably, in one step."""
    document = {**document, "digest": digest_of(document)}
    part = path.with_name(path.name + ".part")
    try:
        with part.open("w", encoding="utf-8") as file:
            json.dump(document, file, indent=1)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        raise InputError(path, f"cannot be written: {error.strerror}") from error
    finally:
        part.unlink(missing_ok=True)


def read_manifest(path: Path, name: str, version: int) -> dict[str, Any]:
    """Return a manifest whose format, version and digest are right; else raise InputError."""
    try:
        if path.stat().st_size > _LIMIT:
            raise DamagedManifest(path, "is too large to be a manifest")
        document = json.loads(path.read_bytes().decode("utf-8"), parse_constant=_no_constant)
    except OSError as error:
        raise InputError(path, f"cannot be opened: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        raise DamagedManifest(
            path, "is damaged: it is no JSON", "take it from a good copy"
        ) from error
    if not isinstance(document, dict) or document.get("format") != name:
        raise DamagedManifest(path, f"is not a {name} manifest, or was altered")
    if type(document.get("version")) is not int or document["version"] != version:
        raise InputError(
            path,
            f"has version {document.get('version')!r}",
            f"this program reads version {version}",
        )
    if document.get("digest") != digest_of(document):
        raise DamagedManifest(
            path, "was altered: its digest does not fit", "take it from a good copy"
        )
    return document


def _no_constant(text: str) -> None:
    raise ValueError(f"{text} is not JSON")


def whole(value: object, piece: object, name: str, low: int = 0, high: int = 1 << 62) -> int:
    """Return ``value`` if it is a whole number from ``low`` to ``high``."""
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise InputError(piece, f"{name} is {value!r}, which cannot be; it is damaged")
    return value


def piece_path(folder: Path, name: object) -> Path:
    """Return the path of a piece inside ``folder``; names that lead out of it are refused."""
    if not isinstance(name, str) or not _PIECE.fullmatch(name):
        raise InputError(folder, f"names the piece {name!r}, which cannot be; it is damaged")
    return folder / name


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file."""
    digest = hashlib.sha256()
    try:
        with path.open("rb", buffering=0) as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
    except OSError as error:
        raise InputError(path, f"cannot be read: {error.strerror}") from error
    return digest.hexdigest()
