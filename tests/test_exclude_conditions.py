"""Conditions behind a pattern: against find, against git, and the same for image and delete."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from cbtlab.errors import InputError
from cbtlab.exclude import decide, idle, match, read_rules
from cbtlab.files import map_volume
from cbtlab.images import open_image
from cbtlab.record.mounted import delete
from cbtlab.record.sid import owner_sid
from cbtlab.rules import Rules, parse, with_instant
from cbtlab.rules.conditions import instant_text

sys.path.insert(0, str(Path(__file__).parent / "files"))
import ext_images as ext

DAY = 86_400_000_000_000
NOW = 1_767_600_000_000_000_000  # 2026-01-05T08:00:00Z


@dataclass
class File:
    """The facts about a file, made up."""

    size: int = 0
    mtime_ns: int = NOW
    uid: int | None = 0
    sid: str | None = None


# The notation ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "pattern", "conditions"),
    [
        ("*.iso [size>100M]", "*.iso", ["size>100M"]),
        ("*.iso  [size>100M]\t[age<=2w]  ", "*.iso", ["size>100M", "age<=2w"]),
        ("/home/ [age>90d] [owner=1000]", "/home/", ["age>90d", "owner=1000"]),
        ("!*.iso [ size < 1k ]", "!*.iso", ["size < 1k"]),
        ("a b [owner!=S-1-5-18]", "a b", ["owner!=S-1-5-18"]),
        ("x[ab] [size=0]", "x[ab]", ["size=0"]),
        ("/pagefile.sys [case=ignore]", "/pagefile.sys", []),
        (r"trailing\  [size>1]", "trailing\\ ", ["size>1"]),
    ],
)
def test_conditions_stand_behind_the_pattern(
    line: str, pattern: str, conditions: list[str]
) -> None:
    found = parse(line)
    assert found.pattern == pattern
    assert [condition.text for condition in found.conditions] == conditions


@pytest.mark.parametrize(
    "line",
    [
        "*.iso", "x [ab]", "x [a-z0-9]", "x [!a]", "x [[:space:]]", "[size", "a[size>1]",
        r"x\ [size>100M]", r"x \[size>100M]", "# x [size>100M]", "x [a=b]", "x [<=>]", "[ab]", "",
        "x [sizes]", "x [a]b", "x (size>100M)", "x [size>100M]/",
    ],
)  # fmt: skip
def test_what_git_reads_as_a_pattern_stays_one(line: str) -> None:
    assert parse(line).pattern == line
    assert not parse(line).conditions


@pytest.mark.parametrize(
    ("line", "way"),
    [
        ("*.iso [siez>100M]", "write [size>100M]"),
        ("*.iso [size>100Q]", "K, M, G or T"),
        ("*.iso [size>]", "K, M, G or T"),
        ("*.iso [size]", "K, M, G or T"),
        ("*.iso [size:100M]", "K, M, G or T"),
        ("*.iso [size>100M", ""),
        ("*.iso [size!=100M]", "K, M, G or T"),
        ("*.iso [size>99999999999T]", "K, M, G or T"),
        ("*.log [age>90]", "min, h, d, w or y"),
        ("*.log [age>90m]", "min, h, d, w or y"),
        ("*.log [age > -1d]", "min, h, d, w or y"),
        ("* [owner=root]", "S-1-5-18"),
        ("* [owner>1000]", "S-1-5-18"),
        ("* [owner=4294967296]", "S-1-5-18"),
        ("* [case=fold]", "case=ignore"),
        ("* [at=yesterday]", "[at=2026-01-05T08:00:00Z]"),
        ("* [at=2026-02-30T08:00:00Z]", "[at=2026-01-05T08:00:00Z]"),
        ("[size>100M]", "write '* [size>100M]'"),
        (" [size>100M]", "write '* [size>100M]'"),
        ("*.iso [size>1M] [sise<2M]", "write [size>100M]"),
    ],
)
def test_a_misspelt_condition_is_refused_in_one_line(line: str, way: str) -> None:
    if not line.endswith("]"):
        assert parse(line).pattern == line  # without its end it is what git makes of it
        return
    with pytest.raises(InputError) as refused:
        read_rules(None, [line])
    assert way in str(refused.value) and "\n" not in str(refused.value)


def test_two_lists_of_today_hold_no_condition() -> None:
    """Git's own documentation of patterns, and what the repository's tests have."""
    words = ["a", "foo", "*.log", "**", "fo?", "[ab]", "[!a]*", "x y", "x [ab]", "\\[a]", "a [0-9]"]
    for one in words:
        for other in words:
            for line in (f"{one}/{other}", f"!{one} {other}", f"{one} {other}/"):
                assert parse(line).pattern == line


# What they mean -------------------------------------------------------------------------------


def test_ages_count_from_the_instant_to_the_nanosecond() -> None:
    rules = Rules(["* [age>90d]"]).at(NOW)
    edge = NOW - 90 * DAY
    assert [rules.names("x", File(mtime_ns=edge + n)) for n in (-1, 0, 1)] == [True, False, False]
    rules = Rules(["* [age>=90d]"]).at(NOW)
    assert [rules.names("x", File(mtime_ns=edge + n)) for n in (-1, 0, 1)] == [True, True, False]
    rules = Rules(["* [age<1min]"]).at(NOW)
    assert rules.names("x", File(mtime_ns=NOW + DAY)), "from the future"
    assert not rules.names("x", File(mtime_ns=NOW - DAY))


def test_an_age_without_an_instant_is_refused_before_anything_is_judged() -> None:
    for rules in (Rules(["*.log [age>1d]"]), Rules(["x", "!y [age>1d]"])):
        with pytest.raises(InputError, match=r"instant is not known; give it with --instant"):
            rules.names("x", File())


@pytest.mark.parametrize("instant", [NOW, NOW + 1, NOW + 120_000_000, 0, 1 << 62])
def test_a_line_says_which_instant_its_ages_count_from(instant: int) -> None:
    fixed = "x [age>1d] [at=1970-01-01T00:00:00Z]"
    lines = with_instant(["*.log [age>1d]", "*.iso [size>1]", fixed], instant)
    assert lines[0] == f"*.log [age>1d] [at={instant_text(instant)}]"
    assert lines[1:] == ["*.iso [size>1]", fixed]
    assert with_instant(lines, 5) == lines
    assert parse(lines[0]).conditions[0].instant_ns == instant


def test_a_file_is_judged_by_the_rules_whose_conditions_it_meets() -> None:
    rules = Rules(["/logs/ [size>1K]", "!/logs/keep", "*.iso", "!*.iso [size<10]", "d/", "!d/x"])
    big, small = File(size=5000), File(size=5)
    assert rules.names("logs/deep/a", big) and not rules.names("logs/deep/a", small)
    assert rules.names("logs/keep", big), "below a folder that a rule names nothing is taken back"
    assert rules.names("a.iso", big) and not rules.names("a.iso", small)
    assert rules.names("d/x", small)
    assert not rules.names("logs/"), "a folder meets no condition"
    assert rules.names("d/")


def test_case_is_ignored_where_a_rule_says_so() -> None:
    rules = Rules(
        ["/PageFile.sys [case=ignore]", "Temp/ [case=ignore]", "/Exact", "*.Tmp [case=ignore]"]
    )
    for path in ("pagefile.sys", "PAGEFILE.SYS", "a/TEMP/x", "x.tMP"):
        assert rules.names(path, File()), path
    for path in ("exact", "a/pagefile.sys"):
        assert not rules.names(path, File()), path


def test_an_owner_that_the_file_system_does_not_have_is_refused() -> None:
    sid = "S-1-5-21-1-2-3-1001"
    assert Rules([f"* [owner={sid.lower()}]"]).names("x", File(uid=None, sid=sid))
    with pytest.raises(InputError, match="no owners by number"):
        Rules(["* [owner=0]"]).names("x", File(uid=None))
    with pytest.raises(InputError, match="no SIDs"):
        Rules(["* [owner=S-1-5-18]"]).names("x", File())


def test_the_owner_of_a_security_descriptor() -> None:
    """O:BAG:SY, self-relative, as MS-DTYP lays it out."""
    administrators = bytes.fromhex("01 02 000000000005 20000000 20020000")
    system = bytes.fromhex("01 01 000000000005 12000000")
    head = bytes.fromhex("0100 0080 14000000 24000000 00000000 00000000")
    assert owner_sid(head + administrators + system) == "S-1-5-32-544"
    assert owner_sid(head[:4] + b"\xff\xff\xff\x7f" + head[8:] + administrators) is None
    assert owner_sid(head + administrators[:9]) is None
    assert owner_sid(b"") is None


# Oracles --------------------------------------------------------------------------------------


@pytest.fixture()
def tree(tmp_path: Path) -> Path:
    """Files of many sizes, times and owners."""
    rng, tree = random.Random(11), tmp_path / "tree"
    for folder in ("", "home", "home/one", "home/two", "var"):
        (tree / folder).mkdir(parents=True, exist_ok=True)
        for n in range(12):
            path = tree / folder / f"{n}.{rng.choice(['log', 'iso', 'tmp'])}"
            path.write_bytes(b"x" * rng.choice([0, 1, 1023, 1024, 1025, 4096, 100_000]))
            if os.geteuid() == 0:
                os.chown(path, rng.choice([0, 1000, 1001]), 0)
            at = NOW - rng.choice([0, 1, 29, 30, 31, 365]) * DAY
            os.utime(path, ns=(at, at))
    return tree


FOUND = [
    ("* [size>1K]", ["-size", "+1024c"]),
    ("* [size>=1K]", ["-size", "+1023c"]),
    ("* [size<1K]", ["-size", "-1024c"]),
    ("* [size=1K]", ["-size", "1024c"]),
    ("*.log [age>30d]", ["-name", "*.log", "!", "-newermt", "@{}"]),
    ("* [age<=30d] [size<=1025]", ["-newermt", "@{}", "-size", "-1026c"]),
    ("/home/ [owner=1000]", ["-path", "./home/*", "-uid", "1000"]),
    ("*.tmp [owner!=1000] [size>0]", ["-name", "*.tmp", "!", "-uid", "1000", "-size", "+0c"]),
]  # fmt: skip


@ext.needs_e2fsprogs
@pytest.mark.parametrize(("rule", "words"), FOUND, ids=[rule for rule, _ in FOUND])
def test_find_the_image_and_the_delete_agree(
    tmp_path: Path, tree: Path, rule: str, words: list[str]
) -> None:
    instant = NOW + 500_000_000  # no file is exactly so old
    edge = f"{(instant - 30 * DAY) // 1_000_000_000}.5"
    tests = [word.replace("{}", edge) for word in words]
    command = ["find", ".", "-type", "f", *tests, "-print0"]
    done = subprocess.run(command, cwd=tree, capture_output=True, check=True, text=True)
    expected = sorted("/" + path[2:] for path in done.stdout.split("\0") if path)
    assert expected
    path = ext.make(tmp_path / "a.img", 16 * ext.MIB, "-t", "ext4", source=tree)
    lines = with_instant([rule], instant)
    with open_image(path) as image:
        volume = map_volume(image)
    files = volume.names["type"] == "file"
    assert sorted(volume.names.loc[match(lines, volume) & files, "path"]) == expected
    gone = delete(tree, Rules([rule], instant))
    assert sorted(one.path for one in gone) == expected


@pytest.mark.skipif(not shutil.which("git"), reason="needs git")
def test_git_judges_each_file_by_the_rules_that_it_meets(tmp_path: Path) -> None:
    rng = random.Random(5)
    words = ["a", "b", "*.log", "*", "fo?", "foo", "a/", "/foo/", "b/**", "**/foo"]
    sizes, files = (0, 10, 2000), {}
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    for folder in ("", "a/", "b/", "foo/", "foo/a/", "b/foo/"):
        (tmp_path / folder).mkdir(exist_ok=True)
        for name in ("x", "a.log", "foo1"):
            files[folder + name] = File(size=rng.choice(sizes))
            (tmp_path / folder / name).touch()

    def ignored(rules: Sequence[str]) -> set[str]:
        (tmp_path / ".git" / "info" / "exclude").write_text("\n".join(rules) + "\n")
        command = ["git", "-C", str(tmp_path), "check-ignore", "--no-index", "-z", "--stdin"]
        text = "\0".join(files)
        done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
        return set(done.stdout.split("\0"))

    asked = 0
    for _ in range(60):
        rules = []
        for _ in range(rng.choice([2, 3, 4, 5])):
            behind = rng.choice(["", "", " [size>5]", " [size<1K]", " [size>=2000]"])
            rules.append("!" * (rng.random() < 0.3) + rng.choice(words) + behind)
        judged = Rules(rules)
        for size in sizes:
            like = File(size=size)
            met = [
                line.pattern
                for line in map(parse, rules)
                if all(condition.holds(like) for condition in line.conditions)
            ]
            expected = ignored(met)
            for path, facts in files.items():
                if facts.size == size:
                    assert judged.names(path, facts) == (path in expected), (rules, path, size)
                    asked += path in expected
    assert asked > 200


def test_bytes_that_are_not_utf8_are_one_character_each(tmp_path: Path) -> None:
    raw = os.fsencode(tmp_path) + b"/a\xff\xfeb"
    Path(os.fsdecode(raw)).write_bytes(b"xx")
    (tmp_path / "a\u00e9b").write_bytes(b"xx")
    assert [one.path for one in delete(tmp_path, Rules(["a??b [size=2]"]))] == ["/a\udcff\udcfeb"]


# Many names -----------------------------------------------------------------------------------


@ext.needs_e2fsprogs
def test_rules_that_name_nothing_are_told(tmp_path: Path, tree: Path) -> None:
    path = ext.make(tmp_path / "a.img", 16 * ext.MIB, "-t", "ext4", source=tree)
    with open_image(path) as image:
        volume = map_volume(image)
    lines = [
        "*.log",
        "*.jpg",
        "!home/",
        "!nothing",
        "# x",
        "* [size>1M]",
        "* [size>1K]",
        "var/ [size=0]",
    ]
    assert idle(lines, volume) == ["*.jpg", "!nothing", "* [size>1M]"]
    assert idle(lines, volume.names) == ["*.jpg", "!nothing"], "paths alone have no sizes"
    with pytest.raises(InputError, match="only paths are known"):
        match(["* [size>1K]"], volume.names)
    numbers = decide(["*.log", "*.log [size>1K]"], volume)
    assert set(numbers.tolist()) == {-1, 0, 1}
