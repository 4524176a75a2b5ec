# SPDX-License-Identifier: GPL-2.0-only
"""One VM for all driver tests, made anew when a test has failed; the judge sees that each leaves it as it found it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace

import pytest

from pyharness.artifacts.prepare import Prepared
from pyharness.judge import Judge
from pyharness.machine.config import BlobDevice, MachineConfig
from pyharness.machine.vm import Machine
from pyharness.vsp.backends.memory import MemoryBackend
from pyharness.vsp.server import VspServer
from tests.driver.lab import FIRST, NULL, SECOND, Lab, lab_on, release

_DEVICES = (BlobDevice(FIRST), BlobDevice(SECOND), BlobDevice(NULL, backend=False))


@dataclass
class LabKeeper:
    """Keeps a lab, and its judge, for as long as it is fit for the next test."""

    config: MachineConfig
    prepared: Prepared
    _fit: tuple[Lab, Judge] | None = None
    _stack: ExitStack = field(default_factory=ExitStack)

    def fit(self) -> tuple[Lab, Judge]:
        if self._fit is None:
            machine = self._stack.enter_context(Machine(self.config))
            judge = Judge(machine)
            judge.begin("the loading of the modules")
            self._fit = self._stack.enter_context(lab_on(machine, self.prepared.modules)), judge
        return self._fit

    def discard(self) -> None:
        self._fit = None
        self._stack.close()

    def finish(self) -> None:
        """End the lab. Raises what the judge has found out at last."""
        with self._stack:
            fit, self._fit = self._fit, None
            if fit:
                fit[1].finish()


@pytest.fixture(scope="session")
def lab_keeper(config: MachineConfig, prepared: Prepared) -> Iterator[LabKeeper]:
    keeper = LabKeeper(replace(config, blob_devices=_DEVICES), prepared)
    yield keeper
    keeper.finish()


@pytest.fixture
def lab_for_once(config: MachineConfig, prepared: Prepared) -> Iterator[Lab]:
    """A lab, for a test that leaves behind what cannot be mended; nobody looks for leaks of memory in it."""
    with Machine(replace(config, blob_devices=_DEVICES)) as machine, lab_on(machine, prepared.modules) as lab:
        judge = Judge(machine)
        judge.begin("the test")
        yield lab
        judge.verdict(lab.tolerated, lab.tolerated_reports)


@pytest.fixture
def lab(lab_keeper: LabKeeper, request: pytest.FixtureRequest) -> Iterator[Lab]:
    lab, judge = lab_keeper.fit()
    lab.tolerated = lab.tolerated_reports = ()
    violations = [server.counters.violations for server in (lab.first, lab.second)]
    try:
        judge.begin(request.node.nodeid)
        yield lab
        for server, before in zip((lab.first, lab.second), violations, strict=True):
            release(server)
            assert not server.errors, server.errors[0].traceback
            assert server.counters.violations == before
        judge.verdict(lab.tolerated, lab.tolerated_reports)
    except BaseException:
        # Whatever is wrong with this guest, the next test does not inherit it.
        lab_keeper.discard()
        raise


@pytest.fixture
def vsp(lab: Lab) -> VspServer:
    return lab.first


@pytest.fixture
def store(vsp: VspServer) -> Iterator[MemoryBackend]:
    """What the first device leads to, instead of the backend that checks patterns."""
    usual = vsp.backend
    vsp.backend = store = MemoryBackend()
    yield store
    vsp.backend = usual


@pytest.fixture
def node(lab: Lab) -> str:
    return lab.node()
