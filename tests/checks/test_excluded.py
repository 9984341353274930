"""excluded: content of an excluded file is found wherever it hides; what a kept file has is not."""

from __future__ import annotations

import subprocess
from pathlib import Path

import factory
import numpy as np
import pytest
from judged import failing, judged, verdict

from cbtlab.audit import backup as auditing
from cbtlab.audit.rules import WRONG_RULES
from cbtlab.chain import Chain
from cbtlab.files import map_volume
from cbtlab.images import open_image

EXCLUDED = "/cache/tail.bin"


def sector(recording: factory.Recording, k: int = 1, at: int = 3) -> bytes:
    """Return a sector of an excluded file."""
    volume = recording.backups[k].snapshot
    return volume.read(volume.blocks(EXCLUDED)[at] * 1024, 512)


def place_of(recording: factory.Recording, k: int, owner: str) -> int:
    """Return the last block of S_k* in use that belongs to an owner, in bytes."""
    with open_image(recording.backups[k].stored.path) as image:
        mapped = map_volume(image)
        offsets = mapped.in_use.indices() * mapped.block_size
        mine = offsets[np.array([name == owner for name in mapped.owners(offsets)])]
    return int(mine[-1])


def end_of(recording: factory.Recording, k: int, name: str, size: int) -> int:
    """Return the place of the first byte behind the end of a file, in its last block."""
    return recording.backups[k].stored.blocks(name)[size // 1024] * 1024 + size % 1024


def test_content_in_the_journal_is_found(spoiled: factory.Recording, tmp_path: Path) -> None:
    at = place_of(spoiled, 1, "<journal>")
    spoiled.plant(1, at, sector(spoiled))
    found = judged(spoiled, tmp_path)
    check = verdict(found, 1, "excluded")
    assert check.holds is False and check.evidence_total == 1
    assert check.evidence == [
        {
            "block": at // 4096,
            "offset": at,
            "length": 512,
            "path": "<journal>",
            "class": "journal",
            "owner": "<journal>",
            "link": "0001.qcow2",
            "note": f"content of {EXCLUDED}, which backup 0 excludes",
        }
    ]
    # no later one has it: the carry-over stores the journal again
    assert failing(found) == {1: {"excluded"}}


@pytest.mark.parametrize("piece", [slice(512, 1024), slice(12_288, 12_488)], ids=["whole", "tail"])
def test_content_in_the_journal_of_both_images_is_found(
    spoiled: factory.Recording, tmp_path: Path, piece: slice
) -> None:
    """The journal belongs to an inode, and that makes it no kept file."""
    volume = spoiled.backups[1].snapshot
    data = b"".join(volume.read(block * 1024, 1024) for block in volume.blocks(EXCLUDED))[piece]
    at = place_of(spoiled, 1, "<journal>") // 1024 * 1024
    for k in range(1, 5):
        for image in (spoiled.backups[k].snapshot, spoiled.backups[k].stored):
            image.poke(at, data)
    spoiled.record(1, "physical", at, len(data))
    spoiled.trace()
    check = verdict(judged(spoiled, tmp_path), 1, "excluded")
    assert check.holds is False
    assert {entry["path"] for entry in check.evidence} == {"<journal>"}
    assert min(entry["offset"] for entry in check.evidence) == at


def test_the_tail_in_a_folders_slack_is_found(spoiled: factory.Recording, tmp_path: Path) -> None:
    volume, stored = spoiled.backups[3].snapshot, spoiled.backups[3].stored
    tail = volume.read(volume.blocks(EXCLUDED)[12] * 1024, 12_488 - 12 * 1024)
    at = place_of(spoiled, 3, "/logs") + 600  # a folder of two names: its block is mostly slack
    stored.poke(at, tail)
    # the checker gives the folder's block a checksum that fits again
    subprocess.run(["e2fsck", "-fy", str(stored.path)], capture_output=True, check=False)
    spoiled.trace()
    check = verdict(judged(spoiled, tmp_path), 3, "excluded")
    assert check.holds is False
    assert check.evidence[0]["path"] == "/logs" and check.evidence[0]["offset"] == at
    assert (check.evidence[0]["class"], check.evidence[0]["owner"]) == ("directory slack", "/logs")


def test_a_sector_behind_the_end_of_a_kept_file_is_found(
    spoiled: factory.Recording, tmp_path: Path
) -> None:
    at = spoiled.backups[1].stored.blocks("/docs/small.txt")[0] * 1024 + 512  # it has 100 bytes
    spoiled.plant(1, at, sector(spoiled))
    check = verdict(judged(spoiled, tmp_path), 1, "excluded")
    assert check.holds is False
    assert check.evidence[0]["offset"] == at and check.evidence[0]["path"] == "/docs/small.txt"


def test_the_tail_of_a_file_is_found_at_any_byte(
    spoiled: factory.Recording, tmp_path: Path
) -> None:
    volume = spoiled.backups[1].snapshot
    tail = volume.read(volume.blocks(EXCLUDED)[12] * 1024, 12_488 - 12 * 1024)
    at = end_of(spoiled, 1, "/docs/small.txt", 100) + 77
    spoiled.plant(1, at, tail)
    check = verdict(judged(spoiled, tmp_path), 1, "excluded")
    assert check.holds is False
    assert check.evidence[0]["offset"] == at and check.evidence[0]["path"] == "/docs/small.txt"


def test_content_in_a_link_that_no_reader_sees_is_found(
    office: factory.Recording, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cluster of the image file that its tables do not name."""
    true = auditing.restore

    def leaking(chain: Chain, k: int, to: Path) -> None:
        true(chain, k, to)
        if k == 4:
            with (chain.path / "0004.qcow2").open("ab") as file:
                file.write(bytes(-file.tell() % 4096) + sector(office, 4))

    monkeypatch.setattr(auditing, "restore", leaking)
    check = verdict(judged(office, tmp_path), 4, "excluded")
    assert check.holds is False
    (entry,) = check.evidence
    assert entry["link"] == "0004.qcow2" and "offset" not in entry
    assert EXCLUDED in entry["note"] and "of the image file" in entry["note"]


def test_what_a_kept_file_has_too_is_not_the_excluded_files(
    spoiled: factory.Recording, tmp_path: Path
) -> None:
    at = spoiled.backups[1].stored.blocks("/docs/database.db")[40] * 1024
    data = sector(spoiled)
    for k in range(1, 5):
        for image in (spoiled.backups[k].snapshot, spoiled.backups[k].stored):
            image.poke(at, data)
    spoiled.record(1, "physical", at, 512)
    found = judged(spoiled, tmp_path)
    assert found.holds, found.text()


def test_a_file_that_was_not_deleted_is_found(spoiled: factory.Recording, tmp_path: Path) -> None:
    for backup in spoiled.backups:
        backup.patterns = [*backup.patterns, "/docs/report.txt"]
    found = judged(spoiled, tmp_path)
    check = verdict(found, 1, "excluded")
    assert check.holds is False
    assert check.evidence[0]["path"] == "/docs/report.txt"
    assert "still on S_k*" in check.evidence[0]["note"]


def test_old_bytes_that_show_through_are_found(office: factory.Recording, tmp_path: Path) -> None:
    """A rule was added, nothing was written: the base's blocks must be zeroed."""
    found = judged(office, tmp_path, rules=WRONG_RULES["zero only written"])
    check = verdict(found, 3, "excluded")
    assert check.holds is False
    notes = {entry["note"] for entry in check.evidence}
    assert "a block of an excluded file, and not zero in R_k" in notes
    assert any("content of /docs/draft.tmp" in note for note in notes)
    assert {entry["link"] for entry in check.evidence} <= {"0000.qcow2", "0001.qcow2"}


def test_earlier_restore_points_are_listed(office: factory.Recording, tmp_path: Path) -> None:
    check = verdict(judged(office, tmp_path), 3, "excluded")
    assert check.holds is True
    listed = {entry["path"]: entry["note"] for entry in check.evidence}
    assert listed["/docs/draft.tmp"].endswith("restore point 0, 1")
    assert listed["/cache/notes.txt"].endswith("restore point 0")


@pytest.mark.parametrize("policy", ["extents", "union"])
def test_other_policies_report_and_do_not_judge(
    office: factory.Recording, tmp_path: Path, policy: str
) -> None:
    found = judged(office, tmp_path, policy)
    assert found.holds
    checks = {k: verdict(found, k, "excluded") for k in (0, 1, 3, 4)}
    assert {check.holds for check in checks.values()} == {None}
    # a preallocated file lies over the old blocks of an excluded one
    paths = {entry["path"] for entry in checks[3].evidence}
    assert "/docs/reserved.dat" in paths if policy == "extents" else len(paths) > 1


def test_a_small_file_inside_its_inode_is_found(tmp_path: Path) -> None:
    """debugfs leaves the bytes of inline data in the freed inode, whose table is in use."""
    if factory.missing_tools():
        pytest.skip("needs e2fsprogs")
    tree = tmp_path / "tree"
    (tree / "cache").mkdir(parents=True)
    (tree / "cache/secret.txt").write_bytes(b"the launch code is 4711-0815\n")
    (tree / "report.txt").write_bytes(factory.text(1, 5000))
    volume = factory.Volume.make(tmp_path / "v.img", tree, 8 << 20, options="inline_data")
    recording = factory.Recording(tmp_path, volume, 4096)
    recording.backup(["/cache/"], ["/cache/secret.txt"])
    recording.trace()
    found = judged(recording, tmp_path)
    check = verdict(found, 0, "excluded")
    assert check.holds is False and check.evidence_total == 1
    assert "inode" in check.evidence[0]["path"]
    assert "content of /cache/secret.txt" in check.evidence[0]["note"]


SECRETS = {
    "small.txt": factory.text(7, 500),
    "large.bin": factory.text(66, 2048),
    "attributed": b"nothing to see",
}
VALUE = b"customer-4711-private-value-xyz"
TARGET = b"/secret/very/long/path/of/customer-4711"
JOURNAL, SLACK = "the journal", "behind the end of a kept file"


@pytest.mark.parametrize(
    ("where", "data", "whose"),
    [
        (JOURNAL, SECRETS["small.txt"][64:], "small.txt"),
        (SLACK, SECRETS["small.txt"][64:], "small.txt"),
        (SLACK, SECRETS["small.txt"][-100:], "small.txt"),
        (JOURNAL, SECRETS["large.bin"][:900], "large.bin"),
        (SLACK, SECRETS["large.bin"][:512], "large.bin"),
        (SLACK, SECRETS["large.bin"][100:512], "large.bin"),
        (SLACK, SECRETS["large.bin"][700:987], "large.bin"),
        (JOURNAL, VALUE, "attributed"),
        (SLACK, TARGET, "link"),
    ],
)
def test_a_part_of_the_content_is_found_at_any_byte(
    tmp_path: Path, where: str, data: bytes, whose: str
) -> None:
    if factory.missing_tools():
        pytest.skip("needs e2fsprogs")
    tree = tmp_path / "tree"
    (tree / "cache").mkdir(parents=True)
    (tree / "docs").mkdir()
    for name, content in SECRETS.items():
        (tree / "cache" / name).write_bytes(content)
    (tree / "docs/report.txt").write_bytes(factory.text(1, 100))
    volume = factory.Volume.make(tmp_path / "v.img", tree, 8 << 20)
    volume.debugfs(
        f"ea_set /cache/attributed user.secret {VALUE.decode()}",
        f"symlink /cache/link {TARGET.decode()}",
    )
    recording = factory.Recording(tmp_path, volume, 4096)
    recording.backup(["/cache/"], [f"/cache/{name}" for name in (*SECRETS, "link")])
    stored = recording.backups[0].stored
    forget(stored, VALUE, TARGET)
    blocks = stored.blocks("<8>" if where == JOURNAL else "/docs/report.txt")
    at = blocks[-3 if where == JOURNAL else 0] * 1024 + 333
    stored.poke(at, data)
    recording.trace()
    check = verdict(judged(recording, tmp_path), 0, "excluded")
    assert check.holds is False
    assert {entry["note"] for entry in check.evidence} == {
        f"content of /cache/{whose}, which backup 0 excludes"
    }
    for entry in check.evidence:
        assert at <= entry["offset"] and entry["offset"] + entry["length"] <= at + len(data)


def forget(volume: factory.Volume, *pieces: bytes) -> None:
    """Zero what debugfs leaves in freed inodes, and a kernel clears."""
    data = volume.path.read_bytes()
    for piece in pieces:
        at = -1
        while (at := data.find(piece, at + 1)) >= 0:
            volume.poke(at, bytes(len(piece)))


def test_what_kept_files_have_beside_their_content_is_no_find(tmp_path: Path) -> None:
    """A label that all files bear, and the name that a symlink leads to."""
    if factory.missing_tools():
        pytest.skip("needs e2fsprogs")
    tree = tmp_path / "tree"
    (tree / "cache").mkdir(parents=True)
    (tree / "cache/library-of-things.so.1.2.3").write_bytes(factory.text(1, 5000))
    (tree / "kept.txt").write_bytes(factory.text(2, 5000))
    volume = factory.Volume.make(tmp_path / "v.img", tree, 8 << 20)
    label = "security.selinux system_u:object_r:user_home_t:s0"
    volume.debugfs(
        f"ea_set /cache/library-of-things.so.1.2.3 {label}",
        f"ea_set /kept.txt {label}",
        "symlink /cache/library.so library-of-things.so.1.2.3",
    )
    recording = factory.Recording(tmp_path, volume, 4096)
    recording.backup(["/cache/"], ["/cache/library-of-things.so.1.2.3", "/cache/library.so"])
    recording.trace()
    found = judged(recording, tmp_path)
    assert found.holds, found.text()


def test_rules_that_name_nothing_are_told(spoiled: factory.Recording, tmp_path: Path) -> None:
    spoiled.backups[1].patterns = [*spoiled.backups[1].patterns, "/cahce/", "!*.kep"]
    check = verdict(judged(spoiled, tmp_path), 1, "excluded")
    assert check.holds is True
    assert check.summary.endswith("; 2 rules name nothing on S_k: '/cahce/', '!*.kep'")


def test_exchanged_images_are_told_in_words_that_add_up(
    spoiled: factory.Recording, tmp_path: Path
) -> None:
    """S_k* in the place of S_k, and the other way round."""
    first = spoiled.backups[0]
    first.snapshot, first.stored = first.stored, first.snapshot
    check = verdict(judged(spoiled, tmp_path), 0, "excluded")
    assert check.holds is False
    more = len(check.evidence)
    assert check.summary.startswith(f"0 of 0 excluded files still on S_k*, {more} more files that")
    assert check.evidence[0]["note"] == "a rule names it, and it is on S_k*, and not on S_k"
