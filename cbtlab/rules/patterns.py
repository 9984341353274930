"""Lines of rules, compiled: which of them decides over a path, and so whether it is named.

Patterns are gitignore's, read by pathspec, with git's own meaning: case counts, the last rule
that names a path decides, and below a folder that a rule names nothing can be taken back.
The oracle is ``git check-ignore``.

A file is judged by the rules whose conditions it meets, as git judges it by those rules alone.
A folder meets no condition.  A named stream (``FILE:STREAM``) goes with its file; by itself it
is named only by a pattern that has a colon.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pathspec import GitIgnoreSpec

from cbtlab.errors import InputError
from cbtlab.rules.conditions import Condition, Facts, Line, no_instant, parse

#: How pathspec ends the expression of a pattern, so that it also matches what lies below; and
#: the end that matches the path itself.  A folder's path ends with a slash here.
_ENDS = (
    ("(?:(?P<ps_d>/)|$)", r"/?\Z"),
    ("(?:(?P<ps_d>/).*)?$", r"/?\Z"),
    ("(?P<ps_d>/).*$", r"/\Z"),
    ("(?P<ps_d>/)", r"/\Z"),
    ("/.*$", "/."),
    ("/", "/."),
)
_MANY_STARS = re.compile(r"(?:(?<=/)|(?<=^!)|^)\*{3,}(?=/|\s*$)")
_SPECIAL = re.compile(r"[*?\[\]\\]")

Holds = Callable[[int], bool]


@dataclass(frozen=True)
class _Rule:
    """One pattern: what its path itself matches, whether it excludes, what it asks."""

    line: Line
    expression: re.Pattern[str]
    include: bool
    of_streams: bool


#: Rules that match one part of a path, the last first; only the last may ask nothing.
_Level = tuple[int, ...]


@dataclass(frozen=True)
class _Folder:
    """What of the folders above decides: levels with conditions, and a rule that closes all."""

    levels: tuple[_Level, ...] = ()
    closed: int | None = None


class Rules:
    """Compiled lines; ``instant_ns`` is what ages count from.  Raises InputError for a bad line."""

    def __init__(self, lines: Sequence[str], instant_ns: int | None = None) -> None:
        self.lines = tuple(lines)
        self._rules: list[_Rule | None] = []
        self._literal: dict[str, list[int]] = {}
        self._folded: dict[str, list[int]] = {}
        self._general: list[int] = []
        self._folders: dict[str, _Folder] = {"": _Folder()}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # re's, about "[" within brackets
            for line in lines:
                self._add(parse(line, instant_ns))

    @property
    def conditional(self) -> list[int]:
        """The numbers of the lines that ask something of a file."""
        return [n for n, rule in enumerate(self._rules) if rule and rule.line.conditions]

    def at(self, instant_ns: int) -> Rules:
        """The same rules; ages count from this instant (nanoseconds since 1970 UTC)."""
        return Rules(self.lines, instant_ns)

    def names(self, path: str, facts: Facts | None = None) -> bool:
        """Whether the rules name this path (without a slash before it; behind it: a folder).

        ``facts`` are those of a file; without them no condition is met.
        """
        return self.decide(path, facts) is not None

    def names_stream(self, path: str, stream: str, facts: Facts, own: Facts) -> bool:
        """Whether the rules name a stream of the file ``path``; ``own`` is about the stream."""
        self.ready()
        judges = self.judge(facts), self.judge(own)
        return self.decide_stream(path, stream, *judges) is not None

    def decide(self, path: str, facts: Facts | None = None) -> int | None:
        """The number of the line that names this path, or None.

        InputError for a condition that cannot be judged.
        """
        self.ready()
        return self.decide_by(path, self.judge(facts))

    def judge(self, facts: Facts | None) -> Holds:
        """Whether a file meets all conditions of a line, by the line's number."""
        if facts is None:
            return lambda number: not self.conditions(number)
        return lambda number: all(c.holds(facts) for c in self.conditions(number))

    def ready(self) -> None:
        """Raise InputError where an age has no instant to count from."""
        for number in self.conditional:
            for condition in self.conditions(number):
                if condition.unready:
                    raise no_instant(condition.text)

    def conditions(self, number: int) -> tuple[Condition, ...]:
        """The conditions of a line, by its number."""
        rule = self._rules[number]
        return rule.line.conditions if rule else ()

    def decide_by(self, path: str, holds: Holds) -> int | None:
        """`decide` where ``holds`` says which lines' conditions the file meets."""
        above, _, _ = path.rstrip("/").rpartition("/")
        folder = self._folder(above)
        for level in folder.levels:
            if (named := self._decided(level, holds)) is not None:
                return named
        if folder.closed is not None:
            return folder.closed
        return self._decided(self._level(path), holds)

    def decide_stream(self, path: str, stream: str, holds_file: Holds, holds: Holds) -> int | None:
        """The line that names a stream of the file ``path``: with the file, or by itself.

        ``holds_file`` is about the file's own content, ``holds`` about the stream.
        """
        named = self.decide_by(path, holds_file)
        if named is not None:
            return named
        return self._decided(self._level(f"{path.rstrip('/')}:{stream}", streams=True), holds)

    def matching(self, path: str, stream: bool = False) -> list[int]:
        """The lines whose pattern matches this path itself, whatever the others say."""
        found = []
        for number in self._candidates(path):
            rule = self._rules[number]
            if rule and (rule.of_streams or not stream) and rule.expression.search(path):
                found.append(number)
        return found

    # Within ---------------------------------------------------------------------------------

    def _add(self, line: Line) -> None:
        number = len(self._rules)
        self._rules.append(None)
        if line.text.startswith("#"):
            return
        try:
            parsed = GitIgnoreSpec.from_lines([_plain(line.pattern)]).patterns
        except (ValueError, re.error) as error:
            raise InputError(f"pattern {line.text!r}", "is not a gitignore pattern") from error
        for pattern in parsed:
            if pattern.include is None or pattern.regex is None:
                continue
            flags = re.DOTALL | (re.IGNORECASE if line.ignore_case else 0)
            own = re.compile(_of_the_path_itself(pattern.regex.pattern), flags)
            self._rules[number] = _Rule(line, own, pattern.include, ":" in line.pattern)
            self._index(number, line)

    def _index(self, number: int, line: Line) -> None:
        """Find the rule by the last part of its pattern: a plain name, or ``*.`` and an ending."""
        _, _, last = line.pattern.rstrip(" ").rstrip("/").removeprefix("!").rpartition("/")
        ending = last.removeprefix("*.")
        bare = last if ending == last or "." in ending else ending
        plain = bare == bare.strip() != "" and not _SPECIAL.search(bare)
        if not plain or (line.ignore_case and not last.isascii()):
            self._general.insert(0, number)
        elif line.ignore_case:
            self._folded.setdefault(last.lower(), []).append(number)
        else:
            self._literal.setdefault(last, []).append(number)

    def _candidates(self, path: str) -> list[int]:
        """The rules that may match this path itself, the last first."""
        _, _, last = path.rstrip("/").rpartition("/")
        ending = "*." + last.rpartition(".")[2]
        found = [*self._literal.get(last, ()), *self._literal.get(ending, ())]
        if self._folded:
            if not last.isascii():  # another letter may fold into one of ASCII
                found += [n for some in self._folded.values() for n in some]
            else:
                found += self._folded.get(last.lower(), ())
                found += self._folded.get(ending.lower(), ())
        return sorted([*self._general, *found], reverse=True) if found else self._general

    def _level(self, path: str, streams: bool = False) -> _Level:
        """The rules that match the path itself, down to the first that asks nothing."""
        numbers = []
        for number in self._candidates(path):
            rule = self._rules[number]
            if rule is None or (streams and not rule.of_streams):
                continue
            if rule.expression.search(path):
                numbers.append(number)
                if not rule.line.conditions:
                    break
        return tuple(numbers)

    def _decided(self, level: _Level, holds: Holds) -> int | None:
        for number in level:
            rule = self._rules[number]
            if rule is not None and (not rule.line.conditions or holds(number)):
                return number if rule.include else None
        return None

    def _folder(self, path: str) -> _Folder:
        """What the folders down to ``path`` decide for what lies in it."""
        known = self._folders.get(path)
        missing = []
        while known is None:
            missing.append(path)
            path, _, _ = path.rpartition("/")
            known = self._folders.get(path)
        for below in reversed(missing):
            known = self._folders[below] = self._below(known, below)
        return known

    def _below(self, above: _Folder, path: str) -> _Folder:
        if above.closed is not None:
            return above
        level = self._level(path + "/")
        if not level:
            return above
        first = self._rules[level[0]]
        assert first is not None
        if first.line.conditions:
            return _Folder((*above.levels, level))
        return _Folder(above.levels, level[0]) if first.include else above


def _plain(line: str) -> str:
    """The same rule in words that pathspec takes as git does.

    ``***`` is ``**``; ``x/**/`` is every folder below ``x``, and not ``x/``.
    """
    line = _MANY_STARS.sub("**", line)
    bare = line.rstrip()
    return bare + "*/" if bare.endswith("/**/") else line


def _of_the_path_itself(expression: str) -> str:
    for end, own in _ENDS:
        if expression.endswith(end):
            return expression[: -len(end)] + own
    return expression
