"""The layouts that Python uses are those of the module's header, asked of a C compiler."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from struct import Struct

import pytest

from cbtlab.record import uapi
from cbtlab.writes import native

HEADER = Path(__file__).parents[2] / "kernel_module" / "cbt.h"
STRUCTS = {
    "cbt_event": uapi.EVENT,
    "cbt_attach": uapi.ATTACH,
    "cbt_switch": uapi.SWITCH,
    "cbt_bits": uapi.BITS,
    "cbt_info": uapi.INFO,
    "cbt_status": uapi.STATUS,
    "cbt_stream_header": uapi.STREAM_HEADER,
    "cbt_stream_tracker": uapi.STREAM_TRACKER,
}


def fields(name: str) -> list[str]:
    """Return the members of a struct in the header, reserved ones left out."""
    found = re.search(rf"struct {name} \{{(.*?)\}};", HEADER.read_text(), re.S)
    assert found
    body = re.sub(r"/\*.*?\*/", "", found[1], flags=re.S)
    names = re.findall(r"(\w+)(?:\[\w+\])?;", body)
    return [field for field in names if not field.startswith("reserved")]


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    """Every size, offset and number of the header, by its C expression."""
    if not shutil.which("gcc"):
        pytest.skip("needs gcc")
    calls = re.findall(r"#define (CBT_IOC_\w+)", HEADER.read_text())
    constants = re.findall(r"#define (CBT_\w+) (?:0x[0-9a-f]+|\d+)\b", HEADER.read_text())
    asked = [*calls, *constants]
    for name in STRUCTS:
        asked.append(f"sizeof(struct {name})")
        for field in fields(name):
            asked.append(f"offsetof(struct {name}, {field})")
            asked.append(f"sizeof(((struct {name} *)0)->{field})")
    lines = "\n".join(f'printf("%lu %s\\n", (unsigned long)({a}), "{a}");' for a in asked)
    folder = tmp_path_factory.mktemp("uapi")
    source = folder / "ask.c"
    source.write_text(
        f'#include <stddef.h>\n#include <stdio.h>\n#include "{HEADER}"\n'
        f"int main(void) {{ {lines} return 0; }}\n"
    )
    words = ["gcc", "-Wall", "-Werror", "-Wpadded", "-o", folder / "ask", source]
    subprocess.run(words, check=True)
    told = subprocess.run([folder / "ask"], capture_output=True, text=True, check=True)
    return {
        text: int(number)
        for number, text in (t.split(" ", 1) for t in told.stdout.split("\n") if t)
    }


@pytest.mark.parametrize("name", STRUCTS)
def test_struct_is_laid_out_as_in_the_header(name: str, compiled: dict[str, int]) -> None:
    layout = STRUCTS[name]
    assert layout.size == compiled[f"sizeof(struct {name})"]
    expected = [
        (
            compiled[f"offsetof(struct {name}, {field})"],
            compiled[f"sizeof(((struct {name} *)0)->{field})"],
        )
        for field in fields(name)
    ]
    assert members(layout) == expected


def members(layout: Struct) -> list[tuple[int, int]]:
    """Return (offset, size) of each field of a Struct without padding of its own."""
    found, at = [], 0
    for count, code in re.findall(r"(\d*)([a-zA-Z])", layout.format):
        if code in "sx":
            size = int(count or 1)
            if code == "s":
                found.append((at, size))
            at += size
            continue
        size = Struct("=" + code).size
        for _ in range(int(count or 1)):
            found.append((at, size))
            at += size
    assert at == layout.size
    return found


def test_ioctl_numbers_are_the_headers(compiled: dict[str, int]) -> None:
    numbers = {name: number for name, number in compiled.items() if name.startswith("CBT_IOC_")}
    assert len(numbers) == 8
    for name, number in numbers.items():
        assert getattr(uapi, name.removeprefix("CBT_")) == number, name


def test_constants_are_the_headers(compiled: dict[str, int]) -> None:
    for value, name in (
        (uapi.VERSION, "CBT_VERSION"),
        (uapi.Role.PHYSICAL, "CBT_ROLE_PHYSICAL"),
        (uapi.Role.SNAPSHOT, "CBT_ROLE_SNAPSHOT"),
        (uapi.Which.ACTIVE, "CBT_BITS_ACTIVE"),
        (uapi.Which.FROZEN, "CBT_BITS_FROZEN"),
        (uapi.Kind.CHANGED, "CBT_BITS_CHANGED"),
        (uapi.Kind.DISCARDED, "CBT_BITS_DISCARDED"),
        (uapi.SWITCH_RUNNING, "CBT_SWITCH_RUNNING"),
        (uapi.SWITCH_SUSPENDED, "CBT_SWITCH_SUSPENDED"),
        (uapi.STATUS_NEXT, "CBT_STATUS_NEXT"),
        (uapi.TRACKERS_MAX, "CBT_TRACKERS_MAX"),
        (uapi.OP_END, "CBT_OP_END"),
        (uapi.STREAM_VERSION, "CBT_STREAM_VERSION"),
    ):
        assert value == compiled[name], name
    for state in uapi.State:
        assert state == compiled[f"CBT_S_{state.name}"]


def test_package_reads_the_same_records() -> None:
    for layout, dtype in (
        (uapi.STREAM_EVENT, native.EVENT),
        (uapi.STREAM_HEADER, native.HEADER),
        (uapi.STREAM_TRACKER, native.TRACKER),
    ):
        assert layout.size == dtype.itemsize
        assert dtype.fields is not None
        named = [
            (offset, kind.itemsize)
            for name, (kind, offset, *_) in dtype.fields.items()
            if name != "padding"
        ]
        assert members(layout) == named


def test_record_needs_only_the_standard_library() -> None:
    words = "import cbtlab.record.kernel_module, sys; print(*sys.modules)"
    told = subprocess.run(
        ["python3", "-I", "-S", "-c", f"import sys; sys.path.insert(0, '.'); {words}"],
        cwd=HEADER.parents[1], capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert not {"numpy", "pandas", "click", "tqdm"} & set(told.stdout.split())
