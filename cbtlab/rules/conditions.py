r"""Conditions on a file, written behind a pattern: ``*.iso [size>100M] [age>90d]``.

A condition stands in brackets, after white space, at the end of the line; a file must meet all
of them.  Its words:

``size``   ``<`` ``<=`` ``>`` ``>=`` ``=``: bytes, or a number with K, M, G or T (of 1024)
``age``    the same: a number with ``min``, ``h``, ``d``, ``w`` or ``y`` (365 days): how long
           before the snapshot's instant the content was last changed (mtime)
``owner``  ``=`` ``!=``: a user's number or, on NTFS, a SID (``S-1-5-18``)
``case``   ``=ignore``: the pattern matches without regard to case, as Windows does
``at``     ``=2026-01-05T08:00:00Z``: the instant that the ages of this line count from, which
           a case writes there

No pattern of today is mistaken for one: as gitignore reads it, such a line names a name that
ends in a space and one of the letters ``s``, ``i``, ``z``, ``e`` ….  Who means that escapes
the space or the bracket: ``x\ [size>1]``.  What looks like a condition and is none is refused.
"""

from __future__ import annotations

import calendar
import datetime
import operator
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol

from cbtlab.errors import InputError

_WORDS = ("size", "age", "owner", "case", "at")
# Up to the value, what any condition looks like; a class of letters has no such sign within.
_LOOKS = re.compile(r"\s*(?:[A-Za-z]{2,}\s*[<>=!]|(?:size|age|owner|case|at)(?![A-Za-z0-9]))")
_PARTS = re.compile(r"\s*([a-z]+)\s*(<=|>=|!=|=|<|>)\s*([^\s<>=!]+)\s*")
_LAST = re.compile(r"(?:(?<!\\)[ \t]+|^)\[([^\[\]]*)\][ \t]*$")
_SIZE = re.compile(r"([0-9]{1,19})([KMGT]?)", re.IGNORECASE)
_FACTOR = {"": 0, "K": 10, "M": 20, "G": 30, "T": 40}
_AGE = re.compile(r"([0-9]{1,9})(min|h|d|w|y)")
_SECONDS = {"min": 60, "h": 3600, "d": 86400, "w": 7 * 86400, "y": 365 * 86400}
_SID = re.compile(r"S-1-[0-9]{1,15}(?:-[0-9]{1,10}){0,15}")
_UID = re.compile(r"[0-9]{1,10}")
_INSTANT = re.compile(r"(\d{4})-(\d\d)-(\d\d)T(\d\d):(\d\d):(\d\d)(?:\.(\d{1,9}))?Z", re.ASCII)
_NANO = 1_000_000_000
_MOST = (1 << 63) - 1

_COMPARE: dict[str, Callable[[Any, Any], Any]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "=": operator.eq,
    "!=": operator.ne,
}
# An age is larger where the time is smaller.
_OF_TIME = {"<": ">", "<=": ">=", ">": "<", ">=": "<=", "=": "="}


class Facts(Protocol):
    """What a condition asks of a file, or of many at once, in columns.

    ``size`` in bytes, ``mtime_ns`` in nanoseconds since 1970 UTC; ``uid``, or None where the
    file system has no such owners; ``sid`` likewise.
    """

    @property
    def size(self) -> Any: ...

    @property
    def mtime_ns(self) -> Any: ...

    @property
    def uid(self) -> Any: ...

    @property
    def sid(self) -> Any: ...


@dataclass(frozen=True)
class Condition:
    """One condition: ``word`` ``sign`` ``value``; an age's value is in nanoseconds."""

    text: str
    word: str
    sign: str
    value: int | str
    instant_ns: int | None = None

    @property
    def unready(self) -> bool:
        """Whether it is an age, and nobody knows of what instant."""
        return self.word == "age" and self.instant_ns is None

    def holds(self, facts: Facts) -> Any:
        """Whether a file meets it; of columns, which of the files do."""
        value: int | str = self.value
        sign = self.sign
        if self.word == "size":
            found = facts.size
        elif self.word == "age":
            if self.instant_ns is None:
                raise no_instant(self.text)
            found, sign = facts.mtime_ns, _OF_TIME[sign]
            value = max(self.instant_ns - int(value), -_MOST)
        else:
            found = facts.uid if isinstance(value, int) else facts.sid
            if found is None:
                kind = "owners by number" if isinstance(value, int) else "SIDs"
                raise InputError(
                    f"condition [{self.text}]",
                    f"cannot be judged: this file system has no {kind}, or they cannot be read",
                    "leave the condition out, or name the owner as the file system does",
                )
        return _COMPARE[sign](found, value)


@dataclass(frozen=True)
class Line:
    """A line of rules: the gitignore pattern, and the conditions behind it."""

    text: str
    pattern: str
    conditions: tuple[Condition, ...] = ()
    ignore_case: bool = False

    @property
    def unready(self) -> bool:
        """Whether an age in it has no instant."""
        return any(condition.unready for condition in self.conditions)


def parse(line: str, instant_ns: int | None = None) -> Line:
    """Take a line apart.  ``instant_ns`` is what ages count from where the line has no ``at``.

    Raises InputError for a misspelt condition, in one line.
    """
    if line.startswith("#"):
        return Line(line, line)
    pattern, found = line, []
    while (last := _LAST.search(pattern)) is not None and _LOOKS.match(last[1]):
        found.append(last[1].strip())
        pattern = pattern[: last.start()]
    if not found:
        return Line(line, line)
    if not pattern.strip():
        raise InputError(
            f"rule {line!r}", "has a condition and no pattern", "write '* [size>100M]' for any file"
        )
    made = [_condition(text, line) for text in reversed(found)]
    at = [condition.value for condition in made if condition.word == "at"]
    instant = int(at[-1]) if at else instant_ns
    return Line(
        line,
        pattern,
        tuple(
            Condition(one.text, one.word, one.sign, one.value, instant)
            for one in made
            if one.word not in ("at", "case")
        ),
        any(one.word == "case" for one in made),
    )


def with_instant(lines: Iterable[str], instant_ns: int | None) -> list[str]:
    """The same lines; those with an age say which instant it counts from."""
    if instant_ns is None:
        return list(lines)
    at = f" [at={instant_text(instant_ns)}]"
    return [line.rstrip(" \t") + at if parse(line).unready else line for line in lines]


def instant_text(instant_ns: int) -> str:
    """An instant as ISO 8601 in UTC, with all its nanoseconds."""
    seconds, rest = divmod(instant_ns, _NANO)
    days, within = divmod(seconds, 86400)
    day = datetime.date(1970, 1, 1) + datetime.timedelta(days=days)
    text = f"{day.isoformat()}T{within // 3600:02d}:{within // 60 % 60:02d}:{within % 60:02d}"
    return text + (f".{rest:09d}".rstrip("0") if rest else "") + "Z"


def _condition(text: str, line: str) -> Condition:
    parts = _PARTS.fullmatch(text)
    if parts and parts[1] in _WORDS:
        word, sign, value = parts[1], parts[2], parts[3]
        read = _READ[word](value)
        if read is not None and sign in _SIGNS[word]:
            return Condition(text, word, sign, read)
    word = parts[1] if parts else re.split(r"\W", text.strip(), maxsplit=1)[0]
    raise InputError(
        f"rule {line!r}",
        f"[{text}] is no condition",
        _WAY.get(word, "write [size>100M], [age>90d], [owner=1000] or [case=ignore]")
        + "; a name with such a bracket has a \\ before it",
    )


def _size(text: str) -> int | None:
    match = _SIZE.fullmatch(text)
    value = int(match[1]) << _FACTOR[match[2].upper()] if match else _MOST + 1
    return value if value <= _MOST else None


def _age(text: str) -> int | None:
    match = _AGE.fullmatch(text)
    return int(match[1]) * _SECONDS[match[2]] * _NANO if match else None


def _owner(text: str) -> int | str | None:
    if _UID.fullmatch(text):
        return int(text) if int(text) < 1 << 32 else None
    return text.upper() if _SID.fullmatch(text.upper()) else None


def _case(text: str) -> str | None:
    return text if text == "ignore" else None


def _at(text: str) -> int | None:
    match = _INSTANT.fullmatch(text)
    if not match:
        return None
    fields = tuple(int(part) for part in match.groups()[:6])
    try:
        seconds = calendar.timegm((*fields, 0, 0, 0))
    except (ValueError, OverflowError):
        return None
    instant = seconds * _NANO + int((match[7] or "").ljust(9, "0"))
    return instant if abs(instant) <= _MOST and instant_text(instant)[:19] == text[:19] else None


_READ: dict[str, Callable[[str], int | str | None]] = {
    "size": _size,
    "age": _age,
    "owner": _owner,
    "case": _case,
    "at": _at,
}
_ORDER = ("<", "<=", ">", ">=", "=")
_SIGNS = {"size": _ORDER, "age": _ORDER, "owner": ("=", "!="), "case": ("=",), "at": ("=",)}
_WAY = {
    "size": "write [size>100M]: < <= > >= or =, and bytes or a number with K, M, G or T",
    "age": "write [age>90d]: < <= > >= or =, and a number with min, h, d, w or y",
    "owner": "write [owner=1000] or [owner!=1000], or a SID such as S-1-5-18",
    "case": "write [case=ignore]",
    "at": "write [at=2026-01-05T08:00:00Z]",
}


def no_instant(text: str) -> InputError:
    """What to raise for an age that counts from nowhere."""
    return InputError(
        f"condition [{text}]",
        "cannot be judged: the snapshot's instant is not known",
        "give it with --instant",
    )
