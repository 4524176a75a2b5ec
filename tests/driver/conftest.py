# SPDX-License-Identifier: GPL-2.0-only
"""One VM for all driver tests; each test finds it idle and must leave it idle."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pyharness.artifacts.cache import Cache
from pyharness.artifacts.kernels import DEFAULT_KERNEL
from pyharness.artifacts.prepare import prepare
from pyharness.machine.accel import choose_accelerator
from pyharness.machine.config import BlobDevice, MachineConfig
from pyharness.machine.vm import Machine
from pyharness.progress import Progress
from pyharness.vsp.server import VspServer
from tests.driver.lab import FIRST, NULL, SECOND, Lab, lab_on, release


@pytest.fixture(scope="session")
def whole_lab() -> Iterator[Lab]:
    prepared = prepare(DEFAULT_KERNEL, Cache.open(), Progress(quiet=True))
    config = MachineConfig(
        kernel=prepared.kernel,
        qemu=prepared.qemu,
        root_image=prepared.root_image,
        accelerator=choose_accelerator(),
        blob_devices=(BlobDevice(FIRST), BlobDevice(SECOND), BlobDevice(NULL, backend=False)),
    )
    with Machine(config) as machine, lab_on(machine, prepared.modules.vmbus, prepared.modules.driver) as lab:
        yield lab


@pytest.fixture
def lab(whole_lab: Lab) -> Iterator[Lab]:
    whole_lab.machine.check()
    yield whole_lab
    for server in (whole_lab.first, whole_lab.second):
        release(server)
    whole_lab.machine.check()
    for instance in (FIRST, SECOND, NULL):
        whole_lab.work.wait_until_unpinned(str(instance))
    for server in (whole_lab.first, whole_lab.second):
        errors, violations = list(server.errors), server.counters.violations
        server.errors.clear()
        assert not errors, errors[0].traceback
        assert not violations


@pytest.fixture
def vsp(lab: Lab) -> VspServer:
    return lab.first


@pytest.fixture
def node(lab: Lab) -> str:
    return lab.node()
