# SPDX-License-Identifier: GPL-2.0-only
"""The memory of a guest that crashes, resets, hangs or is well; and a dump that fails hides nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import drgn
import pytest

from pyharness.artifacts.kernels import Kernel
from pyharness.errors import Exit, GuestCrashed, HarnessError, TimedOut
from pyharness.machine.config import MachineConfig
from pyharness.machine.vm import Machine

# Without symbols no reader gets through the page tables.
WITH_SYMBOLS = pytest.mark.kernel_has("DEBUG_INFO")
ONE_KERNEL = pytest.mark.default_kernel_only("what becomes of the dump does not depend on the kernel")

FULL = "/dev/full"


@pytest.fixture
def watched(config: MachineConfig) -> Iterator[Machine]:
    with Machine(replace(config, dump_on_crash=True, call_timeout_s=20.0)) as machine:
        yield machine


def sysrq(machine: Machine, key: str) -> None:
    machine.guest.module("pathlib").Path("/proc/sysrq-trigger").write_text(key)
    machine.guest.module("time").sleep(60)


def vmcore(machine: Machine) -> Path:
    return machine.console.log.with_name("vmcore")


def assert_readable(path: Path, kernel: Kernel) -> None:
    assert list(path.parent.glob(".*.partial")) == []
    program = drgn.Program()
    program.set_core_dump(path)
    with suppress(drgn.MissingDebugInfoError):
        program.load_debug_info([kernel.vmlinux])
    assert program["init_uts_ns"].name.release.string_().decode() == kernel.release
    path.unlink()


@WITH_SYMBOLS
@pytest.mark.parametrize(
    ("key", "kind"), [("c", "panic"), ("b", "reset itself without a message")], ids=["panic", "reset"]
)
def test_a_crash_leaves_its_memory(watched: Machine, key: str, kind: str) -> None:
    with pytest.raises(GuestCrashed, match=kind) as caught:
        sysrq(watched, key)
    assert caught.value.mend.endswith(f"its memory is in {vmcore(watched)}")
    assert not Path(f"/proc/{watched.console.pid}").exists(), "QEMU has not been kept for longer than that"
    assert_readable(vmcore(watched), watched.config.kernel)


@ONE_KERNEL
def test_a_power_off_is_still_named(watched: Machine) -> None:
    with pytest.raises(HarnessError, match="powered itself off") as caught:
        sysrq(watched, "o")
    assert caught.value.exit_code == Exit.HARNESS
    assert not Path(f"/proc/{watched.console.pid}").exists()


@WITH_SYMBOLS
def test_a_hang_leaves_its_memory(watched: Machine) -> None:
    with pytest.raises(TimedOut) as caught:
        watched.guest.module("time").sleep(600)
    assert str(vmcore(watched)) in caught.value.mend
    assert_readable(vmcore(watched), watched.config.kernel)


@WITH_SYMBOLS
def test_a_guest_that_is_well_goes_on_after_its_dump(watched: Machine, tmp_path: Path) -> None:
    for name in ("first", "again"):
        watched.dump(tmp_path / name)
        assert_readable(tmp_path / name, watched.config.kernel)
    assert watched.guest.module("os").getpid() > 0
    assert watched.qmp.execute("query-status")["running"]


@ONE_KERNEL
def test_a_dump_that_fails_does_not_hide_the_crash(watched: Machine) -> None:
    blocked = vmcore(watched).with_name(".vmcore.partial")
    blocked.symlink_to(FULL)
    with pytest.raises(GuestCrashed, match="sysrq triggered crash") as caught:
        sysrq(watched, "c")
    assert "there is no memory dump: QEMU cannot dump the memory to " in caught.value.mend
    assert "\n" not in caught.value.mend
    assert not vmcore(watched).exists() and not blocked.is_symlink()


@ONE_KERNEL
def test_a_dump_of_a_live_guest_that_fails_is_named(watched: Machine, tmp_path: Path) -> None:
    with pytest.raises(HarnessError, match="dump"):
        watched.dump(tmp_path / "nowhere" / "vmcore")
    (tmp_path / ".vmcore.partial").symlink_to(FULL)
    with pytest.raises(HarnessError, match="QEMU cannot dump the memory to") as caught:
        watched.dump(tmp_path / "vmcore")
    assert caught.value.mend
    assert list(tmp_path.iterdir()) == []
    assert watched.guest.module("os").getpid() > 0, "the guest goes on"


@ONE_KERNEL
def test_without_the_option_there_is_no_dump(config: MachineConfig) -> None:
    with Machine(config) as machine, pytest.raises(GuestCrashed) as caught:
        sysrq(machine, "c")
    assert not vmcore(machine).exists() and "memory" not in caught.value.mend
