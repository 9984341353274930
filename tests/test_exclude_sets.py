"""The ready-made sets: each can be read, says where it is from, and names what it is for."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import cbtlab.exclude.sets as package
from cbtlab.errors import InputError
from cbtlab.exclude import collect_rules, match, read_rules, rule_set, rule_sets

NAMED = {
    "windows-memory": ["/pagefile.sys", "/PageFile.Sys", "/hiberfil.sys", "/swapfile.sys"],
    "windows-not-to-snapshot": [
        "/Users/ann/AppData/Local/Microsoft/Outlook/ann@example.org.ost",
        "/Windows/SoftwareDistribution/Download/1/x.cab",
        "/System Volume Information/FVE2.{9ef82dfa-1239-4a30-83e6-3b3e9b8fed08}.1",
    ],
    "windows-not-to-backup": [
        "/pagefile.sys",
        "/Windows/MEMORY.DMP",
        "/Windows/Minidump/010126-1.dmp",
        "/Users/ann/AppData/Local/Temp/a/b.tmp",
        "/System Volume Information/{0a-1}{3808876b-c176-4e48-b7ae-04046e6cc752}",
    ],
    "linux-swap": ["/swapfile", "/swap.img", "/swap/swapfile"],
    "browser-caches": [
        "/home/ann/.cache/mozilla/firefox/x.default/cache2/entries/0A",
        "/ann/.cache/chromium/Default/Cache/data_0",
        "/home/ann/.cache/google-chrome-beta/Default/Cache/index",
        "/Users/ann/Library/Caches/Firefox/Profiles/x/cache2/index",
        "/Users/ann/AppData/Local/Mozilla/Firefox/Profiles/x.default/cache2/index",
        "/Users/ann/AppData/Local/Google/Chrome/User Data/Default/Cache/Cache_Data/f_1",
        "/Users/ann/AppData/Local/Microsoft/Edge/User Data/Profile 1/Code Cache/js/1",
    ],
    "package-caches": [
        "/var/cache/apt/archives/git_2.deb",
        "/cache/dnf/base/x.rpm",
        "/home/ann/.cache/pip/http/1",
        "/root/.npm/_cacache/index-v5/0",
        "/home/ann/.cargo/registry/cache/x/y.crate",
        "/home/ann/.m2/repository/org/x/y.jar",
        "/home/ann/.gradle/caches/8/x",
        "/home/ann/go/pkg/mod/x@v1/y.go",
    ],
    "crash-dumps": [
        "/var/lib/systemd/coredump/core.x.zst",
        "/var/crash/x.crash",
        "/Users/ann/AppData/Local/CrashDumps/x.exe.1.dmp",
        "/Windows/LiveKernelReports/x.dmp",
    ],
    "trash": [
        "/home/ann/.local/share/Trash/files/x",
        "/.Trash-1000/files/x",
        "/$Recycle.Bin/S-1-5-21-1/$R1.docx",
        "/$RECYCLE.BIN/S-1-5-21-1/$R1.docx",
    ],
    "temporary": ["/tmp/x", "/var/tmp/x/y", "/Windows/Temp/x", "/Users/ann/AppData/Local/Temp/x"],
    "container-layers": [
        "/var/lib/docker/overlay2/0/diff/x",
        "/lib/containers/storage/overlay/0/diff/x",
        "/home/ann/.local/share/containers/storage/overlay/0/x",
    ],
}
KEPT = [
    "/home/ann/.mozilla/firefox/x.default/places.sqlite",
    "/home/ann/.config/chromium/Default/History",
    "/Users/ann/AppData/Roaming/Mozilla/Firefox/Profiles/x/logins.json",
    "/Users/ann/AppData/Local/Google/Chrome/User Data/Default/Login Data",
    "/Users/ann/AppData/Local/Microsoft/Outlook/ann.pst",
    "/home/ann/.cargo/config.toml",
    "/home/ann/.m2/settings.xml",
    "/home/ann/go/src/x.go",
    "/var/lib/docker/volumes/db/_data/x",
    "/var/lib/containers/storage/volumes/db/_data/x",
    "/home/ann/documents/pagefile.sys",
    "/home/ann/src/tmp/x",
    "/etc/fstab",
    "/Windows/System32/config/SYSTEM",
    "/home/ann/src/cache/core",
]


def test_every_set_is_tested_here() -> None:
    assert set(rule_sets()) == set(NAMED)


@pytest.mark.parametrize("name", sorted(NAMED))
def test_a_set_names_what_it_is_for_and_nothing_else(name: str) -> None:
    lines = [line for line in rule_set(name).patterns if "[size" not in line]
    assert match(lines, NAMED[name]).all(), [
        path for path in NAMED[name] if not match(lines, [path]).all()
    ]
    assert not match(lines, KEPT).any(), [path for path in KEPT if match(lines, [path]).any()]


@pytest.mark.parametrize("name", sorted(NAMED))
def test_a_set_says_what_it_is_and_where_its_facts_are_from(name: str) -> None:
    found = rule_set(name)
    assert found.title and found.description and found.patterns
    assert len(set(found.patterns)) == len(found.patterns)
    assert found.sources
    for source in found.sources:
        assert re.match(r"https://[a-z0-9.-]+/", source), source


@pytest.mark.parametrize("name", sorted(NAMED))
def test_a_set_is_a_file_of_rules_like_any_other(name: str, tmp_path: Path) -> None:
    path = Path(package.__file__).parent / f"{name}.rules"
    assert read_rules(path) == list(rule_set(name).patterns)
    (tmp_path / "shown").write_text(rule_set(name).text())
    assert read_rules(tmp_path / "shown") == list(rule_set(name).patterns)


def test_sets_come_first_and_can_be_taken_back(tmp_path: Path) -> None:
    (tmp_path / "rules").write_text("*.log\n")
    found = collect_rules(tmp_path / "rules", ["!/swap.img"], ["trash", "linux-swap", "trash"])
    assert [entry["name"] for entry in found.sets] == ["trash", "linux-swap"]
    assert found.rules[-2:] == ("*.log", "!/swap.img")
    assert match(list(found.rules), ["/swap.img", "/swapfile", "/a.log"]).tolist() == [
        False, True, True,
    ]  # fmt: skip
    owners = [found.set_of(n) for n in range(len(found.rules))]
    assert owners == ["trash"] * 8 + ["linux-swap"] * 8 + ["", ""]


def test_an_unknown_set_is_refused_with_those_that_are_known() -> None:
    with pytest.raises(InputError, match=r"is not known; there are browser-caches, "):
        collect_rules(sets=["caches"])
