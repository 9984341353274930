"""kept: whatever makes a kept file another file is found, by its name and by what changed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import factory
import pytest
from judged import failing, judged, verdict

Spoil = Callable[[factory.Volume], object]


def spoil(recording: factory.Recording, k: int, change: Spoil) -> None:
    """Change S_k* beyond the delete, tracked: as if the delete had done it."""
    change(recording.backups[k].stored)
    recording.trace()


@pytest.mark.parametrize(
    ("change", "path", "note"),
    [
        (
            lambda v: v.poke(v.blocks("/docs/database.db")[30] * 1024 + 100, b"other"),
            "/docs/database.db",
            f"content differs from byte {30 * 1024 + 100}",
        ),
        (
            lambda v: v.debugfs("set_inode_field /docs/report.txt mode 0100600"),
            "/docs/report.txt",
            "mode is 100600",
        ),
        (
            lambda v: v.debugfs("set_inode_field /docs/report.txt mtime @1000000000"),
            "/docs/report.txt",
            "modification time is 2001-09-09T01:46:40",
        ),
        (
            lambda v: v.debugfs("set_inode_field /docs/report.txt uid 77"),
            "/docs/report.txt",
            "owner is 77, and was 0 on S_k",
        ),
        (
            lambda v: v.debugfs("ea_set /docs/report.txt user.new value"),
            "/docs/report.txt",
            "extended attribute user.new",
        ),
        (
            lambda v: v.debugfs("unlink /docs/report.txt", "ln <15> /docs/report2.txt"),
            "/docs/report.txt",
            "is missing",
        ),
        (
            lambda v: v.debugfs("set_inode_field /docs/report.txt size 15000"),
            "/docs/report.txt",
            "size is 15000, and was 20000 on S_k",
        ),
        (
            lambda v: v.debugfs("symlink /docs/shortcut2 x", "unlink /docs/shortcut"),
            "/docs/shortcut",
            "is missing",
        ),
        (
            lambda v: v.debugfs("symlink /docs/shortcut2 x"),
            "/docs/shortcut2",
            "is new: S_k does not have it",
        ),
        (
            lambda v: v.debugfs("set_inode_field /docs/report.txt flags 0x80010"),
            "/docs/report.txt",
            "flags are 0x80010, and were 0x80000 on S_k",
        ),
        (
            lambda v: v.debugfs("set_inode_field /docs/report.txt projid 12"),
            "/docs/report.txt",
            "project is 12, and was 0 on S_k",
        ),
    ],
    ids=[
        *("content", "mode", "time", "owner", "xattr", "name", "size", "symlink"),
        *("new", "flags", "project"),
    ],
)
def test_a_change_of_a_kept_file_is_named(
    spoiled: factory.Recording, tmp_path: Path, change: Spoil, path: str, note: str
) -> None:
    spoil(spoiled, 1, change)
    check = verdict(judged(spoiled, tmp_path), 1, "kept")
    assert check.holds is False
    notes = {(entry["path"], entry["note"]) for entry in check.evidence}
    assert any(p == path and n.startswith(note) for p, n in notes), notes


def test_the_named_effects_of_the_delete_are_not_faults(
    office: factory.Recording, tmp_path: Path
) -> None:
    """Folders of deleted names changed, and a kept file lost its second name."""
    before, after = (
        v.debugfs("stat /docs/shared.bin")
        for v in (
            office.backups[1].snapshot.copy(tmp_path / "a.img"),
            office.backups[1].stored.copy(tmp_path / "b.img"),
        )
    )
    assert "Links: 2" in before and "Links: 1" in after
    assert verdict(judged(office, tmp_path), 1, "kept").holds is True


def test_a_second_link_that_went_too_is_found(spoiled: factory.Recording, tmp_path: Path) -> None:
    """The link count is right only if exactly the excluded names are gone."""
    spoil(spoiled, 1, lambda v: v.debugfs("set_inode_field /docs/shared.bin links_count 2"))
    check = verdict(judged(spoiled, tmp_path), 1, "kept")
    assert check.holds is False
    assert check.evidence[0]["note"] == "number of links is 2, and was 1 on S_k"


def test_a_link_that_restores_wrong_bytes_fails(
    office: factory.Recording, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A byte of a kept file is wrong in R_k alone: complete and kept both say which file."""
    from cbtlab.audit import backup as auditing

    at = office.backups[3].stored.blocks("/docs/reuse.bin")[2] * 1024 + 7
    true = auditing.restore

    def wrong(chain: object, k: int, to: Path) -> None:
        true(chain, k, to)  # type: ignore[arg-type]
        if k == 3:
            with to.open("r+b") as file:
                file.seek(at)
                file.write(b"#")

    monkeypatch.setattr(auditing, "restore", wrong)
    found = judged(office, tmp_path)
    assert {"complete", "kept"} <= failing(found)[3]
    assert verdict(found, 3, "kept").evidence == [
        {
            "block": at // 4096,
            "offset": at,
            "path": "/docs/reuse.bin",
            "link": "0003.qcow2",
            "note": f"content differs from byte {2 * 1024 + 7} of the file on",
        }
    ]
    (entry,) = verdict(found, 3, "complete").evidence
    assert entry["block"] == at // 4096 and entry["path"] == "/docs/reuse.bin"
    assert entry["link"] == "0003.qcow2"


def test_an_excluded_folder_may_go_as_a_whole(spoiled: factory.Recording, tmp_path: Path) -> None:
    """Then its parent has one link less, which is an effect of the delete, too."""
    spoil(spoiled, 4, lambda v: v.debugfs("rmdir /cache"))
    spoiled.backups[4].stored.check()
    found = judged(spoiled, tmp_path)
    assert found.holds, found.text()
    spoil(spoiled, 4, lambda v: v.debugfs("set_inode_field / links_count 9"))
    check = verdict(judged(spoiled, tmp_path / "again"), 4, "kept")
    assert [(entry["path"], entry["note"]) for entry in check.evidence] == [
        ("/", "number of links is 9, and was 6 on S_k")
    ]


@pytest.mark.parametrize(
    ("field", "value", "was", "now"),
    [("block[0]", "0x0802", "8:1", "8:2"), ("block[0]", "0x0301", "8:1", "3:1")],
)
def test_another_device_is_named(
    tmp_path: Path, field: str, value: str, was: str, now: str
) -> None:
    if factory.missing_tools():
        pytest.skip("needs e2fsprogs")
    tree = tmp_path / "tree"
    (tree / "cache").mkdir(parents=True)
    (tree / "cache/one").write_bytes(factory.text(1, 5000))
    volume = factory.Volume.make(tmp_path / "v.img", tree, 8 << 20)
    volume.debugfs("mknod disk b 8 1")
    recording = factory.Recording(tmp_path, volume, 4096)
    recording.backup(["/cache/"], ["/cache/one"])
    spoil(recording, 0, lambda v: v.debugfs(f"set_inode_field disk {field} {value}"))
    check = verdict(judged(recording, tmp_path), 0, "kept")
    assert [(entry["path"], entry["note"]) for entry in check.evidence] == [
        ("/disk", f"device number is {now}, and was {was} on S_k")
    ]
