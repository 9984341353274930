"""Creating, appending, reading and restoring chains, against plain bytes and QEMU."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import pytest
from chains import History, Memory, history
from hypothesis import given, settings
from hypothesis import strategies as st

from cbtlab.bitmap import Bitmap
from cbtlab.chain import Chain, chain_document, chain_text, open_chain, restore, verify
from cbtlab.errors import InputError
from cbtlab.plan import plan

needs_qemu = pytest.mark.skipif(not shutil.which("qemu-img"), reason="qemu-img is not installed")


def qemu(*arguments: object) -> str:
    command = ["qemu-img", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_every_restore_point_is_the_snapshot_where_held_and_zero_elsewhere(
    data: st.DataObject,
) -> None:
    """The theorem: any granularity, cluster, mask, any base thrown away, fulls in between."""
    with tempfile.TemporaryDirectory() as folder:
        made = History.begin(
            Path(folder, "chain"),
            size=data.draw(st.integers(1, 80)) * 512,
            granularity=data.draw(st.sampled_from([512, 1024, 4096, 16384])),
            cluster=data.draw(st.sampled_from([None, 512, 1024, 4096, 16384])),
            block=data.draw(st.sampled_from([512, 1024, 4096, 32768])),
            seed=data.draw(st.integers(0, 99)),
        )
        k = 0
        for _ in range(data.draw(st.integers(1, 5))):
            share = data.draw(st.sampled_from([0.0, 0.5, 1.0]))
            made.back_up(k, full=data.draw(st.booleans()), share=share)
            k += data.draw(st.integers(1, 3))
        assert verify(made.chain.path) == []
        chain = open_chain(made.chain.path)
        assert [link.k for link in chain.links] == list(made.expected)
        for number, expected in made.expected.items():
            with chain.restored(number) as image:
                assert image.read(0, image.size) == expected
            digest = hashlib.sha256(expected).hexdigest()
            assert chain.link(number).content_sha256 == digest


def test_the_partial_block_at_the_end_is_masked_too(tmp_path: Path) -> None:
    """Block 8 is held and block 9, of 512 bytes, is not; both lie in the last stored unit."""
    size = 8192 + 1024 + 512
    chain = Chain.create(tmp_path / "chain", size, 4096)
    data = np.full(size, 7, np.uint8)
    for k, blocks in enumerate(([8], [9], [0, 9])):
        held = Bitmap.from_indices(blocks, size, 1024)
        everything = Bitmap.full(size, 4096)
        chain.append(plan(k, everything, held, None, None, 4096), Memory(data))
        expected = np.where(np.repeat(held.to_bool(), 1024)[:size], 7, 0).astype(np.uint8)
        with chain.restored(k) as image:
            assert image.read(0, size) == expected.tobytes()


@needs_qemu
@pytest.mark.parametrize(("granularity", "cluster"), [(4096, None), (512, 4096), (65536, 4096)])
def test_qemu_agrees_on_every_restore_point(
    tmp_path: Path, granularity: int, cluster: int | None
) -> None:
    made = history(
        tmp_path / "chain", size=(3 << 20) + 512, granularity=granularity, cluster=cluster
    )
    made.back_up(7, full=True)
    made.back_up(8)
    chain = open_chain(tmp_path / "chain")
    for link in chain.links:
        path = tmp_path / "chain" / link.file
        found = json.loads(qemu("check", "--output=json", path))
        assert found["check-errors"] == 0
        assert not found.get("corruptions") and not found.get("leaks")
        raw = tmp_path / "restored.raw"
        restore(chain, link.k, raw, force=True)
        assert raw.read_bytes() == made.expected[link.k]
        assert "identical" in qemu("compare", "-f", "raw", "-F", "qcow2", raw, path)
        backing = json.loads(qemu("info", "--output=json", path)).get("backing-filename")
        assert backing == (None if link.base is None else f"{link.base:04d}.qcow2")


@needs_qemu
def test_stored_and_zeroed_units_are_what_qemu_maps(tmp_path: Path) -> None:
    made = history(tmp_path / "chain", size=1 << 20)
    for link in made.chain.links:
        spans = json.loads(qemu("map", "--output=json", tmp_path / "chain" / link.file))
        own = [span for span in spans if span["depth"] == 0]
        stored = sum(span["length"] for span in own if span["data"])
        zeroed = sum(span["length"] for span in own if span["zero"] and not span["data"])
        assert stored == link.copied * 4096
        if link.base is not None:
            assert zeroed == link.zeroed * 4096
    assert any(link.zeroed for link in made.chain.links)


def test_the_masks_are_kept_with_their_link(tmp_path: Path) -> None:
    made = history(tmp_path / "chain")
    chain = open_chain(tmp_path / "chain")
    assert chain.held(3) == made.held
    assert chain.physical(3) == made.changed
    assert chain.snapshot(3) == made.changed
    only = made.chain.append(
        plan(4, Bitmap.full(96 << 10, 4096), Bitmap.full(96 << 10, 512), None, None, 4096),
        Memory(made.data),
    )
    assert only.physical is only.snapshot is None
    assert made.chain.physical(4) is None
    assert made.chain.held(4).granularity == 512


def test_a_read_error_leaves_the_old_chain(tmp_path: Path) -> None:
    class Torn(Memory):
        def load(self, offset: int, length: int) -> np.ndarray:
            raise InputError("snapshot", "is torn")

    made = history(tmp_path / "chain", 2)
    before = sorted(path.name for path in made.chain.path.iterdir())
    everything = Bitmap.full(96 << 10, 4096)
    with pytest.raises(InputError, match="is torn"):
        made.chain.append(plan(2, everything, everything, None, None, 4096), Torn(made.data))
    assert verify(made.chain.path) == []
    left = open_chain(made.chain.path).strays()
    assert set(left) == {p.name for p in made.chain.path.iterdir()} - set(before)
    made.back_up(3)
    assert made.chain.strays() == []
    assert not list(made.chain.path.glob("0002.*"))


def refused(made: History, fault: str, k: int = 4, base: int | None = 3, **options: object) -> None:
    size = made.chain.volume_size
    everything = Bitmap.full(size, 4096)
    held = None if base is None else everything
    with pytest.raises(InputError, match=fault):
        made.chain.append(
            plan(k, everything, everything, base, held, 4096),
            Memory(made.data),
            **options,  # type: ignore[arg-type]
        )
    assert [link.k for link in open_chain(made.chain.path).links] == [0, 1, 2, 3]


def test_backups_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    made = history(tmp_path / "chain")
    refused(made, "does not come after", k=3, base=2)
    refused(made, "not the last link", base=2)
    refused(made, "generation 'second', its base of 'first'", generation="second")
    refused(made, "the volume is", physical=Bitmap(4096, 4096))
    size = made.chain.volume_size
    everything = Bitmap.full(size, 8192)
    with pytest.raises(InputError, match="the chain is in 4096"):
        made.chain.append(plan(4, everything, everything, None, None, 8192), Memory(made.data))
    with pytest.raises(InputError, match="has 512 bytes"):
        made.chain.append(
            plan(4, Bitmap.full(size, 4096), everything, None, None, 4096),
            Memory(made.data[:512]),
        )
    made.back_up(4, full=True, generation="second")
    assert made.back_up(5).generation == "second"
    assert verify(made.chain.path) == []


def test_nothing_is_appended_to_a_damaged_base(tmp_path: Path) -> None:
    made = history(tmp_path / "chain")
    path = tmp_path / "chain" / "0001.qcow2"
    data = bytearray(path.read_bytes())
    data[9000] ^= 1
    path.write_bytes(data)
    refused(made, "altered")


def test_another_writer_is_kept_out(tmp_path: Path) -> None:
    import fcntl

    made = history(tmp_path / "chain")
    fd = os.open(tmp_path / "chain", os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_EX)
    refused(made, "written by another program")
    os.close(fd)
    other = open_chain(tmp_path / "chain")
    made.back_up(4)
    everything = Bitmap.full(96 << 10, 4096)
    with pytest.raises(InputError, match="open it again"):
        other.append(plan(4, everything, everything, None, None, 4096), Memory(made.data))


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        ({"volume_size": 0}, "volume size"),
        ({"volume_size": 1000}, "volume size"),
        ({"granularity": 3000}, "granularity"),
        ({"granularity": 2 << 20}, "granularity"),
        ({"cluster": 256}, "cluster"),
        ({"cluster": 4 << 20}, "cluster"),
        ({"policy": "some"}, "policy"),
        ({"generation": "x" * 65}, "generation"),
    ],
)
def test_a_chain_that_cannot_be_is_not_made(
    tmp_path: Path, options: dict[str, int], fault: str
) -> None:
    with pytest.raises(InputError, match=fault):
        Chain.create(tmp_path / "c", **{"volume_size": 8192, "granularity": 512} | options)  # type: ignore[arg-type]
    assert not (tmp_path / "c").exists()


def test_a_chain_is_not_made_over_something_else(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious")
    for path in (tmp_path, tmp_path / "file"):
        with pytest.raises(InputError, match="not an empty folder"):
            Chain.create(path, 8192, 512)


# Restore ----------------------------------------------------------------------------------------


def test_restore_writes_a_sparse_file_and_says_what(tmp_path: Path) -> None:
    made = History.begin(tmp_path / "chain", size=32 << 20)
    made.data[1 << 20 : 31 << 20] = 0
    size = made.chain.volume_size
    everything = Bitmap.full(size, 4096)
    made.chain.append(plan(0, everything, everything, None, None, 4096), Memory(made.data))
    document = restore(made.chain, 0, tmp_path / "out.raw")
    written = (tmp_path / "out.raw").read_bytes()
    assert written == made.data.tobytes()
    assert (tmp_path / "out.raw").stat().st_blocks * 512 < 4 << 20
    assert document["size"] == size and document["links"] == [0]
    assert document["sha256"] == hashlib.sha256(written).hexdigest()


def test_restore_replaces_only_when_forced(tmp_path: Path) -> None:
    made = history(tmp_path / "chain")
    target = tmp_path / "out.raw"
    target.write_text("precious")
    with pytest.raises(InputError, match="--force"):
        restore(made.chain, 1, target)
    assert target.read_text() == "precious"
    restore(made.chain, 1, target, force=True)
    assert target.read_bytes() == made.expected[1]


@pytest.mark.parametrize(
    "name", ["chain/0000.qcow2", "chain/new.raw", "link", "folder", "no/x", "x" * 300]
)
def test_restore_harms_nothing_else(tmp_path: Path, name: str) -> None:
    made = history(tmp_path / "chain")
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("chain/0000.qcow2")
    with pytest.raises(InputError):
        restore(made.chain, 1, tmp_path / name, force=True)
    assert verify(tmp_path / "chain") == []
    assert not list(tmp_path.glob(".*.part"))


def test_a_restore_point_that_is_not_there_is_told(tmp_path: Path) -> None:
    made = history(tmp_path / "chain")
    with pytest.raises(InputError, match="backup 9: is no restore point of the chain; it has 0, 1"):
        restore(made.chain, 9, tmp_path / "out.raw")


def test_only_the_links_that_are_needed_must_hold(tmp_path: Path) -> None:
    made = history(tmp_path / "chain")
    made.back_up(4, full=True)
    (tmp_path / "chain" / "0002.qcow2").unlink()
    chain = open_chain(tmp_path / "chain")
    for k in (0, 1, 4):
        restore(chain, k, tmp_path / f"{k}.raw")
        assert (tmp_path / f"{k}.raw").read_bytes() == made.expected[k]
    for k in (2, 3):
        with pytest.raises(InputError, match=r"0002\.qcow2: is missing"):
            restore(chain, k, tmp_path / f"{k}.raw")
        assert not (tmp_path / f"{k}.raw").exists()


def test_content_other_than_was_stored_is_not_restored(tmp_path: Path) -> None:
    from chains import rewrite

    made = history(tmp_path / "chain")
    rewrite(made.chain.path, lambda d: d["links"][1].update(content_sha256="0" * 64))
    with pytest.raises(InputError, match="another content"):
        restore(open_chain(made.chain.path), 1, tmp_path / "out.raw")
    assert not list(tmp_path.glob("*.raw")) and not list(tmp_path.glob(".*"))


# Shown ------------------------------------------------------------------------------------------


def test_the_document_and_its_lines(tmp_path: Path) -> None:
    made = history(tmp_path / "chain", 2)
    (tmp_path / "chain" / "0002.held.bits").write_bytes(b"x")
    document = chain_document(open_chain(tmp_path / "chain"))
    assert document["strays"] == ["0002.held.bits"]
    assert [link["k"] for link in document["links"]] == [0, 1]
    assert document["links"][1]["base_sha256"] == document["links"][0]["sha256"]
    assert document["links"][1]["copied"] == made.chain.links[1].copied
    assert json.loads(json.dumps(document)) == document
    lines = chain_text(document).splitlines()
    assert "policy allocated" in lines[0]
    assert lines[-1] == "left over by a broken append: 0002.held.bits"
    assert verify(tmp_path / "chain") == []


def test_a_chain_can_be_moved(tmp_path: Path) -> None:
    made = history(tmp_path / "chain")
    shutil.move(tmp_path / "chain", tmp_path / "elsewhere")
    assert verify(tmp_path / "elsewhere") == []
    with open_chain(tmp_path / "elsewhere").restored(3) as image:
        assert image.read(0, image.size) == made.expected[3]


@pytest.mark.parametrize("name", ["file/chain", "x" * 300])
def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        Chain.create(tmp_path / name, 8192, 512)


def test_a_chain_that_went_away_is_one_line(tmp_path: Path) -> None:
    made = history(tmp_path / "chain")
    shutil.rmtree(tmp_path / "chain")
    with pytest.raises(InputError, match="cannot be written: No such file"):
        made.chain.append(
            plan(9, *[Bitmap.full(96 << 10, 4096)] * 2, None, None, 4096), Memory(made.data)
        )
