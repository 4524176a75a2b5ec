# SPDX-License-Identifier: GPL-2.0-only
"""The guest believes that it runs on Hyper-V, and VMBus connects."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from pyharness.artifacts.prepare import Prepared
from pyharness.machine.initramfs import read_module
from pyharness.machine.vm import Machine
from tests.conftest import SharedMachine
from tests.devices import NULL_DEVICE, SERVED_DEVICE

AZURE_BLOB_CLASS = "0590b792-db64-45cc-81db-b8d70c577c9e"
PCI_CLASS = "44c4f61d-4444-4400-9d52-802e27ede19f"
DEVICES = "/sys/bus/vmbus/devices"
NODE_TIMEOUT_S = 60


@pytest.fixture
def vmbus(machine: Machine, prepared: Prepared) -> Iterator[Machine]:
    machine.guest.insmod(prepared.modules.vmbus.path)
    # It makes a device of each offer in its own time, for which insmod does not wait.
    for device in (SERVED_DEVICE, NULL_DEVICE):
        machine.guest.wait_for_node(f"{DEVICES}/{device}", NODE_TIMEOUT_S)
    yield machine
    machine.guest.rmmod("hv_vmbus")


def texts(machine: Machine, start: int = 0) -> str:
    return "\n".join(message.text for message in machine.guest.dmesg(start))


def test_the_kernel_detects_hyper_v(machine: Machine) -> None:
    assert "Hypervisor detected: Microsoft Hyper-V" in texts(machine)


def test_the_guest_runs_the_chosen_kernel(machine: Machine, prepared: Prepared) -> None:
    assert machine.guest.module("os").uname().release == prepared.kernel.release
    assert machine.guest.module("os").cpu_count() == machine.config.cpus


@pytest.mark.parametrize("cpu", range(2))
def test_vmbus_connects_whichever_cpu_loads_it(machine: Machine, prepared: Prepared, cpu: int) -> None:
    """The hypercall page and the guest's id belong to the partition; held per CPU, loading fails on all but one."""
    guest = machine.guest
    everywhere = set(guest.module("os").sched_getaffinity(0))
    guest.module("os").sched_setaffinity(0, (cpu,))
    try:
        mark = len(guest.dmesg())
        guest.insmod(prepared.modules.vmbus.path)
        assert re.search(r"hv_vmbus: Vmbus version:\d+\.\d+", texts(machine, mark))
        guest.rmmod("hv_vmbus")
    finally:
        guest.module("os").sched_setaffinity(0, tuple(everywhere))


def test_every_device_is_offered(vmbus: Machine) -> None:
    assert {str(SERVED_DEVICE), str(NULL_DEVICE)} <= set(vmbus.guest.module("os").listdir(DEVICES))


def offered_classes(machine: Machine) -> str:
    return machine.guest.run("sh", "-c", "cat /sys/bus/vmbus/devices/*/class_id").stdout.decode()


def test_the_patched_vmbus_ignores_the_vpci_companion(vmbus: Machine) -> None:
    classes = offered_classes(vmbus)
    assert AZURE_BLOB_CLASS in classes
    assert PCI_CLASS not in classes


def test_the_stock_vmbus_shows_the_vpci_companion(shared_machine: SharedMachine, prepared: Prepared) -> None:
    """What the patch is for: without it the companion is a device that a PCI driver would bind to.

    In a guest of its own, for it also leaks what another patch frees.
    """
    with Machine(shared_machine.config) as machine:
        machine.guest.insmod(read_module(prepared.kernel.stock_vmbus))
        classes = offered_classes(machine)
        assert AZURE_BLOB_CLASS in classes
        assert PCI_CLASS in classes


def test_nodes_come_and_go_with_the_driver(vmbus: Machine, prepared: Prepared) -> None:
    guest = vmbus.guest
    watch = guest.uevents()
    guest.insmod(prepared.modules.driver.path)
    guest.wait_for_node("/dev/azure_blob", NODE_TIMEOUT_S)
    guest.wait_for_node("/dev/azure_blob1", NODE_TIMEOUT_S)
    added = watch.wait(lambda event: event.get("DEVNAME") == "azure_blob" and event["ACTION"] == "add", NODE_TIMEOUT_S)
    assert added["SUBSYSTEM"] == "misc"
    guest.rmmod("hv_azure_blob")
    guest.wait_for_node("/dev/azure_blob", NODE_TIMEOUT_S, present=False)
    watch.wait(lambda event: event.get("DEVNAME") == "azure_blob" and event["ACTION"] == "remove", NODE_TIMEOUT_S)


def test_a_request_passes_the_whole_way(vmbus: Machine, prepared: Prepared) -> None:
    guest = vmbus.guest
    guest.insmod(prepared.modules.driver.path)
    try:
        guest.wait_for_node("/dev/azure_blob1", NODE_TIMEOUT_S)
        nodes = guest.run("sh", "-c", f"ls /sys/bus/vmbus/devices/{NULL_DEVICE}/misc").stdout.decode().split()
        with guest.module("pyharness.client.device").BlobDevice(f"/dev/{nodes[0]}") as device:
            assert device.request(b"GET").status == 0
        interrupts = guest.module("pathlib").Path("/proc/interrupts").read_text()
        assert re.search(r"^\s*HYP:.*[1-9]", interrupts, re.MULTILINE), interrupts
    finally:
        guest.rmmod("hv_azure_blob")


def test_a_module_that_is_none_is_refused_with_the_kernels_reason(
    machine: Machine, shared_machine: SharedMachine
) -> None:
    shared_machine.tolerated = ("Invalid ELF header",)
    with pytest.raises(OSError, match="Exec format error") as caught:
        machine.guest.insmod(b"not an ELF file")
    assert any("ELF" in note for note in caught.value.__notes__)


def test_unloading_what_is_not_loaded_is_enoent(machine: Machine) -> None:
    with pytest.raises(FileNotFoundError):
        machine.guest.rmmod("hv_vmbus")


def test_the_kernels_warnings_are_seen(machine: Machine, shared_machine: SharedMachine) -> None:
    """The check that guards every other test: what a test provokes must be found."""
    shared_machine.tolerated = ("pyharness: level",)
    guest = machine.guest
    mark = len(guest.dmesg())
    kmsg = guest.module("pathlib").Path("/dev/kmsg")
    for level in (3, 4, 5, 6):
        kmsg.write_text(f"<{level}>pyharness: level {level}\n")
    assert [message.text for message in guest.warnings(mark)] == ["pyharness: level 3", "pyharness: level 4"]
    assert guest.dmesg(mark)[-1].text == "pyharness: level 6"
