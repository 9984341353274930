"""Every kind of damage to a chain is told by the name of the file that has it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chains import history, rewrite

from cbtlab.chain import open_chain, restore, verify
from cbtlab.errors import InputError


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("chains") / "chain"
    history(folder)
    return folder


@pytest.fixture
def chain(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "chain"))


def told(folder: Path) -> list[str]:
    return [f"{fault.piece}: {fault.fault}" for fault in verify(folder)]


def flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def exchange(folder: Path, one: str, two: str) -> None:
    (folder / one).rename(folder / "aside")
    (folder / two).rename(folder / one)
    (folder / "aside").rename(folder / two)


def cannot_restore(folder: Path, k: int, name: str) -> None:
    """No restore of ``k``: one line that names the file, and no output."""
    target = folder.parent / "out.raw"
    with pytest.raises(InputError) as caught:
        restore(open_chain(folder), k, target)
    assert name in str(caught.value) and "\n" not in str(caught.value)
    assert not target.exists()


def test_a_chain_as_written_holds(chain: Path) -> None:
    assert verify(chain) == []


def test_a_missing_link(chain: Path) -> None:
    (chain / "0002.qcow2").unlink()
    assert told(chain) == ["0002.qcow2: is missing"]
    cannot_restore(chain, 3, "0002.qcow2: is missing")


def test_exchanged_links(chain: Path) -> None:
    exchange(chain, "0001.qcow2", "0002.qcow2")
    assert told(chain) == [
        "0001.qcow2: is exchanged: it is link 2 (0002.qcow2), not link 1",
        "0002.qcow2: is exchanged: it is link 1 (0001.qcow2), not link 2",
    ]
    cannot_restore(chain, 3, "0001.qcow2: is exchanged")


def test_one_link_over_another(chain: Path) -> None:
    shutil.copy(chain / "0003.qcow2", chain / "0000.qcow2")
    assert told(chain) == ["0000.qcow2: is exchanged: it is link 3 (0003.qcow2), not link 0"]


@pytest.mark.parametrize("length", [0, 3, 100, 5000, -1])
def test_a_cut_link(chain: Path, length: int) -> None:
    path = chain / "0001.qcow2"
    size = path.stat().st_size
    os.truncate(path, length % size if length >= 0 else size - 1)
    assert told(chain) == [f"0001.qcow2: is cut: {path.stat().st_size} bytes of {size}"]
    cannot_restore(chain, 3, "0001.qcow2: is cut")


def test_a_link_that_grew(chain: Path) -> None:
    with (chain / "0001.qcow2").open("ab") as file:
        file.write(b"\0")
    assert "0001.qcow2: is too long" in told(chain)[0]


@pytest.mark.parametrize("name", ["0000.qcow2", "0002.qcow2", "0003.qcow2"])
@pytest.mark.parametrize("place", [0, 30, 4096, -1, -20000])
def test_one_flipped_bit(chain: Path, name: str, place: int) -> None:
    flip(chain / name, place)
    assert told(chain) == [f"{name}: was altered: its SHA-256 does not fit"]
    cannot_restore(chain, 3, f"{name}: was altered")


@pytest.mark.parametrize("mask", ["held", "physical", "snapshot"])
def test_altered_masks(chain: Path, mask: str) -> None:
    name = f"0002.{mask}.bits"
    flip(chain / name, 0)
    assert told(chain) == [f"{name}: was altered: its SHA-256 does not fit"]
    os.truncate(chain / name, 1)
    assert f"{name}: is cut: 1 bytes of" in told(chain)[0]
    (chain / name).unlink()
    assert told(chain) == [f"{name}: is missing"]
    with pytest.raises(InputError, match=name):
        getattr(open_chain(chain), mask)(2)


def test_a_link_of_another_chain(chain: Path, tmp_path: Path) -> None:
    history(tmp_path / "other", seed=2)
    shutil.copy(tmp_path / "other" / "0002.qcow2", chain / "0002.qcow2")
    assert told(chain) == ["0002.qcow2: is a link on another base: it was made on other bytes"]
    history(tmp_path / "third", seed=2, generation="later")
    shutil.copy(tmp_path / "third" / "0002.qcow2", chain / "0002.qcow2")
    assert told(chain) == ["0002.qcow2: is of generation 'later', not 'first'"]


def test_a_link_rewritten_by_qemu_is_told(chain: Path) -> None:
    """The same content in other bytes is not what was written."""
    if not shutil.which("qemu-img"):
        pytest.skip("qemu-img is not installed")
    import subprocess

    subprocess.run(
        ["qemu-img", "convert", "-O", "qcow2", chain / "0001.qcow2", chain / "0003.qcow2"],
        check=True,
    )
    assert len(told(chain)) == 1 and "0003.qcow2: " in told(chain)[0]


@pytest.mark.parametrize("kind", ["folder", "pipe", "link"])
def test_what_is_no_regular_file(chain: Path, kind: str) -> None:
    path = chain / "0001.qcow2"
    path.rename(chain.parent / "elsewhere")
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to(chain.parent / "elsewhere")
    assert len(told(chain)) == 1 and told(chain)[0].startswith("0001.qcow2: ")
    cannot_restore(chain, 1, "0001.qcow2")


# The manifest -----------------------------------------------------------------------------------


def test_no_chain_at_all(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing", tmp_path / ("x" * 300)):
        with pytest.raises(InputError):
            verify(path)
        with pytest.raises(InputError):
            open_chain(path)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", '{"format": "cbtlab-chain"', "\x00", "[" * 100000, '"x"']
)
def test_a_manifest_that_is_no_json(chain: Path, text: str) -> None:
    (chain / "chain.json").write_text(text)
    faults = verify(chain)
    assert [fault.piece for fault in faults] == ["chain.json"]
    with pytest.raises(InputError):
        open_chain(chain)


def test_another_version_is_not_judged(chain: Path) -> None:
    rewrite(chain, lambda document: document.update(version=2))
    with pytest.raises(InputError, match="version 2"):
        verify(chain)


def test_an_altered_manifest_and_the_links_are_both_told(chain: Path) -> None:
    path = chain / "chain.json"
    path.write_text(path.read_text().replace('"reason": "the first', '"reason": "The first'))
    exchange(chain, "0001.qcow2", "0002.qcow2")
    found = told(chain)
    assert found[0] == "chain.json: was altered: its digest does not fit"
    assert [line.split(":")[0] for line in found[1:]] == ["0001.qcow2", "0002.qcow2"]
    with pytest.raises(InputError, match=r"chain\.json: was altered"):
        open_chain(chain)


def link(number: int, **values: Any) -> Callable[[dict[str, Any]], None]:
    return lambda document: document["links"][number].update(values)


def top(**values: Any) -> Callable[[dict[str, Any]], None]:
    return lambda document: document.update(values)


@pytest.mark.parametrize(
    ("change", "piece", "fault"),
    [
        (link(2, base_sha256="0" * 64), "0002.qcow2", "by another digest"),
        (link(2, generation="second"), "0002.qcow2", "of generation 'second', and its base"),
        (link(2, volume_size=4096), "0002.qcow2", "has volume size 4096, and its chain"),
        (link(2, granularity=512), "0002.qcow2", "has granularity 512, and its chain"),
        (link(2, base=0), "0002.qcow2", "base 0, which is not the link before"),
        (link(2, sha256="0" * 64), "0002.qcow2", "altered"),
        (link(2, kind="full", base=None, base_sha256=None), "0002.qcow2", "backing file"),
        (link(0, generation="other"), "0000.qcow2", "says that it is"),
        (top(volume_size=1 << 20), "0000.qcow2", "volume"),
        (top(cluster=8192), "0000.qcow2", "clusters of 4096"),
        (top(granularity=512), "0000.qcow2", "has granularity 4096"),
    ],
)
def test_a_manifest_that_contradicts_its_links(
    chain: Path, change: Callable[[dict[str, Any]], None], piece: str, fault: str
) -> None:
    """Even with a digest that fits."""
    rewrite(chain, change)
    assert any(found.piece == piece and fault in found.fault for found in verify(chain))
    cannot_restore(chain, 3, "qcow2")


def test_a_link_taken_out_of_the_manifest(chain: Path) -> None:
    rewrite(chain, lambda document: document["links"].pop(1))
    assert "0002.qcow2: has the base 1, which is not the link before it" in told(chain)
    cannot_restore(chain, 3, "backup 1: is no restore point")


@pytest.mark.parametrize(
    "change",
    [
        top(foreign=1), top(volume_size=-1), top(volume_size=1 << 80), top(volume_size=1000),
        top(volume_size="big"), top(volume_size=None), top(volume_size=True), top(volume_size=1e9),
        top(granularity=0), top(granularity=3000), top(cluster=1 << 40), top(cluster=0),
        top(policy="none"), top(policy=[]), top(generation=7), top(generation="\n"),
        top(links=None), top(links={}), top(links=[1]), top(links=[{}]), top(links=[[]]),
        link(1, k=-1), link(1, k=10**30), link(1, k="1"), link(1, k=0), link(1, k=None),
        link(1, file="/etc/passwd"), link(1, file="../0001.qcow2"), link(1, file="0002.qcow2"),
        link(1, file=None), link(1, kind="other"), link(1, base=1), link(1, base=-1),
        link(1, base=None), link(1, base_sha256=None), link(1, base_sha256="x"),
        link(1, bytes=-1), link(1, bytes=1 << 70), link(1, copied=-5), link(1, zeroed="0"),
        link(1, sha256=""), link(1, content_sha256=None), link(1, held=None), link(1, held=[]),
        link(1, held={"file": "0001.held.bits"}), link(1, foreign=None), link(1, reason=5),
        link(1, physical={"file": "/dev/zero", "sha256": "0" * 64, "block_size": 512}),
        link(1, physical={"file": "0001.physical.bits", "sha256": "0" * 64, "block_size": 1000}),
        link(0, base=0, kind="incremental"), link(0, base=5),
        lambda document: document.pop("links"),
        lambda document: document["links"].reverse(),
        lambda document: document["links"][1].pop("reason"),
        lambda document: document["links"].append(document["links"][0]),
    ],
)  # fmt: skip
def test_a_manifest_that_cannot_be(chain: Path, change: Callable[[dict[str, Any]], None]) -> None:
    rewrite(chain, change)
    assert [fault.piece for fault in verify(chain)] == ["chain.json"]
    with pytest.raises(InputError, match=r"chain\.json"):
        open_chain(chain)


# Fuzz -------------------------------------------------------------------------------------------


def test_any_flipped_byte_anywhere_is_a_fault(chain: Path) -> None:
    rng = np.random.default_rng(3)
    for path in sorted(chain.iterdir()):
        good = path.read_bytes()
        for place in {0, len(good) - 1, *rng.integers(0, len(good), 12).tolist()}:
            broken = bytearray(good)
            broken[place] ^= 1 << int(rng.integers(8))
            path.write_bytes(broken)
            try:
                faults = verify(chain)
            except InputError:
                assert path.name == "chain.json"
                continue
            assert path.name in [fault.piece for fault in faults]
        path.write_bytes(good)
    assert verify(chain) == []


def test_any_cut_anywhere_is_a_fault(chain: Path) -> None:
    rng = np.random.default_rng(4)
    for path in sorted(chain.iterdir()):
        good = path.read_bytes()
        for length in {0, *rng.integers(0, len(good) - 1, 6).tolist()}:
            path.write_bytes(good[:length])
            assert path.name in [fault.piece for fault in verify(chain)]
        path.write_bytes(good)


def test_any_value_anywhere_in_the_manifest_is_bounds_checked(chain: Path) -> None:
    """A value put in the place of another, under a digest that fits: judged or refused."""
    rng = np.random.default_rng(5)
    values = [None, True, -1, 0, 1, 7, 1 << 40, 1 << 63, 10**40, 0.5, 1e300, "", "x", "\ud800",
              "0" * 64, "../..", "/dev/zero", [], {}, [[]], {"k": 1}]  # fmt: skip
    good = (chain / "chain.json").read_bytes()
    for _ in range(400):
        path = chain / "chain.json"
        path.write_bytes(good)

        def change(document: dict[str, Any]) -> None:
            place: Any = document
            while True:
                keys = list(range(len(place))) if isinstance(place, list) else list(place)
                key = keys[int(rng.integers(len(keys)))]
                inner = place[key]
                if isinstance(inner, dict | list) and inner and rng.random() < 0.9:
                    place = inner
                    continue
                place[key] = values[int(rng.integers(len(values)))]
                return

        rewrite(chain, change)
        try:
            verify(chain)
            with open_chain(chain).restored(3) as image:
                image.read(0, min(image.size, 1 << 20))
        except InputError as error:
            assert "\n" not in str(error)
