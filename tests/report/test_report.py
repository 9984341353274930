"""The report: whole, self-contained, harmless, and readable by a browser."""

from __future__ import annotations

import html
import re
import shutil
import subprocess
import unicodedata
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import factory
import numpy as np
import pandas as pd
import pytest

from cbtlab import audit as auditing
from cbtlab import report
from cbtlab.audit import Audit
from cbtlab.bitmap import Bitmap
from cbtlab.case import Case
from cbtlab.checks import NAMES, Verdict
from cbtlab.errors import InputError
from cbtlab.report import pictures, words

missing = factory.missing_tools()
needs_tools = pytest.mark.skipif(bool(missing), reason=f"{', '.join(missing)} not installed")
pytestmark = needs_tools

HOSTILE = (
    "/x<script>alert(1)</script>\"'><img src=http://evil.example/a.png>&amp;"
    "\u202egpj.exe\x1b[2J\n{{ 7*7 }}"
)
UNJUDGED = "\N{EN DASH} not judged"
VOID = {"meta", "img", "br", "link", "hr", "input"}


class Page(HTMLParser):
    """Reads a page strictly: every element is closed, and what it refers to is noted."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.references: list[tuple[str, str, str]] = []
        self.handlers: list[str] = []
        self.ids: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        if tag not in VOID:
            self.open.append(tag)
        for name, value in attrs:
            if name in ("src", "href", "srcset", "action", "data", "poster", "background"):
                self.references.append((tag, name, value or ""))
            if name == "id":
                self.ids.append(value or "")
            if name.startswith("on") or name == "style":
                self.handlers.append(name)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


@pytest.fixture(scope="module")
def audit(tmp_path_factory: pytest.TempPathFactory) -> Audit:
    folder = tmp_path_factory.mktemp("office")
    case = factory.office(folder / "recording").case(folder / "case")
    return auditing.run(case, folder / "out")


@pytest.fixture(scope="module")
def page(audit: Audit) -> str:
    return report.render(audit)


def failing(audit: Audit, summary: str, evidence: list[dict[str, object]], total: int) -> Audit:
    """Return the audit with one failed check in backup 1."""
    backups = list(audit.backups)
    bad = Verdict("tracked", False, summary, evidence, total)  # type: ignore[arg-type]
    checks = [bad if check.name == "tracked" else check for check in backups[1].checks]
    backups[1] = replace(backups[1], checks=checks)
    return replace(audit, backups=backups)


def test_the_verdicts_come_first_for_every_check_and_backup(audit: Audit, page: str) -> None:
    body = page[page.index("<body>") :]
    table = body[: body.index("</table>")]
    assert re.findall(r"<th>(\w+)</th>", table) == ["backup", *NAMES]
    rows = re.findall(r"<tr><th>(?!backup).*?</tr>", table, re.DOTALL)
    assert len(rows) == len(audit.backups)
    for row, backup in zip(rows, audit.backups, strict=True):
        shown = re.findall(rf"(✓ holds|✗ fails|{UNJUDGED})", row)
        wanted = {True: "✓ holds", False: "✗ fails", None: UNJUDGED}
        assert shown == [wanted[check.holds] for check in backup.checks]
    assert "Every check that could be made holds" in Page(page).text


def test_nothing_outside_of_the_page_is_referred_to(page: str) -> None:
    read = Page(page)
    assert not read.tags & {"script", "link", "iframe", "object", "embed", "base", "form", "svg"}
    for tag, name, value in read.references:
        inside = value.startswith("#") or (tag == "img" and value.startswith("data:image/png;"))
        assert inside, (tag, name, value[:60])
    assert read.handlers == []
    style = page[page.index("<style>") : page.index("</style>")]
    assert "url(" not in style and "@import" not in style
    assert "default-src 'none'" in page
    assert not re.search(r"https?://", page)


def test_every_link_within_the_page_leads_somewhere(page: str) -> None:
    read = Page(page)
    assert len(read.ids) == len(set(read.ids))
    wanted = {value[1:] for _, name, value in read.references if name == "href"}
    assert wanted <= set(read.ids)


def test_every_count_of_every_backup_is_there(audit: Audit, page: str) -> None:
    text = Page(page).text
    for entry in audit.document()["intervals"]:
        if entry["base"] is not None and entry["kept"]:
            assert (
                f"Since backup {entry['base']} the running system wrote to {entry['physical']}"
                f" blocks. On the snapshot, mounting and deleting wrote to {entry['snapshot']};"
                f" {entry['carry']} are carried over"
            ) in text
            assert f"{entry['zeroed']} units were declared zero" in text
        for digest in entry["digests"].values():
            assert digest in text
        for file in entry["excluded_files"]:
            assert file["path"] in text
            for extent in file["extents"]:
                if extent["kind"] == "data":
                    assert f"{extent['physical']:,} + {extent['length']:,}" in text


def test_sources_versions_and_command_are_there(audit: Audit, page: str) -> None:
    text, document = Page(page).text, audit.document()
    for piece in document["sources"]:
        assert piece["piece"] in text and piece["before"] in text
    assert "before and after the audit are the same" in text
    assert "cbtlab audit" in text and str(audit.case.path) in text
    assert document["versions"]["cbtlab"] in text
    assert "the delete's own writes cannot be told apart" in text


def test_pictures_are_there_and_the_file_is_small(page: str) -> None:
    kept, incremental = 4, 4  # of which one was thrown away
    shown = page.count("data:image/png;base64,")
    assert shown == 2 + kept * 2 + incremental
    assert len(page.encode()) < 2 << 20


def test_what_fails_stands_at_the_top_with_its_evidence(audit: Audit) -> None:
    evidence = [
        {"block": 1234, "offset": 5054464, "length": 4096, "time": "2026-01-05T08:30:00.5Z",
         "path": "/docs/database.db", "link": "0001.qcow2", "note": "changed and not marked"}
    ]  # fmt: skip
    text = Page(report.render(failing(audit, "2,345 blocks are not marked", evidence, 2345))).text
    assert "1 check fails. Backup 1, tracked : 2,345 blocks are not marked" in text
    for word in ("1,234", "5,054,464", "2026-01-05T08:30:00.5Z", "/docs/database.db"):
        assert word in text
    assert "changed and not marked" in text and "1 of 2,345 finds are shown" in text


def test_hostile_names_are_text_and_nothing_else(audit: Audit) -> None:
    evidence = [{"path": HOSTILE, "note": HOSTILE, "link": HOSTILE, "time": HOSTILE}]
    hostile = failing(audit, HOSTILE, evidence, 1)  # type: ignore[arg-type]
    backups = list(hostile.backups)
    details = {
        **backups[1].details,
        "excluded_files": [
            {"path": HOSTILE, "inode": 1, "size": 1, "gone": True, "blocks": 1, "linked": HOSTILE,
             "extents": [{"kind": HOSTILE, "physical": 8192, "length": 4096}]}
        ],
        "subtracted": [{"offset": 1, "length": 1, "path": HOSTILE, "owner": HOSTILE}],
        "subtracted_total": 1,
        "unusable": [HOSTILE],
        "log": {HOSTILE: HOSTILE},
    }  # fmt: skip
    backups[1] = replace(backups[1], details=details)
    hostile = replace(hostile, backups=backups)
    hostile.extra = {
        **hostile.extra,
        "notes": [HOSTILE],
        "recorded": {HOSTILE: HOSTILE},
        "command": ["cbtlab", HOSTILE],
        "rules": HOSTILE,
    }
    hostile.sources = [{"piece": HOSTILE, "before": HOSTILE, "after": "x"}]
    made = report.render(hostile)
    read = Page(made)
    assert not read.tags & {"script"} and read.tags == Page(report.render(audit)).tags
    assert all(v.startswith(("#", "data:image/png;")) for _, _, v in read.references)
    bad = {c for c in made if unicodedata.category(c) in ("Cc", "Cf")} - {"\n"}
    assert bad == set()
    assert "{{ 7*7 }}" in html.unescape(made)  # as written, and never evaluated
    assert r"\u202egpj.exe\x1b[2J\x0a" in made


def test_a_name_cannot_be_made_too_long(audit: Audit) -> None:
    made = report.render(failing(audit, "a" * 100_000, [{"path": "b" * 100_000}], 1))
    assert "a" * 1000 not in made and "b" * 1000 not in made


def test_a_long_chain_stays_small(audit: Audit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cbtlab.report.contents.DETAILED", 2)
    monkeypatch.setattr("cbtlab.report.contents.Pictures", lambda: pictures.Pictures(60_000))
    many = [{"block": n, "note": "lost"} for n in range(100)]
    monkeypatch.setattr("cbtlab.report.contents.EVIDENCE", 30)
    made = report.render(failing(audit, "bad", many, 5000))
    read = Page(made)
    assert "b1" in read.ids and "b0" in read.ids and "b2" not in read.ids
    assert "3 backups without a failure have no section" in read.text
    assert "pictures were left out" in read.text
    assert "30 of 5,000 finds are shown; audit.json has 100" in read.text
    wanted = {value[1:] for _, name, value in read.references if name == "href"}
    assert wanted <= set(read.ids)


def test_text_without_a_shape_is_shown_as_an_escape() -> None:
    assert words.clean("a\u2028b\u00a0c\ud800\U000e0001") == r"a\u2028b\xa0c\ud800\U000e0001"
    assert words.clean("Grüße 文件 ✓") == "Grüße 文件 ✓"
    assert words.clean(7) == 7


def test_write_leaves_a_whole_file_or_none(audit: Audit, tmp_path: Path) -> None:
    target = tmp_path / "report.html"
    report.write(audit, target)
    assert target.read_text(encoding="utf-8").endswith("</html>\n")
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
    with pytest.raises(InputError, match="cannot be written"):
        report.write(audit, tmp_path / "no" / "report.html")


def test_the_deletes_own_writes_stand_apart_from_the_mounts(tmp_path: Path) -> None:
    recording = factory.office(tmp_path / "recording")
    rows = recording.backups[0].writes["snapshot"]
    seq = rows["seq"].to_numpy(np.uint64)
    names = ("instant", "mount", "delete", "unmount", "unmounted")
    at = (seq[0], seq[0], seq[2], seq[5], seq[-1] + np.uint64(1))
    time = int(pd.Timestamp(rows["time"].iloc[0]).value)
    marks = [
        {"name": name, "time_ns": time + n, "seq": int(number)}
        for n, (name, number) in enumerate(zip(names, at, strict=True))
    ]
    backup = recording.backups[0]
    case = Case.create(tmp_path / "case", recording.size, recording.granularity)
    case.add(
        snapshot=backup.snapshot.path,
        stored=backup.stored.path,
        writes=backup.writes,
        bitmaps=backup.bitmaps,
        patterns=backup.patterns,
        marks=marks,
        log={
            "suspended": False,
            "frozen_ns": 12_345_678,
            "deleted": ["a", "b"],
            "store": {"used": 7},
        },
    )
    made = report.render(auditing.run(case, tmp_path / "out"))
    text = Page(made).text
    assert "mounting: journal, superblock, orphans 2 " in text
    assert "deleting the excluded files 3 " in text
    assert "Its queue was frozen for 12.3 ms" in text
    assert "switched while the volume was running" in text and "suspended:" not in text
    assert "2 names were deleted" in text and "store: {'used': 7}" in text
    assert "while deleting" not in text and made.count("data:image/png") == 5


@pytest.mark.slow
@pytest.mark.parametrize("width", [1200, 400])
def test_a_browser_shows_the_verdicts(page: str, tmp_path: Path, width: int) -> None:
    browser = next((path for name in ("chromium", "chromium-browser", "google-chrome")
                    if (path := shutil.which(name))), None)  # fmt: skip
    if browser is None:
        pytest.skip("no chromium on this machine")
    target = tmp_path / "report.html"
    target.write_text(page, encoding="utf-8")
    done = subprocess.run(
        [
            browser,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            f"--user-data-dir={tmp_path / 'profile'}",
            f"--window-size={width},900",
            "--dump-dom",
            target.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    shown = Page(done.stdout.replace("<!DOCTYPE html>", "").strip())
    for name in NAMES:
        assert name in shown.text
    assert shown.text.count("✓ holds") > 30


def test_of_very_many_writes_a_part_is_drawn_and_told(audit: Audit) -> None:
    taken = pictures.sample(audit.case, 50)
    assert (taken.every, taken.rows) == (3, len(audit.case.writes))
    assert len(taken.writes) <= 60
    assert taken.first == audit.case.writes["time"].min()
    assert taken.last == audit.case.writes["time"].max()
    whole = pictures.sample(audit.case)
    assert whole.every == 1
    pd.testing.assert_frame_equal(whole.writes, audit.case.writes)


def test_a_case_of_bitmaps_without_a_file_system_has_a_report(tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(np.random.default_rng(1).bytes(1 << 20))
    case = Case.create(tmp_path / "case", 1 << 20, 4096, name="<b>plain</b>")
    case.add(snapshot=image, stored=image)
    written = Bitmap.from_indices(np.array([2]), 1 << 20, 4096)
    for unusable in ([], ["torn"]):
        case.add(snapshot=image, stored=image, bitmaps={"physical": written}, patterns=["a"],
                 unusable=unusable)  # fmt: skip
    read = Page(report.render(auditing.run(case, tmp_path / "out", "union")))
    assert "b" in read.tags and "<b>plain</b>" in read.text
    assert "bitmaps alone, no write sequence" in read.text
    assert "no file system was recognised, so no rule was applied" in read.text
    assert "Recorded as unusable: torn." in read.text
