# SPDX-License-Identifier: GPL-2.0-only
"""A guest that crashes, resets, powers off or hangs, and a QEMU that dies: never silence, always the cause."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from pyharness.errors import Exit, GuestCrashed, HarnessError, TimedOut
from pyharness.machine.config import MachineConfig
from pyharness.machine.crash import Kind, Severity
from pyharness.machine.vm import Machine, State

pytestmark = pytest.mark.default_kernel_only("how an end is noticed does not depend on the kernel that ends")

NOTICE_S = 5.0
"""How soon after a crash its cause must be raised."""


@pytest.fixture
def doomed(config: MachineConfig) -> Iterator[Machine]:
    with Machine(config) as machine:
        yield machine


def sysrq(machine: Machine, key: str) -> None:
    machine.guest.module("pathlib").Path("/proc/sysrq-trigger").write_text(key)


def test_a_panic_in_a_call_is_raised_by_that_call(doomed: Machine) -> None:
    started = time.monotonic()
    with pytest.raises(GuestCrashed) as caught:
        sysrq(doomed, "c")
    assert time.monotonic() - started < NOTICE_S
    assert (caught.value.exit_code, caught.value.kind) == (Exit.GUEST_CRASH, Kind.PANIC)
    assert "sysrq triggered crash" in caught.value.message and "\n" not in caught.value.message
    assert "Call Trace:" in caught.value.detail and "sysrq_handle_crash" in caught.value.detail
    assert doomed.state is State.CRASHED


def test_a_panic_between_calls_is_raised_by_the_next(doomed: Machine) -> None:
    delayed = doomed.guest.module("threading").Timer(
        0.5, doomed.guest.module("pathlib").Path("/proc/sysrq-trigger").write_text, ("c",)
    )
    delayed.start()
    assert doomed.console.wait_end(60)
    for use in (doomed.check, lambda: doomed.guest, lambda: doomed.qmp):
        with pytest.raises(GuestCrashed, match="sysrq triggered crash"):
            use()


def test_a_panic_ends_a_wait_for_a_task(doomed: Machine) -> None:
    started = time.monotonic()
    with pytest.raises(GuestCrashed):
        task = doomed.guest.spawn(
            doomed.guest.module("subprocess").run, ("sh", "-c", "sleep 1; echo c >/proc/sysrq-trigger")
        )
        task.result(600)
    assert time.monotonic() - started < 1 + 2 * NOTICE_S


def test_a_reset_without_a_word_is_a_crash(doomed: Machine) -> None:
    with pytest.raises(GuestCrashed, match="reset itself without a message"):
        sysrq(doomed, "b")
        doomed.guest.module("time").sleep(60)


def test_a_power_off_is_named(doomed: Machine) -> None:
    with pytest.raises(HarnessError, match="powered itself off") as caught:
        sysrq(doomed, "o")
        doomed.guest.module("time").sleep(60)
    assert (caught.value.exit_code, caught.value.kind) == (Exit.HARNESS, Kind.POWER_OFF)
    assert doomed.state is State.FAILED


def test_a_killed_qemu_is_a_fault_of_the_harness(doomed: Machine) -> None:
    pid = doomed.console.pid
    threading.Timer(0.5, os.kill, (pid, signal.SIGKILL)).start()
    with pytest.raises(HarnessError, match="QEMU was killed by SIGKILL") as caught:
        doomed.guest.module("time").sleep(60)
    assert (caught.value.exit_code, caught.value.kind) == (Exit.HARNESS, Kind.QEMU_DEATH)


def test_a_warning_ends_nothing_and_is_collected(doomed: Machine) -> None:
    """The line is written to the log as the kernel would; the machine must go on."""
    kmsg = doomed.guest.module("pathlib").Path("/dev/kmsg")
    kmsg.write_text("<4>WARNING: CPU: 1 PID: 1 at drivers/hv/channel.c:12 vmbus_open+0x1c/0x40 [hv_vmbus]\n")
    kmsg.write_text("<4>---[ end trace 0000000000000000 ]---\n")
    deadline = time.monotonic() + 30
    while not doomed.console.warnings and time.monotonic() < deadline:
        time.sleep(0.05)
    (warning,) = doomed.console.warnings
    assert warning.severity is Severity.WARNING
    assert doomed.guest.module("os").getpid() > 0
    doomed.check()


@pytest.mark.parametrize("process", ["getppid", "getpid"], ids=["bootstrap", "server"])
def test_the_agents_death_is_named(doomed: Machine, process: str) -> None:
    """The bootstrap, which only waits, and the process that serves the host: with either gone, PID 1 powers off."""
    os = doomed.guest.module("os")
    with pytest.raises(HarnessError, match="powered itself off") as caught:
        os.kill(getattr(os, process)(), signal.SIGKILL)
        doomed.guest.module("time").sleep(60)
    assert "the agent has failed" in caught.value.detail


def test_a_call_that_hangs_times_out_with_the_console(config: MachineConfig) -> None:
    with Machine(replace(config, call_timeout_s=3.0)) as machine:
        started = time.monotonic()
        with pytest.raises(TimedOut, match="did not return in 3 s") as caught:
            machine.guest.module("time").sleep(600)
        assert time.monotonic() - started < 30
        assert "virtme initramfs: done" in caught.value.detail
        # No other call waits for the same guest.
        with pytest.raises(TimedOut) as again:
            machine.guest.module("os").getpid()
        assert again.value is caught.value


def test_a_guest_that_never_boots_times_out_with_its_console(config: MachineConfig) -> None:
    """The kernel runs `cat` on its console instead of the initramfs's /init."""
    timeout_s = 25.0
    stuck = replace(config, kernel_args=("rdinit=/bin/cat",), boot_timeout_s=timeout_s, cold=True)
    started = time.monotonic()
    machine = Machine(stuck)
    with pytest.raises(TimedOut, match="the guest to boot") as caught, machine:
        pass
    assert time.monotonic() - started < timeout_s + 35
    assert (caught.value.exit_code, caught.value.kind) == (Exit.TIMEOUT, Kind.BOOT_HANG)
    assert "Run /bin/cat as init process" in caught.value.detail
    assert not Path(f"/proc/{machine.console.pid}").exists()


def test_a_crash_while_booting_is_a_crash(config: MachineConfig) -> None:
    with pytest.raises(GuestCrashed, match="Kernel panic"), Machine(replace(config, kernel_args=("root=/dev/vdz",))):
        pass


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: replace(c, qemu=replace(c.qemu, binary=c.qemu.binary / "nothing")), "there is no QEMU at"),
        (lambda c: replace(c, qemu_args=("-device", "hv-no-such-thing")), "lacks the VMBus devices"),
        (lambda c: replace(c, qemu_args=("-no-such-option",)), "QEMU exited with status 1"),
        (lambda c: replace(c, memory_mib=1 << 24), "QEMU exited with status 1"),
    ],
    ids=["missing", "foreign", "refusing", "no memory"],
)
def test_a_qemu_that_does_not_start_is_one_line_at_once(
    config: MachineConfig, change: Callable[[MachineConfig], MachineConfig], message: str
) -> None:
    started = time.monotonic()
    with pytest.raises(HarnessError, match=message) as caught, Machine(change(config)):
        pass
    assert caught.value.exit_code == Exit.HARNESS
    assert "\n" not in caught.value.message and caught.value.mend
    assert time.monotonic() - started < 20
