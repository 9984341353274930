"""How cbtctl takes its words; needs no module, which it opens after it has understood them."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from cbtlab.lab.kernels import module_sources

COMMANDS = (
    *("attach", "detach", "seal", "switch", "clear", "bits", "events", "ring", "status"),
    *("stop", "start"),
)


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not shutil.which("gcc") or not shutil.which("make"):
        pytest.skip("needs gcc and make")
    folder = tmp_path_factory.mktemp("cbtctl")
    words = ["make", "-C", str(module_sources()), f"BUILD={folder}", "cbtctl"]
    done = subprocess.run(words, capture_output=True, text=True)
    if "cannot find -lc" in done.stderr:
        pytest.skip("needs the static C library (Debian: libc6-dev)")
    assert done.returncode == 0, done.stderr
    return folder / "cbtctl"


def said(program: Path, *words: str) -> tuple[int, str, str]:
    done = subprocess.run([program, *words], capture_output=True, text=True, cwd=program.parent)
    return done.returncode, done.stdout, done.stderr


def test_help_is_an_answer(program: Path) -> None:
    for words in (("--help",), ("help",)):
        status, out, err = said(program, *words)
        assert (status, err) == (0, "")
        assert re.findall(r"^cbtctl (\w+)", out, re.MULTILINE) == list(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_explains_itself(program: Path, command: str) -> None:
    for words in ((command, "--help"), (command, "1", "--help")):
        status, out, err = said(program, *words)
        assert (status, err) == (0, "")
        assert out.startswith(f"cbtctl {command} ")
        assert re.findall(r"^cbtctl", out, re.MULTILINE) == ["cbtctl"]


def test_version_is_that_of_the_package(program: Path) -> None:
    packaged = re.search(r'PACKAGE_VERSION="(.*)"', (module_sources() / "dkms.conf").read_text())
    assert packaged
    status, out, _ = said(program, "--version")
    assert status == 0
    assert out.startswith(f"cbtctl {packaged[1]}, ")


@pytest.mark.parametrize(
    ("words", "fault"),
    [
        ((), "which command?"),
        (("frobnicate",), "frobnicate: is no command"),
        (("bits", "1"), "bits: too few words"),
        (("stop", "/a", "1", "2"), "stop: too many words"),
        (("switch", "--runing", "1"), "--runing: is not a number"),
        (("switch", "--running", "--wait", "9", "1"), "--wait: waits for a suspend"),
        (("events", "--follow"), "--follow: is no file name"),
        (("events", "f", "--folow"), "--folow: is no option"),
        (("bits", "1", "active", "changed", "-"), "-: is no file name"),
        (("bits", "1", "actve", "changed", "f"), "actve: the bitmap is"),
        (("attach", "/dev/null", "physical", "4K"), "4K: is not a number"),
        (("attach", "/dev/null", "physical", "4096", "--log"), "--log: needs a value"),
    ],
)
def test_what_is_not_understood_is_named(program: Path, words: tuple[str, ...], fault: str) -> None:
    before = sorted(program.parent.iterdir())
    status, out, err = said(program, *words)
    assert (status, out) == (2, "")
    assert err.splitlines()[-1].startswith(f"cbtctl: {fault}")
    assert sorted(program.parent.iterdir()) == before, "a file was made"


def test_a_refusal_is_one_line(program: Path) -> None:
    if Path("/dev/cbt").exists():
        pytest.skip("the module is inserted here")
    for words in (("status",), ("stop", "/tmp"), ("events", "f"), ("switch", "--wait", "9", "1")):
        status, out, err = said(program, *words)
        assert (status, out, err.count("\n")) == (1, "", 1)
        assert "insert cbt.ko" in err
