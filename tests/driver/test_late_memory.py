# SPDX-License-Identifier: GPL-2.0-only
"""What becomes of a caller that sleeps in a page fault inside the driver, and of one whose memory goes meanwhile."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pyharness.vsp.server import VspServer
from tests.driver.lab import FIRST, GUEST_DIRECTORY, Lab, release

BUFFERS = ["request", "response", "data"]
_TIMEOUT_S = 60.0


@pytest.fixture
def late(lab: Lab) -> Any:
    """tests/driver/late.py in the guest."""
    lab.guest.push(Path(__file__).with_name("late.py"), f"{GUEST_DIRECTORY}/tests/driver/late.py")
    return lab.guest.module("tests.driver.late")


@pytest.fixture
def memory(late: Any) -> Iterator[Any]:
    memory = late.LateMemory()
    yield memory
    memory.close()


@pytest.mark.parametrize("which", ["response", "data"])
def test_request_goes_on_when_its_memory_comes(lab: Lab, node: str, late: Any, memory: Any, which: str) -> None:
    before = lab.first.counters.requests
    caller = lab.guest.spawn(late.request_with, node, which, memory)
    memory.wait_for_toucher()
    assert (lab.pending(), lab.first.counters.requests) == ([], before), "it is neither queued nor sent"
    assert lab.work.attempt_on(node) == 0, "and holds up nobody"
    memory.serve()
    assert caller.result(_TIMEOUT_S) == 0
    assert lab.first.counters.requests == before + 2


@pytest.mark.parametrize("which", BUFFERS)
def test_device_goes_while_a_request_is_made(lab: Lab, node: str, late: Any, memory: Any, which: str) -> None:
    """The device was there when the call began, and is not when the request is to be queued."""
    before, pinned = lab.first.counters.requests, lab.work.pinned_pages()
    caller = lab.guest.spawn(late.request_with, node, which, memory)
    memory.wait_for_toucher()
    lab.work.unbind(str(FIRST))
    lab.work.bind(str(FIRST))
    lab.work.wait_for_nodes(3)
    memory.serve()
    assert caller.result(_TIMEOUT_S) == errno.ENODEV
    assert lab.first.counters.requests == before
    assert lab.work.pinned_pages() == pinned
    assert lab.work.attempt_on(lab.node()) == 0


@pytest.mark.parametrize("which", BUFFERS)
def test_killed_while_its_request_is_made(lab: Lab, node: str, late: Any, which: str) -> None:
    """It ends, although its memory never comes, and nothing of it stays."""
    before, pinned = lab.first.counters.requests, lab.work.pinned_pages()
    sleeper = late.Sleeper(node, which)
    assert sleeper.kill() == 9, "killed by signal 9"
    assert lab.first.counters.requests == before
    assert lab.work.pinned_pages() == pinned
    assert lab.work.attempt_on(node) == 0


def test_struct_goes_while_the_host_holds_its_request(lab: Lab, node: str, late: Any, vsp: VspServer) -> None:
    """The answer cannot be delivered; the next request is none the worse for it."""
    pinned = lab.work.pinned_pages()
    vsp.behaviour = lambda request: True
    request = late.EarlyGone()
    caller = lab.guest.spawn(request.send, node)
    vsp.wait_in_flight(1)
    request.go()
    release(vsp)
    assert caller.result(_TIMEOUT_S) == errno.EFAULT
    assert lab.work.pinned_pages() == pinned
    request.come_back()
    assert request.send(node) == 0
