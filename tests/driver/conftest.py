# SPDX-License-Identifier: GPL-2.0-only
"""One VM for all driver tests, made anew when a test has crashed it; each test finds it idle and must leave it idle."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace

import pytest

from pyharness.artifacts.prepare import Prepared
from pyharness.machine.config import BlobDevice, MachineConfig
from pyharness.machine.vm import Machine
from pyharness.vsp.server import VspServer
from tests.driver.lab import FIRST, NULL, SECOND, Lab, lab_on, release


@dataclass
class LabKeeper:
    """Keeps a lab for as long as it is fit for the next test."""

    config: MachineConfig
    prepared: Prepared
    lab: Lab | None = None
    _stack: ExitStack = field(default_factory=ExitStack)

    def fit(self) -> Lab:
        if self.lab is None:
            machine = self._stack.enter_context(Machine(self.config))
            self.lab = self._stack.enter_context(lab_on(machine, self.prepared.modules))
        return self.lab

    def discard(self) -> None:
        self.lab = None
        self._stack.close()


@pytest.fixture(scope="session")
def lab_keeper(config: MachineConfig, prepared: Prepared) -> Iterator[LabKeeper]:
    devices = (BlobDevice(FIRST), BlobDevice(SECOND), BlobDevice(NULL, backend=False))
    keeper = LabKeeper(replace(config, blob_devices=devices), prepared)
    yield keeper
    keeper.discard()


@pytest.fixture
def lab(lab_keeper: LabKeeper) -> Iterator[Lab]:
    lab = lab_keeper.fit()
    lab.tolerated = ()
    messages = len(lab.guest.dmesg())
    violations = [server.counters.violations for server in (lab.first, lab.second)]
    try:
        yield lab
        _check_idle(lab, messages, violations)
    except BaseException:
        # Whatever is wrong with this guest, the next test does not inherit it.
        lab_keeper.discard()
        raise


def _check_idle(lab: Lab, messages: int, violations: list[int]) -> None:
    for server in (lab.first, lab.second):
        release(server)
    lab.machine.check()
    for instance in (FIRST, SECOND, NULL):
        lab.work.wait_until_unpinned(str(instance))
    for server, before in zip((lab.first, lab.second), violations, strict=True):
        assert not server.errors, server.errors[0].traceback
        assert server.counters.violations == before
    warnings = [str(message) for message in lab.guest.warnings(messages)]
    assert [text for text in warnings if not any(part in text for part in lab.tolerated)] == []


@pytest.fixture
def vsp(lab: Lab) -> VspServer:
    return lab.first


@pytest.fixture
def node(lab: Lab) -> str:
    return lab.node()
