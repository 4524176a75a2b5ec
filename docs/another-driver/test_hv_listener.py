# SPDX-License-Identifier: GPL-2.0-only
"""A driver of another repository, built, booted, and judged."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import pytest

from pyharness.artifacts.cache import Cache
from pyharness.artifacts.modules import build_module
from pyharness.artifacts.prepare import Prepared, prepare
from pyharness.judge import Judge
from pyharness.machine.accel import choose_accelerator
from pyharness.machine.config import BlobDevice, MachineConfig
from pyharness.machine.vm import Machine
from pyharness.progress import Progress

HERE = Path(__file__).parent
NAME = "hv_listener"
DEVICE = UUID("7eb4910c-0d4e-4b1e-9f1e-0b0000000001")
BOUND = f"/sys/bus/vmbus/drivers/{NAME}/{DEVICE}"
TIMEOUT_S = 60.0


@pytest.fixture(scope="session", params=["debian-6.12"])
def prepared(request: pytest.FixtureRequest) -> Prepared:
    """A kernel, QEMU and a guest image. More kernels are more rows: `pyharness kernels` lists them."""
    return prepare(request.param, Cache.open(), Progress())


@pytest.fixture
def machine(prepared: Prepared) -> Iterator[Machine]:
    """A guest with the driver loaded. After the test nothing may be left of it, without a complaint of the kernel."""
    sources = {name: HERE / name for name in (f"{NAME}.c", "Kbuild")}
    module = build_module(prepared.kernel, NAME, sources, "", Cache.open(), Progress())
    config = MachineConfig(
        kernel=prepared.kernel,
        qemu=prepared.qemu,
        root_image=prepared.root_image,
        accelerator=choose_accelerator(),
        blob_devices=(BlobDevice(DEVICE, backend=False),),
        log_root=HERE / "build",
    )
    with Machine(config) as machine:
        judge = Judge(machine)
        judge.begin(NAME)
        machine.guest.insmod(prepared.modules.vmbus.path)
        machine.guest.insmod(module.path)
        machine.guest.wait_for_node(BOUND, TIMEOUT_S)
        yield machine
        machine.guest.rmmod(NAME)
        machine.guest.rmmod("hv_vmbus")
        judge.verdict()
        judge.finish()


def test_device_goes_and_comes_back(machine: Machine) -> None:
    """The host rescinds the channel while it is open, and offers the device again."""
    device = machine.blob_device(0)
    for _ in range(3):
        device.unplug()
        machine.guest.wait_for_node(BOUND, TIMEOUT_S, present=False)
        device.plug()
        machine.guest.wait_for_node(BOUND, TIMEOUT_S)


def test_unbind_and_bind(machine: Machine) -> None:
    """The channel is closed and opened again, without the host's doing."""
    driver = machine.guest.module("pathlib").Path(f"/sys/bus/vmbus/drivers/{NAME}")
    (driver / "unbind").write_text(str(DEVICE))
    (driver / "bind").write_text(str(DEVICE))
    machine.guest.wait_for_node(BOUND, TIMEOUT_S)
