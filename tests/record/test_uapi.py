"""The layouts that Python uses are those of the module's headers, asked of a C compiler."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from struct import Struct

import pytest

from cbtlab.record import uapi
from cbtlab.writes import native, schema

FOLDER = Path(__file__).parents[2] / "kernel_module"
HEADER = FOLDER / "cbt.h"
TEXT = HEADER.read_text() + (FOLDER / "cbt_events.h").read_text()
STRUCTS = {
    "cbt_event": uapi.EVENT,
    "cbt_attach": uapi.ATTACH,
    "cbt_switch": uapi.SWITCH,
    "cbt_bits": uapi.BITS,
    "cbt_info": uapi.INFO,
    "cbt_status": uapi.STATUS,
    "cbt_tail": uapi.TAIL,
    "cbt_rings": uapi.RINGS,
    "cbt_ring": uapi.RING,
    "cbt_stream_header": uapi.STREAM_HEADER,
    "cbt_stream_tracker": uapi.STREAM_TRACKER,
}
# Names in the header begin with these; the rest is the name of the enumeration's member.
FAMILIES = {
    "CBT_ROLE_": uapi.Role,
    "CBT_ATTACH_": uapi.Attach,
    "CBT_S_": uapi.State,
    "CBT_OP_": uapi.Op,
    "CBT_F_": uapi.Flag,
    "CBT_K_": uapi.Known,
}
SINGLE = {
    "CBT_VERSION": uapi.VERSION,
    "CBT_GRANULARITY_MIN": uapi.GRANULARITY_MIN,
    "CBT_GRANULARITY_MAX": uapi.GRANULARITY_MAX,
    "CBT_TRACKERS_MAX": uapi.TRACKERS_MAX,
    "CBT_ID_BYTES": uapi.ID_BYTES,
    "CBT_WHY_BYTES": uapi.WHY_BYTES,
    "CBT_NAME_BYTES": uapi.NAME_BYTES,
    "CBT_COMM_BYTES": uapi.COMM_BYTES,
    "CBT_SWITCH_RUNNING": uapi.SWITCH_RUNNING,
    "CBT_SWITCH_SUSPENDED": uapi.SWITCH_SUSPENDED,
    "CBT_BITS_ACTIVE": uapi.Which.ACTIVE,
    "CBT_BITS_FROZEN": uapi.Which.FROZEN,
    "CBT_BITS_CHANGED": uapi.Kind.CHANGED,
    "CBT_BITS_DISCARDED": uapi.Kind.DISCARDED,
    "CBT_I_NO_TABLES": uapi.NO_TABLES,
    "CBT_STATUS_NEXT": uapi.STATUS_NEXT,
    "CBT_MAP_TAILS": uapi.MAP_TAILS,
    "CBT_MAP_RINGS": uapi.MAP_RINGS,
    "CBT_STREAM_VERSION": uapi.STREAM_VERSION,
    "CBT_STREAM_BATCH": uapi.STREAM_BATCH,
}


def fields(name: str) -> list[str]:
    """Return the members of a struct in the headers, reserved ones left out."""
    found = re.search(rf"struct {name} \{{(.*?)\}};", TEXT, re.S)
    assert found
    body = re.sub(r"/\*.*?\*/", "", found[1], flags=re.S)
    names = re.findall(r"(\w+)(?:\[\w+\])?;", body)
    return [field for field in names if not field.startswith("reserved")]


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    """Every size, offset and number of the headers, by its C expression."""
    if not shutil.which("gcc"):
        pytest.skip("needs gcc")
    # Every object-like macro but the guards, which are empty, and what is a string.
    macros = re.findall(r'^#define (CBT_\w+)[ \t]+(?!")\S', TEXT, re.M)
    asked = list(macros)
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


def test_no_struct_is_left_out() -> None:
    assert set(re.findall(r"^struct (\w+) \{", TEXT, re.M)) == set(STRUCTS)


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


def test_every_number_of_the_headers_is_known(compiled: dict[str, int]) -> None:
    """Both ways: no macro without its name in Python, no member without its macro."""
    known = dict(SINGLE)
    known |= {f"{prefix}{m.name}": m for prefix, family in FAMILIES.items() for m in family}
    calls = {name for name in dir(uapi) if name.startswith("IOC_")}
    assert len(calls) == 11
    known |= {f"CBT_{name}": getattr(uapi, name) for name in calls}
    assert known == {name: n for name, n in compiled.items() if name.startswith("CBT_")}


def test_strings_are_the_headers() -> None:
    assert f'#define CBT_DEVICE "{uapi.DEVICE}"' in TEXT
    assert f'#define CBT_STREAM_MAGIC "{uapi.STREAM_MAGIC.decode()}"' in TEXT


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
    assert {flag.name.lower(): flag for flag in uapi.Flag if flag.name} == schema.FLAGS
    assert [op.name.lower() for op in uapi.Op][:-2] == list(schema.OPS)


def test_record_needs_only_the_standard_library() -> None:
    names = [
        f"cbtlab.record.{path.stem}" for path in (FOLDER.parent / "cbtlab/record").glob("*.py")
    ]
    words = f"import {', '.join(names)}, sys; print(*sys.modules)"
    told = subprocess.run(
        ["python3", "-I", "-S", "-c", f"import sys; sys.path.insert(0, '.'); {words}"],
        cwd=FOLDER.parent, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert not {"numpy", "pandas", "click", "tqdm"} & set(told.stdout.split())
