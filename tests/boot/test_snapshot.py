# SPDX-License-Identifier: GPL-2.0-only
"""Guests restored from a snapshot: each is the booted one, alone, with the right time, and none half made."""

from __future__ import annotations

import os
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from pyharness.artifacts.cache import Cache
from pyharness.artifacts.prepare import Prepared
from pyharness.errors import HarnessError
from pyharness.machine.config import BlobDevice, MachineConfig
from pyharness.machine.vm import Machine
from tests.devices import NULL_DEVICE

pytestmark = pytest.mark.default_kernel_only("how a guest starts does not depend on its kernel")

BOOT_LINE = "Run /init as init process"


def boot_of(machine: Machine) -> list[str]:
    """What tells one boot from another: the messages of it, with their microseconds."""
    return [str(message) for message in machine.guest.dmesg()[:100]]


def test_two_at_once_begin_with_the_same_boot_and_share_nothing(config: MachineConfig) -> None:
    with Machine(config) as first, Machine(config) as second:
        assert boot_of(first) == boot_of(second)
        first.guest.push(b"first", "/tmp/mark")
        assert not second.guest.module("pathlib").Path("/tmp/mark").exists()
    with Machine(config) as third:
        assert not third.guest.module("pathlib").Path("/tmp/mark").exists()


def test_a_cold_machine_boots(config: MachineConfig) -> None:
    with Machine(config) as warm, Machine(replace(config, cold=True)) as cold:
        assert boot_of(warm) != boot_of(cold)


def test_the_log_begins_with_the_boot(config: MachineConfig) -> None:
    with Machine(config) as machine:
        machine.guest.module("pathlib").Path("/dev/kmsg").write_text("after the restore\n")
        deadline = time.monotonic() + 60
        while "after the restore" not in machine.console.tail() and time.monotonic() < deadline:
            time.sleep(0.02)
    text = machine.console.log.read_text()
    assert 0 < text.index(BOOT_LINE) < text.index("after the restore")


def test_the_clock_is_the_hosts(config: MachineConfig) -> None:
    """As after a restore; a guest's CPU may be slow to answer, but not by an hour."""
    hour = 3600.0
    with Machine(config) as machine:
        clock = machine.guest.module("time")
        assert abs(time.time() - clock.time()) < hour
        clock.clock_settime(clock.CLOCK_REALTIME, time.time() - 10 * hour)
        assert time.time() - clock.time() > 9 * hour
        machine.guest.set_clock()
        assert abs(time.time() - clock.time()) < hour


def test_hyperv_works_after_a_restore_as_after_a_boot(config: MachineConfig, prepared: Prepared) -> None:
    device = replace(config, blob_devices=(BlobDevice(NULL_DEVICE, backend=False),))
    for cold in (False, True):
        with Machine(replace(device, cold=cold)) as machine:
            machine.guest.insmod(prepared.modules.vmbus.path)
            machine.guest.insmod(prepared.modules.driver.path)
            machine.guest.wait_for_node("/dev/azure_blob", 60)
            assert machine.guest.warnings() == []


def test_a_qemu_that_is_killed_while_a_snapshot_is_made_leaves_nothing(
    config: MachineConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYHARNESS_CACHE", str(tmp_path / "cache"))
    logs = tmp_path / "logs"
    other = replace(config, log_root=logs)

    def kill_qemu() -> None:
        """As soon as the guest's kernel runs."""
        while not any("Linux version" in log.read_text(errors="replace") for log in logs.glob("*/console.log")):
            time.sleep(0.02)
        for process in Path("/proc").glob("[0-9]*"):
            try:
                command = (process / "cmdline").read_bytes().split(b"\0")
                complaints = (process / "fd/2").readlink()
            except OSError:
                continue
            if command[0] == os.fsencode(config.qemu.binary) and complaints.is_relative_to(logs):
                os.kill(int(process.name), signal.SIGKILL)

    killer = threading.Thread(target=kill_qemu)
    killer.start()
    with pytest.raises(HarnessError, match="killed by SIGKILL"), Machine(other):
        pass
    killer.join()
    cache = Cache(tmp_path / "cache")
    assert list((cache.root / "tmp").iterdir()) == []
    assert cache.entries() == []
    with Machine(other) as machine:
        assert machine.guest.module("os").getpid() > 0
    (entry,) = Cache(tmp_path / "cache").entries()
    assert entry.kind == "snapshot"
