"""Traces of excluded files are found and placed, and overwritten where they may be."""

from __future__ import annotations

import json
import os
from pathlib import Path

import factory
import leak_images
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from judged import failing, judged, verdict

from cbtlab import audit
from cbtlab.chain import open_chain, verify
from cbtlab.checks import Verdict
from cbtlab.leftovers import Patches, Scrubbed

EXAMPLES = int(os.environ.get("CBTLAB_EXAMPLES", "4"))
STORED_ALWAYS = {"journal", "slack", "directory slack", "attribute block", "inode table"}
NEVER_OVERWRITTEN = {"outside the file system", "free space"}

pytestmark = pytest.mark.skipif(bool(factory.missing_tools()), reason="needs e2fsprogs")


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> leak_images.Planted:
    return leak_images.planted(tmp_path_factory.mktemp("planted"))


def placed(check: Verdict) -> dict[int, tuple[str, str]]:
    """The class and owner of each find of content, by its offset."""
    return {
        entry["offset"]: (entry["class"], entry["owner"])
        for entry in check.evidence
        if "offset" in entry and entry["note"].startswith("content of")
    }


def near(found: dict[int, tuple[str, str]], at: int) -> set[tuple[str, str]]:
    """What was found in the 512 bytes that were planted at a place."""
    return {where for offset, where in found.items() if at <= offset < at + 512}


@pytest.mark.parametrize("policy", ["allocated", "union"])
def test_each_trace_is_found_and_placed(
    planted: leak_images.Planted, tmp_path: Path, policy: str
) -> None:
    """And scrubbed away, where that may be: the checker stays content, kept files stay."""
    case = planted.recording.case(tmp_path / "case")
    plain = audit.run(case, tmp_path / "plain", policy)
    found = placed(verdict(plain, 0, "excluded"))
    for at, (kind, owner) in planted.traces.items():
        hidden = policy == "allocated" and kind in ("unwritten extent", "free space")
        there = {(kind, owner)}
        if kind == "inode table":
            there.add((kind, "<free inode 201>"))  # an inode has 256 bytes
        assert near(found, at) <= there
        if kind == "free space" and not hidden:
            assert (kind, owner) in found.values()  # one of many: not each is shown
        else:
            assert bool(near(found, at)) != hidden, kind
    codes = [where for where in found.values() if where[0] == "inode table"]
    assert len(codes) > 2  # and the symlink's target, which debugfs leaves in its inode
    clean = audit.run(case, tmp_path / "clean", policy, scrub=True)
    left = {kind for kind, _ in placed(verdict(clean, 0, "excluded")).values()}
    assert left <= NEVER_OVERWRITTEN and "outside the file system" in left
    assert failing(clean) == ({0: {"excluded"}} if policy == "allocated" else {})
    assert verdict(clean, 0, "restorable").holds and verdict(clean, 0, "kept").holds


def test_names_are_a_report_of_their_own(planted: leak_images.Planted, tmp_path: Path) -> None:
    case = planted.recording.case(tmp_path / "case")
    found = audit.run(case, tmp_path / "plain").document()["intervals"][0]["leaks"]
    assert {entry["path"] for entry in found["names"]} == {
        leak_images.SECRET,
        leak_images.SMALL,
        "/cache/of-notes-and-more.tmp",
    }
    assert {entry["class"] for entry in found["names"]} == {"name"}
    assert {(entry["owner"], entry["note"]) for entry in found["names"]} == {
        ("/cache", "its name, in: directory slack")
    }
    names = [leaf.rpartition("/")[2].encode() for leaf in (leak_images.SECRET, leak_images.SMALL)]
    stored = planted.recording.backups[0].stored
    for entry in found["names"]:
        data = stored.read(entry["offset"], entry["length"])
        assert data in names or data == b"of-notes-and-more.tmp"
    scrubbed = audit.run(case, tmp_path / "clean", scrub=True).document()["intervals"][0]
    assert scrubbed["leaks"]["names"] == [] and scrubbed["leaks"]["names_total"] == 0


def test_the_manifest_tells_what_was_overwritten(
    planted: leak_images.Planted, tmp_path: Path
) -> None:
    """Its list, applied to S_0*, gives the restored volume; the chain verifies as ever."""
    case = planted.recording.case(tmp_path / "case")
    found = audit.run(case, tmp_path / "out", "union", scrub=True)
    chain = open_chain(tmp_path / "out" / "chain")
    assert verify(chain.path) == []
    pieces = chain.link(0).scrubbed
    assert {piece["class"] for piece in pieces} > STORED_ALWAYS
    listed = found.document()["intervals"][0]["scrubbed"]
    assert listed["total"] == len(pieces)
    assert listed["bytes"] == sum(piece["length"] for piece in pieces)
    with case.interval(0).stored() as stored, chain.restored(0) as restored:
        view = Scrubbed(stored, Patches.read(pieces))
        assert view.read(0, view.size) == restored.read(0, restored.size)
        assert stored.read(0, stored.size) != restored.read(0, restored.size)
    document = json.loads((chain.path / "chain.json").read_text())
    assert document["links"][0]["scrubbed"] == [dict(piece) for piece in pieces]


def test_without_a_scrub_nothing_is_overwritten(
    planted: leak_images.Planted, tmp_path: Path
) -> None:
    case = planted.recording.case(tmp_path / "case")
    audit.run(case, tmp_path / "out", "union")
    document = json.loads((tmp_path / "out/chain/chain.json").read_text())
    assert "scrubbed" not in document["links"][0]
    with case.interval(0).stored() as stored:
        restored = open_chain(tmp_path / "out/chain").restored(0)
        assert stored.read(0, stored.size) == restored.read(0, restored.size)


def test_a_wrong_list_is_not_complete(
    planted: leak_images.Planted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A piece that the list does not name was overwritten: check 1 finds it."""
    documents = Patches.documents
    monkeypatch.setattr(Patches, "documents", lambda self: documents(self)[1:])
    found = audit.run(planted.recording.case(tmp_path / "case"), tmp_path / "out", scrub=True)
    assert "complete" in failing(found)[0]


def test_a_chain_of_scrubbed_links_holds(office: factory.Recording, tmp_path: Path) -> None:
    """Every restore point, and the names of the surplus add up."""
    found = audit.run(office.case(tmp_path / "case"), tmp_path / "out", scrub=True)
    assert found.holds, found.text()
    surplus = [entry["surplus"] for entry in found.document()["intervals"] if entry["surplus"]]
    assert sum(names["scrubbed"] for names in surplus) > 0
    assert not any(
        entry["leaks"]["names_total"] for entry in found.document()["intervals"] if "leaks" in entry
    )


def test_a_file_that_was_cut_is_stored_again_for_its_slack(tmp_path: Path) -> None:
    """Its block was not written: without the added unit the old bytes would lie in the base."""
    recording = leak_images.make(tmp_path)
    recording.volume.debugfs("set_inode_field /docs/database.db size 29900")
    recording.backup(
        ["/cache/"], [leak_images.SECRET, leak_images.SMALL, "/cache/of-notes-and-more.tmp"]
    )
    recording.trace()
    # the surplus of the trace may hit by chance what must not be marked
    block = recording.volume.blocks("/docs/database.db")[29] * 1024
    marked = recording.backups[1].bitmaps["physical"]
    assert block // 4096 not in marked
    found = audit.run(recording.case(tmp_path / "case"), tmp_path / "out", scrub=True)
    assert failing(found) == {}
    pieces = open_chain(tmp_path / "out/chain").link(1).scrubbed
    assert ("slack", "/docs/database.db") in {(p["class"], p["owner"]) for p in pieces}
    assert block // 4096 in found.backups[1].plan.copied  # type: ignore[union-attr]


KEPT = factory.text(3, 30_000)


@st.composite
def contents(draw: st.DrawFn) -> bytes:
    """Content that says nothing: one pattern over and over, or what a kept file has too."""
    if draw(st.booleans()):
        pattern = draw(st.binary(min_size=1, max_size=64))
        return (pattern * 4096)[: draw(st.integers(100, 4096))]
    begin = draw(st.integers(0, 20_000))
    return KEPT[begin : begin + draw(st.integers(100, 8000))]


@settings(max_examples=EXAMPLES)
@given(contents(), st.sampled_from(["<8>", "/docs/report.txt"]), st.integers(0, 500))
def test_what_is_not_specific_is_no_leak(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, where: str, skip: int
) -> None:
    folder = tmp_path_factory.mktemp("common")
    tree = folder / "tree"
    for name, data in (
        ("cache/x", content), ("docs/report.txt", b"short\n"), ("docs/database.db", KEPT)
    ):  # fmt: skip
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_bytes(data)
    volume = factory.Volume.make(folder / "volume.img", tree, 8 << 20)
    recording = factory.Recording(folder, volume, 4096)
    backup = recording.backup(["/cache/"], ["/cache/x"])
    at = volume.blocks(where)[-1] * 1024 + 100 + skip
    backup.stored.poke(at, content[: 1024 - 100 - skip])
    recording.trace()
    found = judged(recording, folder)
    check = verdict(found, 0, "excluded")
    assert check.holds and not check.evidence, check


@settings(max_examples=EXAMPLES)
@given(st.integers(0, 1 << 32))
def test_a_random_workload_leaks_nothing(
    tmp_path_factory: pytest.TempPathFactory, seed: int
) -> None:
    """Nothing is planted, so nothing is told; and a scrub on the way changes no verdict."""
    rng = np.random.default_rng(seed)
    folder = tmp_path_factory.mktemp("random")
    tree = folder / "tree"
    names = [f"{place}/{n}-{'x' * n}.bin" for place in ("cache", "docs") for n in range(6)]
    for n, name in enumerate(names):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_bytes(factory.text(n, int(rng.integers(1, 9000))))
    volume = factory.Volume.make(folder / "volume.img", tree, 8 << 20)
    recording = factory.Recording(folder, volume, 4096)
    there = [f"/{name}" for name in names]
    for k in range(3):
        recording.backup(["/cache/"], [name for name in there if name.startswith("/cache/")])
        for _ in range(4):
            name = str(rng.choice(there))
            match int(rng.integers(3)):
                case 0:
                    volume.remove(name)
                    there.remove(name)
                case 1:
                    fresh = f"/docs/new-{k}-{len(there)}-{int(rng.integers(1000))}"
                    volume.write(fresh, factory.text(int(rng.integers(1 << 30)), 5000))
                    there.append(fresh)
                case 2:
                    moved = f"/cache/moved-{int(rng.integers(1 << 30))}"
                    if name.startswith("/docs/"):
                        volume.move(name, moved)
                        there[there.index(name)] = moved
    recording.trace()
    for scrub in (False, True):
        found = audit.run(recording.case(folder / f"case{scrub}"), folder / f"{scrub}", scrub=scrub)
        assert found.holds, found.text()
        for backup in found.backups:
            notes = [entry["note"] for entry in verdict(found, backup.k, "excluded").evidence]
            assert all("kept until then" in note for note in notes)
