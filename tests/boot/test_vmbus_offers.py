# SPDX-License-Identifier: GPL-2.0-only
"""What the patched hv_vmbus makes of offers: the companion that it ignores, sockets, and rescinds after either.

Each test has a guest of its own: a stock hv_vmbus leaks what a patch frees, and one without its patches hangs.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from pyharness.artifacts.cache import Cache
from pyharness.artifacts.modules import DRIVER, build_vmbus
from pyharness.artifacts.prepare import Prepared
from pyharness.errors import GuestCrashed, HarnessError, TimedOut
from pyharness.guest.host import Task
from pyharness.judge import Judge
from pyharness.machine.config import BlobDevice, MachineConfig
from pyharness.machine.initramfs import read_module
from pyharness.machine.vm import Machine
from pyharness.machine.vmbus import MessageType, VmbusDevice
from pyharness.progress import Progress
from tests.devices import NULL_DEVICE, SERVED_DEVICE
from tests.driver.lab import until
from tests.planted.faults import Change, plant

COMPANION = "d4573da2-2caa-4711-a8f9-bbabf4ee9685"
DEVICES = "/sys/bus/vmbus/devices"
NODE_TIMEOUT_S = 60.0
HASTY = "/run/hasty"
HANG_S = 10.0
"""How long a rescind is waited for that is expected to hang; one that does not takes milliseconds."""

IGNORING_PATCH = Path("kernel/patches/0001-Drivers-hv-vmbus-Ignore-the-Azure-Blob-device-s-VPCI.patch")
READING_PATCH = Path("kernel/patches/0005-Drivers-hv-vmbus-Never-read-past-what-the-host-has-w.patch")
FREEING_PATCH = Path("kernel/patches/0006-Drivers-hv-vmbus-Free-the-messages-that-nobody-handl.patch")
CLOSING_PATCH = Path("kernel/patches/0004-Drivers-hv-vmbus-Let-a-rescind-end-the-closing-of-a-.patch")

SOCKETS = {
    "hv-socket-offer": "d0c5a1f2-8f3b-4d1e-a6c7-5b2e9f0a1c01",
    "hv-socket-offer-azure-blob": "d0c5a1f2-8f3b-4d1e-a6c7-5b2e9f0a1c02",
    "hv-socket-offer-vpci-companion": COMPANION,
}
"""Offers of Hyper-V sockets by QEMU's device, with the instance. Services are GUIDs that mean something else too."""

one_kernel = pytest.mark.default_kernel_only("shows that the test beside it can fail")


@contextmanager
def guest_with(config: MachineConfig, vmbus: bytes | Path, *, companion: bool = True) -> Iterator[Machine]:
    """A guest with this hv_vmbus loaded, two Azure Blob devices without a backend, and perhaps the companion."""
    devices = tuple(BlobDevice(instance, backend=False) for instance in (SERVED_DEVICE, NULL_DEVICE))
    with Machine(replace(config, blob_devices=devices, vpci_companion=companion)) as machine:
        machine.guest.insmod(vmbus)
        for device in devices:
            machine.guest.wait_for_node(f"{DEVICES}/{device.instance}", NODE_TIMEOUT_S)
        yield machine


@pytest.fixture
def patched(config: MachineConfig, prepared: Prepared) -> Iterator[Machine]:
    with guest_with(config, prepared.modules.vmbus.path) as machine:
        mark = len(machine.guest.dmesg())
        yield machine
        assert machine.guest.warnings(mark) == []


def bound_to(machine: Machine, driver: str) -> list[str]:
    return [name for name in machine.guest.module("os").listdir(f"/sys/bus/vmbus/drivers/{driver}") if "-" in name]


def load_pci(machine: Machine, prepared: Prepared) -> Task:
    """Load the kernel's own driver for PCI pass-through, which may wait for its probes."""
    controllers = prepared.kernel.modules / "kernel/drivers/pci/controller"
    machine.guest.insmod(read_module(controllers / "pci-hyperv-intf.ko"))
    machine.guest.push(read_module(controllers / "pci-hyperv.ko"), "/run/pci-hyperv.ko")
    return machine.guest.spawn(machine.guest.module("pyharness.guest.kernel").insmod, "/run/pci-hyperv.ko")


@pytest.mark.kernel_has("PCI_HYPERV")
def test_hv_pci_never_sees_the_companion(patched: Machine, prepared: Prepared) -> None:
    load_pci(patched, prepared).result(NODE_TIMEOUT_S)
    patched.guest.insmod(prepared.modules.driver.path)
    assert bound_to(patched, "hv_pci") == []
    assert sorted(bound_to(patched, DRIVER)) == sorted([str(SERVED_DEVICE), str(NULL_DEVICE)])


@one_kernel
@pytest.mark.kernel_has("PCI_HYPERV")
def test_hv_pci_would_wait_for_the_companion(config: MachineConfig, prepared: Prepared) -> None:
    """With the stock hv_vmbus its probe asks the companion for a protocol, which never answers."""
    with guest_with(config, read_module(prepared.kernel.stock_vmbus)) as machine:
        loading = load_pci(machine, prepared)
        machine.guest.wait_for_node(f"{DEVICES}/{COMPANION}/driver", NODE_TIMEOUT_S)
        VmbusDevice(machine.qmp, "hv-vpci-companion", "vpci").unplug()
        loading.result(NODE_TIMEOUT_S)


# -- sockets


def plug_sockets(machine: Machine) -> list[VmbusDevice]:
    """Returns once the guest has made a device of each."""
    sockets = [VmbusDevice(machine.qmp, driver, driver) for driver in SOCKETS]
    for socket in sockets:
        socket.plug()
        machine.guest.wait_for_node(f"{DEVICES}/{SOCKETS[socket.driver]}", NODE_TIMEOUT_S)
    return sockets


def test_sockets_are_devices_of_their_own(config: MachineConfig, prepared: Prepared) -> None:
    """Their type is a service, whatever GUID it has: none is ignored, none is bound, and nothing is said of them."""
    with guest_with(config, prepared.modules.vmbus.path, companion=False) as machine:
        machine.guest.insmod(prepared.modules.driver.path)
        mark = len(machine.guest.dmesg())
        sockets = plug_sockets(machine)
        assert sorted(bound_to(machine, DRIVER)) == sorted([str(SERVED_DEVICE), str(NULL_DEVICE)])
        for socket in sockets:
            socket.unplug()
        assert machine.guest.dmesg(mark) == []
        assert sorted(machine.guest.module("os").listdir(DEVICES)) == sorted([str(SERVED_DEVICE), str(NULL_DEVICE)])


# -- rescinds after an ignored offer


def test_rescind_after_an_ignored_offer(patched: Machine) -> None:
    patched.blob_device(0).unplug()
    assert str(SERVED_DEVICE) not in patched.guest.module("os").listdir(DEVICES)
    patched.blob_device(0).plug()
    patched.guest.wait_for_node(f"{DEVICES}/{SERVED_DEVICE}", NODE_TIMEOUT_S)


def test_rescind_of_the_ignored_offer(patched: Machine) -> None:
    """The guest knows of no such channel, and goes on."""
    VmbusDevice(patched.qmp, "hv-vpci-companion", "vpci").rescind()
    patched.blob_device(0).unplug()
    patched.blob_device(1).unplug()
    assert list(patched.guest.module("os").listdir(DEVICES)) == []


@one_kernel
def test_rescind_hangs_when_the_ignored_offer_stays_in_progress(
    config: MachineConfig, prepared: Prepared, tmp_path: Path
) -> None:
    """The patch without its atomic_dec(): so the test above would catch it."""
    forgotten = Change(
        "\t\tatomic_dec(&vmbus_connection.offer_in_progress);\n", "\t\t(void)offer;\n", file=IGNORING_PATCH
    )
    vmbus = build_vmbus(prepared.kernel, Cache.open(), Progress(quiet=True), plant((forgotten,), tmp_path / "changed"))
    with guest_with(config, vmbus.path) as machine, pytest.raises(TimedOut, match="has not released"):
        machine.blob_device(0).unplug(HANG_S)


# -- devices that the guest has not heard of, or does not hear of any more


def test_unplug_before_the_bus_is_used(config: MachineConfig, prepared: Prepared) -> None:
    """Nobody is asked: it goes at once, and what is on the bus when the guest connects is offered."""
    devices = tuple(BlobDevice(instance, backend=False) for instance in (SERVED_DEVICE, NULL_DEVICE))
    with Machine(replace(config, blob_devices=devices)) as machine:
        machine.blob_device(0).unplug()
        machine.blob_device(1).unplug()
        machine.blob_device(1).plug()
        machine.guest.insmod(prepared.modules.vmbus.path)
        machine.guest.wait_for_node(f"{DEVICES}/{NULL_DEVICE}", NODE_TIMEOUT_S)
        assert list(machine.guest.module("os").listdir(DEVICES)) == [str(NULL_DEVICE)]


def test_what_is_not_released_goes_when_the_guest_leaves_the_bus(patched: Machine) -> None:
    """The guest ignored the offer, so it ignores the rescind; QEMU does not wait for it longer than for the guest."""
    companion = VmbusDevice(patched.qmp, "hv-vpci-companion", "vpci")
    companion.rescind()
    patched.blob_device(0).unplug()
    with pytest.raises(HarnessError, match="already in the process of unplug"):
        companion.rescind()
    patched.guest.rmmod("hv_vmbus")
    companion.wait_unplugged()


# -- rescind of a channel whose closing nobody answers


def rescind_while_closing(machine: Machine, prepared: Prepared, timeout_s: float) -> None:
    machine.guest.insmod(prepared.modules.driver.path)
    machine.guest.wait_for_node(f"{DEVICES}/{SERVED_DEVICE}/misc", NODE_TIMEOUT_S)
    device = machine.blob_device(0)
    device.ignore(MessageType.GPADL_TEARDOWN)
    unbind = machine.guest.module("pathlib").Path(f"/sys/bus/vmbus/drivers/{DRIVER}/unbind")
    unbinding = machine.guest.spawn(unbind.write_text, str(SERVED_DEVICE))
    until(lambda: device.unheard == 1, "the closing")
    device.unplug(timeout_s)
    unbinding.result(NODE_TIMEOUT_S)


def test_rescind_while_closing(patched: Machine, prepared: Prepared) -> None:
    rescind_while_closing(patched, prepared, NODE_TIMEOUT_S)


@one_kernel
def test_rescind_while_closing_hangs_without_the_patch(
    config: MachineConfig, prepared: Prepared, tmp_path: Path
) -> None:
    """A fault of hv_vmbus in all kernels so far."""
    vmbus = vmbus_without(CLOSING_PATCH, prepared, tmp_path)
    with guest_with(config, vmbus) as machine, pytest.raises(TimedOut, match="has not released"):
        rescind_while_closing(machine, prepared, HANG_S)


# -- offers that arrive while the guest leaves the bus


def leave_in_haste(machine: Machine, vmbus: Path) -> None:
    guest = machine.guest
    guest.push(Path(__file__).with_name("hasty.py"), f"{HASTY}/hasty.py")
    guest.module("sys").path.insert(0, HASTY)
    guest.push(vmbus, "/run/hv_vmbus.ko")
    guest.module("hasty").load_and_unload("/run/hv_vmbus.ko")


@pytest.mark.kernel_has("MEM_ALLOC_PROFILING")
def test_leaving_with_offers_under_way(machine: Machine, prepared: Prepared) -> None:
    leave_in_haste(machine, prepared.modules.vmbus.path)


@pytest.mark.kernel_has("MEM_ALLOC_PROFILING")
def test_leaving_with_offers_under_way_leaks_without_the_patch(
    config: MachineConfig, prepared: Prepared, tmp_path: Path
) -> None:
    """A fault of hv_vmbus in all kernels so far."""
    devices = tuple(BlobDevice(instance, backend=False) for instance in (SERVED_DEVICE, NULL_DEVICE))
    with Machine(replace(config, blob_devices=devices)) as machine:
        judge = Judge(machine)
        judge.begin("leaving in haste")
        leave_in_haste(machine, vmbus_without(FREEING_PATCH, prepared, tmp_path))
        with pytest.raises(GuestCrashed, match=r"vmbus_on_msg_dpc has .* allocated at module unload"):
            judge.verdict()


# -- a ring whose index the host has made up


@one_kernel
def test_index_outside_of_the_ring_without_the_patch(config: MachineConfig, prepared: Prepared, tmp_path: Path) -> None:
    """What tests/driver/test_ring.py has the guest survive: a fault of hv_vmbus in all kernels so far."""
    with guest_with(config, vmbus_without(READING_PATCH, prepared, tmp_path)) as machine:
        machine.guest.insmod(prepared.modules.driver.path)
        machine.guest.wait_for_node(f"{DEVICES}/{SERVED_DEVICE}/misc", NODE_TIMEOUT_S)
        device = machine.blob_device(0)
        device.inbound.write_index = 0xFFFFFFFF
        device.signal()
        until(lambda: machine.failure is not None, "the end of the guest")
        with pytest.raises(GuestCrashed):
            machine.check()


def vmbus_without(patch: Path, prepared: Prepared, directory: Path) -> Path:
    """hv_vmbus with all patches but this."""
    root = plant((), directory / "changed")
    (root / patch).unlink()
    return build_vmbus(prepared.kernel, Cache.open(), Progress(quiet=True), root).path
