# SPDX-License-Identifier: GPL-2.0-only
"""Artifacts and machines for the tests."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest

from pyharness.artifacts.azurite import ensure_azurite
from pyharness.artifacts.cache import Cache
from pyharness.artifacts.prepare import Prepared
from pyharness.artifacts.qemu import Qemu
from pyharness.azurite import Azurite
from pyharness.coverage import Collector
from pyharness.judge import Judge
from pyharness.machine.accel import choose_accelerator
from pyharness.machine.config import BlobDevice, MachineConfig
from pyharness.machine.vm import Machine
from pyharness.progress import Progress
from pyharness.report.plugin import subjects_of
from pyharness.report.subjects import Subject
from tests.devices import NULL_DEVICE, SERVED_DEVICE


@pytest.fixture(scope="session")
def kernel_choice(request: pytest.FixtureRequest) -> str:
    """The kernel's name. All that uses it, at one remove or more, runs once per kernel of the session."""
    return str(request.param)


@pytest.fixture(scope="session")
def subject(kernel_choice: str, pytestconfig: pytest.Config) -> Subject:
    """The kernel, what its guests need, and the arguments with which a command chooses it."""
    return subjects_of(pytestconfig)[kernel_choice]


@pytest.fixture(scope="session")
def prepared(subject: Subject) -> Prepared:
    """The kernel, modules, QEMU and root image."""
    return subject.prepared


@pytest.fixture(scope="session")
def qemu(pytestconfig: pytest.Config) -> Qemu:
    """QEMU alone, for what needs no kernel: it runs once."""
    return subjects_of(pytestconfig).qemu()


@pytest.fixture(scope="session")
def config(prepared: Prepared, pytestconfig: pytest.Config) -> MachineConfig:
    """A machine without devices; `dataclasses.replace` makes others of it."""
    subjects = subjects_of(pytestconfig)
    counts = prepared.kernel.has("GCOV_KERNEL")
    return MachineConfig(
        kernel=prepared.kernel,
        qemu=prepared.qemu,
        root_image=prepared.root_image,
        accelerator=choose_accelerator(),
        cold=subjects.cold,
        dump_on_crash=subjects.dump,
        before_stop=(Collector(subjects.counters).collect,) if subjects.counters and counts else (),
    )


@dataclass
class SharedMachine:
    """One machine for the whole session; a test that crashed it does not fail the next."""

    config: MachineConfig
    machine: Machine | None = None
    judge: Judge | None = None
    tolerated: tuple[str, ...] = ()
    """Parts of kernel warnings that the present test provokes."""

    def running(self) -> Machine:
        if self.machine and self.machine.failure:
            self.stop()
        if self.machine is None:
            self.machine = Machine(self.config)
            self.machine.start()
            self.judge = Judge(self.machine)
        return self.machine

    def finish(self) -> None:
        """End the machine. Raises what its judge has found out at last."""
        try:
            if self.judge and self.machine and not self.machine.failure:
                self.judge.finish()
        finally:
            self.stop()

    def stop(self) -> None:
        if self.machine:
            self.machine.stop()
            self.machine = self.judge = None


@pytest.fixture(scope="session")
def shared_machine(config: MachineConfig) -> Iterator[SharedMachine]:
    devices = (BlobDevice(SERVED_DEVICE), BlobDevice(NULL_DEVICE, backend=False))
    shared = SharedMachine(replace(config, blob_devices=devices, vpci_companion=True))
    yield shared
    shared.finish()


@pytest.fixture
def machine(shared_machine: SharedMachine, request: pytest.FixtureRequest) -> Iterator[Machine]:
    """The session's machine; the judge sees that the test leaves it as it was, or the next one gets a fresh machine."""
    machine = shared_machine.running()
    judge = shared_machine.judge
    assert judge
    shared_machine.tolerated = ()
    try:
        judge.begin(request.node.nodeid)
        yield machine
        judge.verdict(shared_machine.tolerated)
    except BaseException:
        shared_machine.stop()
        raise


@pytest.fixture(scope="session")
def azurite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Azurite]:
    """The emulator of the blob service, on a port of its own; a test that ends it starts it again."""
    cache = Cache.open()
    installation = ensure_azurite(cache, Progress())
    with Azurite(installation, tmp_path_factory.mktemp("azurite")) as emulator:
        yield emulator
    cache.close()
