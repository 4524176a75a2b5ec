# SPDX-License-Identifier: GPL-2.0-only
"""The host's half of the driver tests: a backend that checks what arrives, and the VM with three devices."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyharness.artifacts.modules import DRIVER, Modules
from pyharness.guest.host import Guest
from pyharness.machine.vm import Machine
from pyharness.vsp.request import VspRequest
from pyharness.vsp.server import VspServer
from tests.driver.pattern import Order, pattern

FIRST = uuid.UUID("7e1a0c52-91b4-4d07-8f1e-b10b00000001")
SECOND = uuid.UUID("7e1a0c52-91b4-4d07-8f1e-b10b00000002")
NULL = uuid.UUID("7e1a0c52-91b4-4d07-8f1e-b10b00000003")
"""The device that has no backend."""

_POLL_S = 0.05
# Ends only a wait that would last for ever.
_PATIENCE_S = 100.0
_SHORT_OF_MEMORY = (
    "page allocation failure: ",
    "vmalloc error: ",
    "Failed to create slab extension vector",
)
GUEST_DIRECTORY = "/run/pyharness-tests"
_SENT = ("__init__.py", "driver/__init__.py", "driver/pattern.py", "driver/workload.py")


class OrderBackend:
    """Checks an upload against its seed and answers with the patterns that the order asks for."""

    def handle(self, request: VspRequest) -> None:
        """A damaged upload raises, so the guest sees INTERNAL_ERROR and the test sees it in the server's errors."""
        order = Order.parse(request.request.read())
        if request.data_valid.read() != pattern(order.out_seed, order.out_len):
            raise ValueError(f"the {order.out_len} uploaded bytes of seed {order.out_seed} have been damaged")
        request.data.write(pattern(order.in_seed, order.in_len))
        request.response.write(pattern(order.response_seed, order.response_len))
        request.complete(response_len=order.response_len)


@dataclass
class Lab:
    """A booted guest with the driver loaded, two devices with a VSP each and one without."""

    machine: Machine
    first: VspServer
    second: VspServer
    modules: Modules
    work: Any
    """Proxy of tests/driver/workload.py as imported in the guest."""
    tolerated: tuple[str, ...] = ()
    """Parts of kernel warnings that the present test provokes."""
    tolerated_reports: tuple[str, ...] = ()
    """Parts of reports of the kernel's detectors, and of what is left behind, that it provokes."""

    @property
    def guest(self) -> Guest:
        return self.machine.guest

    def node(self, instance: uuid.UUID = FIRST) -> str:
        """The device's node in the guest."""
        return str(self.work.nodes()[str(instance)])

    def pending(self, instance: uuid.UUID = FIRST) -> list[tuple[str, ...]]:
        """Rows of the device's pending_requests."""
        return list(self.work.pending(str(instance)))

    def load(self) -> None:
        """Load the driver and wait until its devices are in use."""
        self.guest.insmod(self.modules.driver.path)
        self.work.wait_for_nodes(3)

    def unload(self) -> None:
        """Raises OSError as rmmod would fail."""
        self.guest.rmmod(DRIVER)

    def injector(self) -> Any:
        """Proxy of tests/driver/inject.py as imported in the guest, ready to inject failures."""
        name = "driver/inject.py"
        self.guest.push(Path(__file__).parent.parent / name, f"{GUEST_DIRECTORY}/tests/{name}")
        module = self.guest.module("tests.driver.inject")
        module.prepare()
        # The kernel warns of short memory in words of many kinds, of the profile's own too.
        self.tolerated, self.tolerated_reports = ("",), _SHORT_OF_MEMORY
        return module


@contextmanager
def lab_on(machine: Machine, modules: Modules) -> Iterator[Lab]:
    """Attach both VSPs and load the modules."""
    with (
        VspServer(machine.vsp_socket(0), OrderBackend()) as first,
        VspServer(machine.vsp_socket(1), OrderBackend()) as second,
    ):
        tests = Path(__file__).parent.parent
        for name in _SENT:
            machine.guest.push(tests / name, f"{GUEST_DIRECTORY}/tests/{name}")
        machine.guest.module("sys").path.insert(0, GUEST_DIRECTORY)
        work = machine.guest.module("tests.driver.workload")
        lab = Lab(machine, first, second, modules, work)
        machine.guest.insmod(modules.vmbus.path)
        lab.load()
        yield lab


def outcome(child: Any) -> Any:
    """What a process in the guest returns. It may take longer than one call into the guest may."""
    while child.alive():
        time.sleep(_POLL_S)
    return child.value()


def until(condition: Callable[[], bool], what: str) -> None:
    """Wait for something that cannot tell by itself that it has happened."""
    deadline = time.monotonic() + _PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(_POLL_S)


def release(server: VspServer) -> None:
    """Serve what is held as if it had just arrived."""
    server.behaviour = None
    for request in server.in_flight:
        server.backend.handle(request)
