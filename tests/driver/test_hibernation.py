# SPDX-License-Identifier: GPL-2.0-only
"""Suspend and resume of busy and idle devices, in a hibernation that the kernel's own test mode turns back."""

from __future__ import annotations

import errno
from collections.abc import Iterator

import pytest

from pyharness.vsp.server import VspServer
from tests.driver.lab import FIRST, NULL, SECOND, Lab


@pytest.fixture
def open_file(lab: Lab, node: str) -> Iterator[int]:
    fd = lab.work.hold_open(node)
    yield fd
    lab.guest.module("os").close(fd)


def test_hibernation(lab: Lab, node: str, vsp: VspServer, open_file: int) -> None:
    """Nodes and open files stay and serve on. Who waited gets EIO, and a late answer to it comes to nothing."""
    nodes = dict(lab.work.nodes())
    before = lab.work.pinned_pages()
    vsp.behaviour = lambda request: True
    waiter = lab.work.start("waiter_errno", node)
    (held,) = vsp.wait_in_flight(1)
    lab.work.hibernate()
    assert waiter.value() == errno.EIO
    assert lab.work.pinned_pages() == before
    assert not held.complete(), "the channel it came on is closed"
    vsp.behaviour = None
    assert dict(lab.work.nodes()) == nodes
    assert lab.work.attempt(open_file) == 0
    for instance in (FIRST, SECOND):
        assert lab.work.attempt_on(nodes[str(instance)]) == 0
    assert lab.work.answer_of(nodes[str(NULL)])[:2] == (0, 0)
