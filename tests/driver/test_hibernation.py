# SPDX-License-Identifier: GPL-2.0-only
"""Suspend and resume of busy and idle devices, in a hibernation that the kernel's own test mode turns back."""

from __future__ import annotations

import errno
from collections.abc import Iterator

import pytest

from pyharness.vsp.server import VspServer
from tests.driver.departure import wait_until_served
from tests.driver.lab import FIRST, NULL, SECOND, Lab


@pytest.fixture
def open_file(lab: Lab, node: str) -> Iterator[int]:
    fd = lab.work.hold_open(node)
    yield fd
    lab.guest.module("os").close(fd)


def test_hibernation(lab: Lab, node: str, vsp: VspServer, open_file: int) -> None:
    """Nodes and open files stay and serve on, whatever their users were in the middle of.

    Who waited for the host gets EIO, and a late answer to it comes to nothing; of who was killed nothing stays; who
    waited for room in the ring is served afterwards.
    """
    nodes = dict(lab.work.nodes())
    before = lab.work.pinned_pages()
    vsp.behaviour = lambda request: True
    waiter = lab.work.start("waiter_errno", node)
    killed = lab.work.start("waiter", node, 70)
    held = vsp.wait_in_flight(2)
    killed.kill()
    killed.wait()
    outbound = lab.machine.blob_device(1).outbound
    outbound.read_index = outbound.write_index + 8
    queued = lab.work.start("waiter_errno", nodes[str(SECOND)])
    lab.work.wait_for_pending(str(SECOND), 1)
    lab.work.hibernate()
    assert waiter.value() == errno.EIO
    assert queued.value() == 0
    assert lab.work.pinned_pages() == before
    assert not [request for request in held if request.complete()], "the channel they came on is closed"
    vsp.behaviour = None
    assert dict(lab.work.nodes()) == nodes
    assert lab.work.attempt(open_file) == 0
    for instance in (FIRST, SECOND):
        assert lab.work.attempt_on(nodes[str(instance)]) == 0
    assert lab.work.answer_of(nodes[str(NULL)])[:2] == (0, 0)


def test_device_that_went_and_came_before_a_hibernation(lab: Lab) -> None:
    """It is one of those that come back."""
    device = lab.machine.blob_device(0)
    device.unplug()
    device.plug()
    wait_until_served(lab)
    lab.work.hibernate()
    wait_until_served(lab)
    lab.work.exchange_on(lab.node(), 1, 1000, 1000)
