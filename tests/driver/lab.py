# SPDX-License-Identifier: GPL-2.0-only
"""The host's half of the driver tests: a backend that checks what arrives, and the VM with three devices."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyharness.machine.vm import Machine
from pyharness.vsp.request import VspRequest
from pyharness.vsp.server import VspServer
from tests.driver.pattern import Order, pattern

FIRST = uuid.UUID("7e1a0c52-91b4-4d07-8f1e-b10b00000001")
SECOND = uuid.UUID("7e1a0c52-91b4-4d07-8f1e-b10b00000002")
NULL = uuid.UUID("7e1a0c52-91b4-4d07-8f1e-b10b00000003")
"""The device that has no backend."""

_GUEST_DIRECTORY = "/run/pyharness-tests"
_SENT = ("__init__.py", "driver/__init__.py", "driver/pattern.py", "driver/workload.py")
_MODULES_IN_GUEST = "/run/pyharness-modules"


class OrderBackend:
    """Checks an upload against its seed and answers with the patterns that the order asks for."""

    def __init__(self) -> None:
        self.served = 0

    def handle(self, request: VspRequest) -> None:
        """A damaged upload raises, so the guest sees INTERNAL_ERROR and the test sees it in the server's errors."""
        order = Order.parse(request.request.read())
        if request.data_valid.read() != pattern(order.out_seed, order.out_len):
            raise ValueError(f"the {order.out_len} uploaded bytes of seed {order.out_seed} have been damaged")
        request.data.write(pattern(order.in_seed, order.in_len))
        request.response.write(pattern(order.response_seed, order.response_len))
        self.served += 1
        request.complete(response_len=order.response_len)


@dataclass
class Lab:
    """A booted guest with the driver loaded, two devices with a VSP each and one without."""

    machine: Machine
    first: VspServer
    second: VspServer
    work: Any
    """Proxy of tests/driver/workload.py as imported in the guest."""
    driver: str
    """The module's file in the guest."""

    def node(self, instance: uuid.UUID = FIRST) -> str:
        """The device's node in the guest."""
        return str(self.work.nodes()[str(instance)])

    def guest_module(self, name: str) -> Any:
        """A module of the guest's Python."""
        return self.machine.guest.module(name)

    def pending(self, instance: uuid.UUID = FIRST) -> list[list[str]]:
        """Rows of the device's pending_requests."""
        return [list(row) for row in self.work.pending(str(instance))]


def push(machine: Machine, content: bytes, path: str) -> None:
    """Write a file in the guest."""
    target = machine.guest.module("pathlib").Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(content)


def push_workload(machine: Machine) -> Any:
    """Send the guest's half of the tests and import it there."""
    tests = Path(__file__).parent.parent
    for name in _SENT:
        push(machine, (tests / name).read_bytes(), f"{_GUEST_DIRECTORY}/tests/{name}")
    machine.guest.module("sys").path.insert(0, _GUEST_DIRECTORY)
    return machine.guest.module("tests.driver.workload")


@contextmanager
def lab_on(machine: Machine, vmbus: Path, driver: Path) -> Iterator[Lab]:
    """Attach both VSPs, load the modules and wait for the nodes."""
    with (
        VspServer(machine.vsp_socket(0), OrderBackend()) as first,
        VspServer(machine.vsp_socket(1), OrderBackend()) as second,
    ):
        work = push_workload(machine)
        for module in (vmbus, driver):
            path = f"{_MODULES_IN_GUEST}/{module.name}"
            push(machine, module.read_bytes(), path)
            assert work.load(path) == 0
        work.wait_for_nodes(3)
        yield Lab(machine, first, second, work, path)


def release(server: VspServer) -> None:
    """Serve what is held as if it had just arrived."""
    server.behaviour = None
    for request in server.in_flight:
        server.backend.handle(request)
