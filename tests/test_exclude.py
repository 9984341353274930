"""Rules against git itself, and X_k against what debugfs and the kernel did to the image."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from cbtlab.errors import InputError
from cbtlab.exclude import Exclusion, excluded, match, read_rules
from cbtlab.files import VolumeMap, map_volume
from cbtlab.images import open_image

sys.path.insert(0, str(Path(__file__).parent / "files"))
import ext_images as ext

# Rules ----------------------------------------------------------------------------------------

CASES = [
    (["*.log"], ["/a.log", "/d/b.log"], ["/a.log.txt", "/d/c"]),
    (["/*.log"], ["/a.log"], ["/d/b.log"]),
    (["cache/"], ["/cache/x", "/d/cache/y/z"], ["/d/cache", "/cache2/x"]),
    (["/cache"], ["/cache/x/y"], ["/d/cache/x"]),
    (["d/*.tmp"], ["/d/a.tmp"], ["/e/d/a.tmp", "/d/e/a.tmp"]),
    (["d/**/x"], ["/d/x", "/d/1/2/x"], ["/x"]),
    (["*.log", "!keep.log"], ["/a.log"], ["/keep.log", "/d/keep.log"]),
    (["cache/", "!cache/keep"], ["/cache/keep", "/cache/x"], []),
    (["cache/*", "!cache/keep"], ["/cache/x"], ["/cache/keep"]),
    (["Cache"], ["/Cache/x"], ["/cache/x"]),
    (["# comment", "", "\\#literal"], ["/#literal"], ["/# comment"]),
    (["fi?e[0-9]"], ["/file1"], ["/fiiile1", "/filex"]),
    (["*"], ["/a", "/d/b"], []),
    (["two*lines"], ["/two\nlines"], ["/two/lines"]),
    ([], [], ["/a"]),
]


@pytest.mark.parametrize(("patterns", "yes", "no"), CASES)
def test_rules(patterns: list[str], yes: list[str], no: list[str]) -> None:
    assert match(patterns, yes).tolist() == [True] * len(yes)
    assert match(patterns, no).tolist() == [False] * len(no)


def test_a_rule_that_cannot_be_read_is_refused() -> None:
    for pattern in ("[z-a]", "cache/[b-a]*"):
        with pytest.raises(InputError, match="pattern"):
            match([pattern], ["/a"])


@pytest.mark.parametrize(
    ("data", "patterns"),
    [
        (b"\xef\xbb\xbf/cache/\n*.log\n", ["/cache/", "*.log"]),
        ("/ca\u2028che/\n# a\x0c/docs/\n/a\x0cb\n".encode(), ["/ca\u2028che/", "/a\x0cb"]),
        (b"/cache/\r\n\r\n/a\rb", ["/cache/", "/a\rb"]),
    ],
    ids=["mark", "separators", "returns"],
)
def test_a_file_of_rules_is_read_as_git_reads_it(
    tmp_path: Path, data: bytes, patterns: list[str]
) -> None:
    (tmp_path / "rules").write_bytes(data)
    assert read_rules(tmp_path / "rules", ["*.tmp"]) == [*patterns, "*.tmp"]


def test_two_rules_in_one_pattern_are_refused() -> None:
    with pytest.raises(InputError, match="line break"):
        read_rules(None, ["*.log\n/cache/"])


@pytest.mark.skipif(not shutil.which("git"), reason="needs git")
def test_rules_mean_what_git_means(tmp_path: Path) -> None:
    words = ["a", "b", "foo", "bar", "*.log", "*", "**", "fo?", "[ab]", "[!a]*", "ba*", "x y"]
    rng = random.Random(7)

    def pattern() -> str:
        rule = "/".join(rng.choice(words) for _ in range(rng.choice([1, 1, 1, 2, 2, 3])))
        rule = "/" * (rng.random() < 0.3) + rule + "/" * (rng.random() < 0.3)
        return "!" * (rng.random() < 0.3) + rule

    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    names = ["a", "b", "foo", "bar", "a.log", "x y"]
    folders = [f"{one}/" for one in names[:4]] + [
        f"{one}/{two}/" for one in names[:4] for two in "ab"
    ]
    files = []
    for folder in ["", *folders]:
        (tmp_path / folder).mkdir(exist_ok=True)
        for name in names:
            if f"{folder}{name}/" not in folders:
                (tmp_path / folder / name).touch()
                files.append(folder + name)
    for _ in range(150):
        patterns = [pattern() for _ in range(rng.choice([1, 2, 3, 4]))]
        (tmp_path / ".git" / "info" / "exclude").write_text("\n".join(patterns) + "\n")
        done = subprocess.run(
            ["git", "-C", str(tmp_path), "check-ignore", "--no-index", "-z", "--stdin"],
            input="\0".join(files),
            capture_output=True,
            text=True,
            check=False,
        )
        ignored = set(done.stdout.split("\0"))
        mine = match(patterns, ["/" + file for file in files])
        assert mine.tolist() == [file in ignored for file in files], patterns


# X_k ------------------------------------------------------------------------------------------


@pytest.fixture()
def tree(tmp_path: Path) -> Path:
    tree = tmp_path / "tree"
    (tree / "cache" / "deep").mkdir(parents=True)
    (tree / "docs").mkdir()
    (tree / "cache" / "one").write_bytes(b"1" * 100_000)
    (tree / "cache" / "deep" / "two").write_bytes(b"2" * 3000)
    (tree / "cache" / "link").write_bytes(b"3" * 9000)
    os.link(tree / "cache" / "link", tree / "docs" / "kept-link")
    (tree / "cache" / "symlink").symlink_to("x/" * 100)
    (tree / "docs" / "report").write_bytes(b"4" * 20_000)
    (tree / "swap").write_bytes(b"5" * 50_000)
    return tree


def two(path: Path, after: Path, patterns: list[str]) -> tuple[VolumeMap, VolumeMap, Exclusion]:
    with open_image(path) as first, open_image(after) as second:
        before, later = map_volume(first), map_volume(second)
        return before, later, excluded(before, later, patterns)


def deleted(path: Path, *commands: str) -> Path:
    after = path.with_name("after.img")
    shutil.copyfile(path, after)
    ext.debugfs(after, *commands)
    return after


RULES = ["cache/", "/swap"]
REMOVED = ["rm cache/one", "rm cache/deep/two", "rm cache/link", "rm cache/symlink", "rm swap"]


@ext.needs_e2fsprogs
@pytest.mark.parametrize("kind", ["ext2", "ext4"])
def test_the_mask_is_the_blocks_of_what_only_rules_name(
    tmp_path: Path, tree: Path, kind: str
) -> None:
    path = ext.make(tmp_path / "a.img", 16 * ext.MIB, "-t", kind, "-b", "1024", source=tree)
    after = deleted(path, *REMOVED)
    _, _, result = two(path, after, RULES)
    expected = set()
    for name in ("cache/one", "cache/deep/two", "cache/symlink", "swap"):
        words = ext.debugfs(path, f"blocks {name}").split()
        expected |= {int(word) for word in words if word.isdigit()}
    assert set(result.mask.indices().tolist()) == expected
    assert result.files["path"].tolist() == [
        "/cache/deep/two",
        "/cache/link",
        "/cache/one",
        "/cache/symlink",
        "/swap",
    ]
    assert result.files["gone"].all()
    assert result.files["linked"].tolist() == ["", "/docs/kept-link", "", "", ""]
    blocks = dict(zip(result.files["path"], result.files["blocks"], strict=True))
    assert sum(n for name, n in blocks.items() if name != "/cache/link") == len(expected)
    assert result.remaining == []
    assert result.subtracted.empty
    assert set(result.extents["path"]) == {
        "/cache/one",
        "/cache/deep/two",
        "/cache/symlink",
        "/swap",
    }


@ext.needs_e2fsprogs
def test_a_delete_that_did_not_happen_is_told(tmp_path: Path, tree: Path) -> None:
    path = ext.make(tmp_path / "a.img", 16 * ext.MIB, "-t", "ext4", "-b", "1024", source=tree)
    after = deleted(path, "rm swap")
    _, _, result = two(path, after, RULES)
    assert "/cache/one" in result.remaining and "/swap" not in result.remaining
    gone = dict(zip(result.files["path"], result.files["gone"], strict=True))
    assert gone["/swap"] and not gone["/cache/one"]
    mine = result.subtracted[result.subtracted["path"] == "/cache/one"]
    assert mine["length"].sum() == 98 * 1024
    assert set(mine["owner"]) == {"/cache/one"}
    assert result.mask.count() == 49  # the blocks of /swap alone


@ext.needs_e2fsprogs
def test_a_block_that_somebody_else_has_now_is_subtracted(tmp_path: Path, tree: Path) -> None:
    path = ext.make(tmp_path / "a.img", 16 * ext.MIB, "-t", "ext4", "-b", "1024", source=tree)
    payload = tmp_path / "new"
    payload.write_bytes(b"n" * 5000)
    with open_image(path) as image:
        volume = map_volume(image)
        inode = int(volume.names.set_index("path").loc["/swap", "inode"])
        first = int(volume.rows(inode).physical[0]) // 1024
    # Everything free but the freed blocks of the file is made used for a moment.
    after = deleted(path, f"setb 1 {first - 1}", *REMOVED)
    with open_image(after) as image:
        free = np.flatnonzero(~map_volume(image).in_use.to_bool())
    others = [int(b) for b in free if not first <= b < first + 49]
    ext.debugfs(after, *(f"setb {b}" for b in others), f"write {payload} new")
    ext.debugfs(after, *(f"freeb {b}" for b in others))
    _, later, result = two(path, after, RULES)
    inode = int(later.names.set_index("path").loc["/new", "inode"])
    assert first <= later.rows(inode).physical[0] // 1024 < first + 49
    assert result.subtracted["length"].sum() == 5 * 1024
    assert set(result.subtracted["owner"]) == {"/new"}
    assert set(result.subtracted["path"]) == {"/swap"}
    assert not (result.mask & later.in_use).any()


@ext.needs_e2fsprogs
def test_two_volumes_are_refused(tmp_path: Path) -> None:
    one = ext.make(tmp_path / "a.img", 4 * ext.MIB, "-t", "ext4")
    other = ext.make(tmp_path / "b.img", 4 * ext.MIB, "-t", "ext4")
    with pytest.raises(InputError, match="differ in uuid"):
        two(one, other, [])


@pytest.mark.root
@ext.needs_e2fsprogs
def test_preallocation_and_attributes_go_and_shared_ones_stay(tmp_path: Path) -> None:
    path = ext.make(tmp_path / "a.img", 32 * ext.MIB, "-t", "ext4", "-b", "4096", "-I", "128")
    with ext.mounted(path) as root:
        (root / "cache").mkdir()
        ext.preallocate(root / "cache")
        with (root / "cache" / "holes").open("wb") as file:
            for at in range(600):
                file.seek(at * 8192)
                file.write(b"x" * 4096)
        os.setxattr(root / "cache" / "preallocated", "user.own", b"own" * 100)
        for name in ("cache/past-end", "kept"):
            (root / name).touch()
            os.setxattr(root / name, "user.shared", b"same" * 100)
    after = tmp_path / "after.img"
    shutil.copyfile(path, after)
    with ext.mounted(after) as root:
        shutil.rmtree(root / "cache")
    before, _, result = two(path, after, ["/cache"])
    kinds = result.extents.groupby(["path", "kind"], observed=True)["length"].sum()
    assert kinds["/cache/preallocated", "meta"] == 4096
    assert kinds["/cache/preallocated", "unwritten"] > 200_000
    assert kinds["/cache/past-end", "unwritten"] > 1_000_000
    assert kinds["/cache/holes", "meta"] >= 8192  # nodes of its extent tree
    # All of it was allocated before and is free now, but for the attribute block of two files.
    used, still = (ext.dumped_in_use(image) for image in (path, after))
    folders = before.extents[before.extents["inode"].isin(_folders(before))]["physical"] // 4096
    freed = set(np.flatnonzero(used & ~still).tolist()) - set(folders.tolist())
    assert set(result.mask.indices().tolist()) == freed
    assert result.subtracted["length"].tolist() == [4096]
    assert result.subtracted["owner"].tolist() == ["/kept"]


def _folders(volume: VolumeMap) -> list[int]:
    names = volume.names
    return names.loc[names["type"] == "directory", "inode"].tolist()
