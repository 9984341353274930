"""Each detector of the debug kernel reports a fault that was planted for it, and a run fails then.

Without that, a run without a report proves nothing.  The order matters: the
first report of lockdep or KASAN turns lockdep off for the rest of the boot.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from cbtlab.lab import debug_kernel, guest, kernels

PLANTED = Path(__file__).parent / "planted"
LEAKS = Path(__file__).parent / "guest" / "leaks.py"

# In the order of one boot: the fault, and what its detector says.
FAULTS = {
    "none": "",
    "warning": "WARNING: CPU",
    "suspicious_rcu": "WARNING: suspicious RCU usage",
    "sleep_in_atomic": "BUG: sleeping function called from invalid context",
    "processor_id_preemptible": "BUG: using smp_processor_id() in preemptible",
    "shift": "UBSAN: shift-out-of-bounds",
    "array_bounds": "UBSAN: array-index-out-of-bounds",
    "bad_bool": "UBSAN: invalid-load",
    "allocate_in_atomic": "BUG: sleeping function called from invalid context",
    "list_corruption": "WARNING: CPU",
    "list_deleted_twice": "WARNING: CPU",
    "freed_timer": "ODEBUG: free active",
    "leaks": "kmemleak: unreferenced object",
    "lock_inversion": "WARNING: possible circular locking dependency",
    "use_after_free": "BUG: KASAN: use-after-free",
    "slab_out_of_bounds": "BUG: KASAN: slab-out-of-bounds",
    "vmalloc_out_of_bounds": "BUG: KASAN: vmalloc-out-of-bounds",
    "stack_out_of_bounds": "BUG: KASAN: stack-out-of-bounds",
}
# What else must be in the text of a report, to be sure that it is the one.
DETAILS = {
    "list_corruption": ["list_add corruption"],
    "list_deleted_twice": ["list_del corruption"],
    "leaks": ["leak_slab", "leak_vmalloc", " allocations per CPU are left"],
}
COMMAND = """
mount -t debugfs none /sys/kernel/debug
python3.11 -B /lab/leaks.py forget
for fault in {faults}; do
    echo "<3>planted: $fault" > /dev/kmsg
    [ $fault != allocate_in_atomic ] || sleep 1.5  # reports of sleeping come once a second
    insmod /lab/planted.ko fault=$fault || exit 1
    [ $fault != leaks ] || python3.11 -B /lab/leaks.py
    rmmod planted
done
echo "<3>planted: end" > /dev/kmsg
"""

pytestmark = [
    pytest.mark.vm,
    pytest.mark.skipif(bool(debug_kernel.absence()), reason=debug_kernel.absence()),
    pytest.mark.timeout(3600),
]


def plant(work: Path, *faults: str) -> guest.GuestResult:
    """Boot the debug kernel, let each fault happen, and return what is left of the guest."""
    kernel = kernels.kernel(debug_kernel.VERSION)
    folder, _ = kernels.compiled(kernel, PLANTED, ("planted.ko",))
    return guest.boot(
        debug_kernel.VERSION,
        COMMAND.format(faults=" ".join(faults)),
        files={"lab/planted.ko": folder / "planted.ko", "lab/leaks.py": LEAKS},
        module=False,
        timeout=900,
        work=work,
    )


def told(result: guest.GuestResult) -> dict[str, list[str]]:
    """Return the console's lines by the fault after whose name they came."""
    parts: dict[str, list[str]] = {"boot": []}
    for line in result.console.read_text(errors="replace").splitlines():
        _, found, name = line.partition("planted: ")
        if found and name.strip() in {*FAULTS, "lock_in_softirq", "end"}:
            parts[name.strip()] = []
        else:
            parts[list(parts)[-1]].append(line)
    return parts


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> guest.GuestResult:
    """Return the guest in which all faults were planted, one after the other."""
    return plant(tmp_path_factory.mktemp("planted"), *FAULTS)


@pytest.mark.parametrize("fault", [name for name in FAULTS if FAULTS[name]])
def test_detector_reports(planted: guest.GuestResult, fault: str) -> None:
    lines = told(planted)[fault]
    reports = [line for line in lines if guest.is_report(line)]
    assert any(FAULTS[fault] in line for line in reports), "\n".join(lines)
    for detail in DETAILS.get(fault, []):
        assert any(detail in line for line in lines), detail


def test_nothing_is_reported_where_nothing_was_planted(planted: guest.GuestResult) -> None:
    parts = told(planted)
    assert list(parts) == ["boot", *FAULTS, "end"]
    for name in "boot", "none", "end":
        assert not [line for line in parts[name] if guest.is_report(line)], name


def test_reports_fail_a_run_whose_command_succeeded(planted: guest.GuestResult) -> None:
    assert planted.exit_status == 0
    with pytest.raises(guest.GuestError, match=r"status 0: .*WARNING"):
        planted.check()


def test_lock_of_softirqs_is_reported_in_a_boot_of_its_own(tmp_path: Path) -> None:
    result = plant(tmp_path, "none", "lock_in_softirq")
    reports = [line for line in told(result)["lock_in_softirq"] if guest.is_report(line)]
    assert "WARNING: inconsistent lock state" in reports[0], reports
    shutil.rmtree(result.output)
