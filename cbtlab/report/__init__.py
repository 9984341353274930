"""The audit report: one HTML file that needs nothing else, for a person who was not there.

It makes no request, runs no script, and shows what it was given: names from a
volume are hostile until they are shown as plain text.
"""

from __future__ import annotations

import os
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from cbtlab.audit import Audit
from cbtlab.errors import InputError
from cbtlab.report import words
from cbtlab.report.contents import contents_of
from cbtlab.units import format_bytes

__all__ = ["render", "write"]


def write(audit: Audit, path: str | os.PathLike[str]) -> None:
    """Write the report of a finished audit; the file appears whole or not at all."""
    path = Path(path)
    draft = path.with_name(f".{path.name}.part")
    try:
        draft.write_text(render(audit), encoding="utf-8")
        draft.replace(path)
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise InputError(path, f"cannot be written: {error.strerror}") from error


def render(audit: Audit) -> str:
    """Return the report as HTML."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=words.clean,  # every value that is shown, whatever it comes from
    )
    environment.filters |= {
        "number": words.number,
        "verdict": words.verdict,
        "moment": words.moment,
        "bytes": format_bytes,
    }
    return environment.get_template("report.html").render(contents_of(audit))
