"""The debug kernel: no line of its configuration gets lost, and every kind of report is known."""

from __future__ import annotations

from pathlib import Path

import pytest

from cbtlab.errors import InputError
from cbtlab.lab import debug_kernel
from cbtlab.lab.guest import is_report

# A kernel's tree as far as the configuration is concerned: it takes from the
# fragment what it knows, and drops the rest in silence, as Kconfig does.
MAKEFILE = """
allnoconfig:
\t@grep -E 'CONFIG_(KNOWN|OFF)' $(KCONFIG_ALLCONFIG) > .config
"""


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder that is configured like a kernel; the cache is an empty one."""
    monkeypatch.setenv("CBTLAB_CACHE", str(tmp_path / "cache"))
    (tmp_path / "cache" / "kernels").mkdir(parents=True)
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "Makefile").write_text(MAKEFILE)
    return tmp_path / "tree"


def test_what_kconfig_dropped_is_refused_and_named(tree: Path, tmp_path: Path) -> None:
    fragment = tmp_path / "fragment"
    fragment.write_text("# a comment\nCONFIG_KNOWN=y\n# CONFIG_OFF is not set\n")
    debug_kernel.configure(tree, fragment)
    fragment.write_text("CONFIG_KNOWN=y\nCONFIG_DROPPED=y\nCONFIG_TOO=1\n")
    with pytest.raises(InputError, match=r"2 lines are not in .* first CONFIG_DROPPED=y"):
        debug_kernel.configure(tree, fragment)


def test_line_counts_only_word_for_word() -> None:
    config = 'CONFIG_ONE=y\nCONFIG_NUMBER=10\nCONFIG_TEXT="a b"\n# CONFIG_OFF is not set\n'
    lost = debug_kernel.lost_lines
    assert lost(config, config) == []
    assert lost("CONFIG_ON=y\nCONFIG_NUMBER=1\n", config) == ["CONFIG_ON=y", "CONFIG_NUMBER=1"]
    assert lost("# CONFIG_ONE is not set\n", config) == ["# CONFIG_ONE is not set"]
    assert lost('CONFIG_TEXT="a"\n# CONFIG_OFF\n', config) == ['CONFIG_TEXT="a"']


def test_fragment_sets_nothing_twice() -> None:
    lines = debug_kernel.FRAGMENT.read_text().splitlines()
    names = [
        line.removeprefix("# ").split("=")[0].split()[0] for line in lines if "CONFIG_" in line
    ]
    assert len(names) > 100
    assert sorted(set(names)) == sorted(names)


def test_built_kernel_has_every_line() -> None:
    if not debug_kernel.place().is_dir():
        pytest.skip(debug_kernel.absence() or "the debug kernel is not built yet")
    (config,) = debug_kernel.place().glob("usr/src/*/.config")
    assert not debug_kernel.lost_lines(debug_kernel.FRAGMENT.read_text(), config.read_text())


def test_another_fragment_is_another_kernel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = debug_kernel.place()
    changed = tmp_path / "fragment"
    changed.write_text(debug_kernel.FRAGMENT.read_text() + "CONFIG_MORE=y\n")
    monkeypatch.setattr(debug_kernel, "FRAGMENT", changed)
    assert debug_kernel.place() != before
    assert debug_kernel.place().parent == before.parent


def test_without_permission_the_reason_names_the_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(debug_kernel.PERMISSION, raising=False)
    assert "make faults" in debug_kernel.absence()
    monkeypatch.setenv(debug_kernel.PERMISSION, "1")
    assert debug_kernel.absence() == ""


REPORTS = """\
BUG: KASAN: use-after-free in planted_init+0x4b/0x1000 [planted]
BUG: unable to handle page fault for address: ffffffffffffffd8
BUG kmalloc-64 (Not tainted): Right Redzone overwritten
BUG: sleeping function called from invalid context at mm/slab.h:494
watchdog: BUG: soft lockup - CPU#1 stuck for 26s! [python3.11:221]
WARNING: possible circular locking dependency detected
WARNING: CPU: 0 PID: 12 at lib/list_debug.c:23 __list_add_valid+0x4d/0x70
kernel BUG at lib/list_debug.c:28!
UBSAN: shift-out-of-bounds in /build/planted.c:187:11
ODEBUG: Out of memory. ODEBUG disabled
general protection fault, probably for non-canonical address 0xdead000000000122: 0000 [#1]
Oops: 0000 [#1] PREEMPT SMP KASAN
invalid opcode: 0000 [#1] PREEMPT SMP
Kernel panic - not syncing: Fatal exception
INFO: task insmod:88 blocked for more than 120 seconds.
rcu: INFO: rcu_preempt detected stalls on CPUs/tasks:
INFO: trying to register non-static key.
kmemleak: 8 new suspected memory leaks (see /sys/kernel/debug/kmemleak)
kmemleak: unreferenced object 0xffff888004a1c800 (size 200):
kmemleak: Kernel memory leak detector disabled
kmemleak: Cannot allocate a kmemleak_object structure
kmemleak: Memory pool empty, consider increasing CONFIG_DEBUG_KMEMLEAK_MEM_POOL_SIZE
sysfs: cannot create duplicate filename '/class/block/dm-0'
"""
HARMLESS = """\
------------[ cut here ]------------
kmemleak: Kernel memory leak detector initialized (mem pool available: 39000)
kmemleak: Cannot allocate a scan area, scanning the full object
Call Trace:
insmod: page allocation failure: order:0, mode:0xdc0(GFP_KERNEL|__GFP_ZERO)
device-mapper: snapshots: Snapshot is marked invalid.
cbt: loading out-of-tree module taints kernel.
Debugging options: a debug kernel
"""


@pytest.mark.parametrize("line", REPORTS.splitlines())
def test_report_is_seen_in_the_kernels_lines_alone(line: str) -> None:
    assert is_report(f"[   12.345678] {line}")
    assert is_report(f"half a line of a program[  112.345678] {line}\r")
    assert not is_report(line), "a program said that"


@pytest.mark.parametrize("line", HARMLESS.splitlines())
def test_other_lines_are_no_report(line: str) -> None:
    assert not is_report(f"[   12.345678] {line}")
