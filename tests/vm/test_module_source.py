"""The module's source under the kernel's own tools: warnings, sparse, kernel-doc, DKMS."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from cbtlab.lab import kernels
from cbtlab.lab.kernels import VERSIONS, Kernel

pytestmark = pytest.mark.vm

MAX_LINES = 500
MODULE = kernels.module_sources()
CHECKPATCH = os.environ.get("CBTLAB_CHECKPATCH", "")


def need(program: str) -> None:
    if shutil.which(program) is None:
        pytest.skip(f"needs {program} (Debian: {program})")


def build(kernel: Kernel, sources: Path, *words: str) -> tuple[int, str]:
    """Build the module in ``sources``; return the status and all that was said."""
    command = ["make", "-C", str(sources), f"KDIR={kernel.headers}", "modules", *words]
    if shutil.which("gcc-12"):
        command.append("CC=gcc-12")
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    return done.returncode, done.stdout + done.stderr


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    shutil.copytree(MODULE, tmp_path / "module", ignore=shutil.ignore_patterns("*.o", "*.ko"))
    return tmp_path / "module"


@pytest.mark.parametrize("version", VERSIONS)
def test_no_warning_and_nothing_for_sparse(version: str, sources: Path) -> None:
    need("sparse")
    status, said = build(kernels.kernel(version), sources, "W=1", "C=2")
    assert status == 0, said
    assert "CHECK" in said, "sparse did not run"
    assert not re.findall(r".*(?:warning|error):.*", said)


def test_sparse_and_warnings_would_be_seen(sources: Path) -> None:
    """The test above can fail: a pointer to user memory read, and an unused variable."""
    need("sparse")
    with (sources / "why.c").open("a") as out:
        out.write("int cbt_bad(int __user *at);\nint cbt_bad(int __user *at)\n")
        out.write("{\n\tint unused;\n\n\treturn *at;\n}\n")
    _, said = build(kernels.kernel("6.1"), sources, "W=1", "C=2")
    assert "dereference of noderef expression" in said
    assert "unused variable" in said


def test_every_struct_is_explained() -> None:
    kernel = kernels.kernel("6.1")
    tool = next((kernel.root / "usr" / "lib").glob("linux-kbuild-*/scripts/kernel-doc"))
    files = sorted([*MODULE.glob("*.c"), *MODULE.glob("*.h")])
    done = subprocess.run(
        ["perl", str(tool), "-none", "-v", *map(str, files)], capture_output=True, text=True
    )
    assert done.returncode == 0
    assert not [line for line in done.stderr.splitlines() if "warning" in line]
    # A struct of ours without an explanation is no warning of that tool.
    for path in files:
        text = path.read_text()
        for name in re.findall(r"^struct (\w+) \{$", text, re.MULTILINE):
            assert f"struct {name} - " in text, f"{path.name}: {name}"


def test_each_file_can_be_read_at_once() -> None:
    for path in (p for p in MODULE.rglob("*") if p.suffix in (".c", ".h")):
        assert len(path.read_text().splitlines()) <= MAX_LINES, path


@pytest.mark.skipif(not CHECKPATCH, reason="needs the kernel's checkpatch.pl: make module-lint")
def test_checkpatch() -> None:
    """Strict; the three exceptions are what a module outside the kernel cannot avoid.

    It is built for several kernels (LINUX_VERSION_CODE, compared on its left), and its copy of
    a disk's operations is changed (CONST_STRUCT).
    """
    ignored = "LINUX_VERSION_CODE,CONSTANT_COMPARISON,CONST_STRUCT"
    files = sorted(p for p in MODULE.rglob("*") if p.suffix in (".c", ".h"))
    words = ["perl", CHECKPATCH, "--no-tree", "--strict", "--terse", "--ignore", ignored, "-f"]
    done = subprocess.run([*words, *map(str, files)], capture_output=True, text=True, cwd="/tmp")
    bad = [line for line in done.stdout.splitlines() if not line.startswith("total: 0 errors, 0 w")]
    assert not bad, "\n".join(bad)


def test_dkms_builds_it(tmp_path: Path) -> None:
    need("dkms")
    kernel = kernels.kernel("6.1")
    shutil.copytree(MODULE, tmp_path / "sources" / "cbt-0.2.0")
    (tmp_path / "tree").mkdir()
    words = ["dkms", "build", "cbt/0.2.0", "-k", kernel.release]
    words += ["--kernelsourcedir", str(kernel.headers), "--dkmstree", str(tmp_path / "tree")]
    words += ["--sourcetree", str(tmp_path / "sources")]
    done = subprocess.run(words, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stdout + done.stderr
    assert list((tmp_path / "tree").rglob("cbt.ko*"))
