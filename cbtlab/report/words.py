"""Words of the report: what each check asks, the glossary, and text that is safe to show."""

from __future__ import annotations

import unicodedata
from typing import Any

_LONGEST = 400  # characters of one value; a name on disk can be made long on purpose

CHECKS = {
    "complete": "Does restoring give exactly what was snapshotted, on every byte that the backup "
    "answers for, and zero elsewhere?",
    "tracked": "Is every block that truly changed marked in the tracker's bitmap?",
    "consistent": "Do the recorded write sequences, replayed, give the tracker's bitmaps again, "
    "with no event missing?",
    "excluded": "Are the excluded files gone, and is their content found nowhere in the backup?",
    "kept": "Is every other file there, with its content, size, owner, mode, times, attributes "
    "and links?",
    "restorable": "Does the file system's own checker find the restored volume clean?",
    "unbroken": "Does each link of the chain name its base, and is none missing or altered?",
    "minimal": "Was nothing stored without a reason, and does each surplus block have a name?",
}

SURPLUS = {
    "joined": "never written, but newly held: a rename, a link or a changed rule brought it in",
    "neighbour": "what changed lies beside what is held, in the same unit",
    "overlap": "marked in two intervals around the snapshot's instant",
    "discarded": "only discarded; a read gives the same as before",
    "rounding": "marked because a block of the tracker is coarser than one of the file system",
    "same_bytes": "written, and reads the same as before",
    "scrubbed": "what was written there was overwritten before it was stored",
}

PLACES = {
    "journal": "what the file system wrote twice, to be safe",
    "slack": "behind the end of a file, in its last block",
    "past the valid length": "of a file, and never written: it reads as zeros",
    "unwritten extent": "reserved for a file, and never written: it reads as zeros",
    "inline": "inside the record of a file that is in use",
    "MFT record": "a record of NTFS, which holds small files itself",
    "inode table": "a record that is free",
    "directory entry": "an entry of a folder",
    "directory slack": "between the entries of a folder, or behind them",
    "attribute block": "a block of extended attributes",
    "metadata of the file system": "a structure that no file owns",
    "free space": "what nobody uses",
    "outside the file system": "before its start, behind its end, or its boot area",
    "kept file": "in the content of a file that stays, which does not have it on the snapshot",
    "an earlier link of the chain": "stored when the file was still kept",
    "image file itself": "in the file of the link, where no reader looks",
    "name": "the name of a file, not its content",
}

GLOSSARY = (
    ("physical volume P", "The block device in use. It goes on being written all the time."),
    (
        "snapshot S_k",
        "A writable copy of P as it was at the instant T_k, made for backup k. S_k* is its "
        "content after the excluded files were deleted on it; that is what the backup stores.",
    ),
    (
        "interval k",
        "The time from T_(k-1) to T_k on the physical volume. What is written on the snapshot "
        "S_k afterwards belongs to it too.",
    ),
    (
        "block, granularity",
        "The tracker notes changes per block; the granularity is the size of a block in bytes.",
    ),
    (
        "W_P(k), W_S(k)",
        "The active bitmaps: which blocks of the physical volume were written in interval k, and "
        "which of the snapshot S_k, by mounting it and by deleting on it.",
    ),
    ("base j", "The last backup before k that was kept. An incremental lies on its base."),
    (
        "carry-over W_S(j)",
        "The blocks that the delete on the base's snapshot wrote. Backup j stored that delete, "
        "and the next snapshot is a copy of P, where it never happened: these blocks must be "
        "stored again.",
    ),
    (
        "master bitmap M_k",
        "The merge of all that: what may have changed since the base. M_0 is everything.",
    ),
    (
        "excluded X_k",
        "The blocks of the files that a rule leaves out, less what is still in use by others.",
    ),
    (
        "held H_k",
        "The bytes that backup k answers for. Under the policy 'allocated' what reading can "
        "return; under 'extents' everything but the excluded blocks; under 'union' everything.",
    ),
    (
        "unit",
        "What the store writes at once: the larger of the granularity and the cluster of the "
        "image.",
    ),
    (
        "copied C_k, zeroed Z_k",
        "The units that backup k stores; the units that it declares zero, because they were held "
        "in the base and are not any more.",
    ),
    (
        "joined",
        "Units that are copied although nothing was written there: they were not held before.",
    ),
    (
        "least, surplus",
        "The units where the restored volume truly differs from the restored base; and what was "
        "stored beyond that, each unit under one name.",
    ),
    (
        "chain",
        "Backup 0 and the incrementals on it, as qcow2 images with backing files. R_k is what "
        "restoring up to backup k gives.",
    ),
)


def clean(value: Any) -> Any:
    """Return a text with nothing in it that could act on the reader's screen.

    Control characters, marks that turn the direction of writing, and other
    characters without a shape become visible escapes; HTML is escaped by the
    template.  What is no text is returned as it is.
    """
    if type(value) is not str:
        return value
    shown = value if len(value) <= _LONGEST else f"{value[:250]} … {value[-120:]}"
    if shown.isascii() and shown.isprintable():
        return shown
    return "".join(c if _harmless(c) else _escape(c) for c in shown)


def _harmless(c: str) -> bool:
    category = unicodedata.category(c)
    return category not in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp") and (
        category != "Zs" or c == " "
    )


def _escape(c: str) -> str:
    code = ord(c)
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def verdict(holds: bool | None) -> str:
    """Return a verdict as one word, which is also the class of its cell."""
    return {True: "holds", False: "fails", None: "not judged"}[holds]


def number(value: Any) -> str:
    """Return a count with its thousands apart; a dash for none."""
    return "-" if value is None else f"{value:,}"


def moment(value: str | None) -> str:
    """Return an instant in ISO 8601 as people read it, to the millisecond."""
    return "-" if not value else f"{value[:10]} {value[11:23].rstrip('Z')} UTC"
