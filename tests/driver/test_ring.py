# SPDX-License-Identifier: GPL-2.0-only
"""A host that lies about its rings."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from pyharness.artifacts.prepare import Prepared
from pyharness.machine.vmbus import RingHeader
from tests.driver.lab import FIRST, Lab
from tests.driver.workload import PAGE

RING_SIZE = 128 << 10
"""Of one direction; its first page holds the indices."""

COMPLAINT = "outbound ring indices out of range"


@pytest.fixture
def outbound(lab: Lab) -> RingHeader:
    return lab.machine.blob_device(0).outbound


@pytest.fixture
def careful(prepared: Prepared) -> None:
    """For kernels whose VMBus looks at the host's index before it trusts it."""
    if COMPLAINT not in (prepared.kernel.source / "drivers" / "hv" / "ring_buffer.c").read_text():
        pytest.skip("this kernel's VMBus trusts the host with the ring's indices")


@contextmanager
def host_says(ring: RingHeader, word: str, value: int) -> Iterator[None]:
    """The host lies about a word of the ring's header, and says the truth afterwards."""
    truth = getattr(ring, word)
    setattr(ring, word, value)
    yield
    setattr(ring, word, truth)


@pytest.mark.usefixtures("careful")
@pytest.mark.parametrize("word", ["read_index", "write_index"])
@pytest.mark.parametrize("index", [RING_SIZE, 0xFFFFFFFF])
def test_outbound_index_outside_of_the_ring(lab: Lab, node: str, outbound: RingHeader, word: str, index: int) -> None:
    """Nothing can be sent; the caller hears so at once, and nothing of its request stays."""
    lab.tolerated = (COMPLAINT,)
    before, pinned = lab.first.counters.requests, lab.work.pinned_pages()
    with host_says(outbound, word, index):
        assert lab.work.attempt_on(node) == errno.EIO
        assert lab.pending() == []
        assert lab.work.pinned_pages() == pinned
    assert lab.work.attempt_on(node) == 0
    assert lab.first.counters.requests == before + 1


def test_killed_while_the_ring_is_full(lab: Lab, node: str, outbound: RingHeader) -> None:
    """The host makes no room: callers stand in line. One that is killed leaves it, the next is served when there is."""
    before, pinned = lab.first.counters.requests, lab.work.pinned_pages()
    callers = []
    with host_says(outbound, "read_index", (outbound.write_index + 8) % (RING_SIZE - PAGE)):
        for count in (1, 2):
            callers.append(lab.work.start("waiter_errno", node))
            lab.work.wait_for_pending(str(FIRST), count)
        assert [row[1] for row in lab.pending()] == ["queued", "queued"]
        callers[0].kill()
        assert callers[0].wait() == 9, "killed by signal 9"
        assert [row[1] for row in lab.pending()] == ["queued"]
        assert lab.first.counters.requests == before
    assert lab.work.attempt_on(node) == 0
    assert callers[1].value() == 0
    assert lab.first.counters.requests == before + 2
    assert lab.work.pinned_pages() == pinned
