# SPDX-License-Identifier: GPL-2.0-only
"""A host that lies about its rings."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from pyharness.artifacts.prepare import Prepared
from pyharness.machine.vmbus import RingHeader
from pyharness.vsp.frames import PacketType
from pyharness.vsp.wire import vmbus_packet
from tests.driver.departure import wait_until_served
from tests.driver.lab import FIRST, SECOND, Lab, release
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


# -- lies about what comes in, which the guest believes: an answer may be lost, and nothing else

IN_FLIGHT = 4
IGNORED = ("ignored the completion of", "ignored a packet of type", "malformed completion", "suppressed")


@contextmanager
def requests_in_flight(lab: Lab) -> Iterator[None]:
    """Each ends as its answer or the device's end has it, with the device taken away, and given back after it."""
    pinned = lab.work.pinned_pages()
    lab.tolerated = IGNORED
    lab.first.behaviour = lambda request: True
    callers = [lab.work.start("waiter_errno", lab.node()) for _ in range(IN_FLIGHT)]
    lab.first.wait_in_flight(IN_FLIGHT)
    yield
    lab.first.behaviour = None
    device = lab.machine.blob_device(0)
    device.unplug()
    assert {caller.value() for caller in callers} <= {0, errno.EIO, errno.ENODEV}
    assert lab.work.pinned_pages() == pinned
    device.plug()
    wait_until_served(lab)
    lab.work.exchange_on(lab.node(), 1, 1000, 1000)


@pytest.mark.parametrize("word", ["write_index", "read_index", "interrupt_mask", "pending_send_size", "feature_bits"])
@pytest.mark.parametrize("value", [0, 4, 20, 4096, RING_SIZE - PAGE - 8, RING_SIZE, 0xFFFFFFFF], ids=hex)
def test_inbound_ring_with_a_lie(lab: Lab, word: str, value: int) -> None:
    device = lab.machine.blob_device(0)
    with requests_in_flight(lab):
        with host_says(device.inbound, word, value):
            device.signal()
            lab.work.exchange_on(lab.node(SECOND), 1, 1000, 1000)
            release(lab.first)
        device.signal()
        lab.work.exchange_on(lab.node(SECOND), 2, 1000, 1000)


def lying(**wrong: int) -> bytes:
    """The completion of a request that is not, with a descriptor that lies."""
    return vmbus_packet(bytes(16), PacketType.COMPLETION, 999_999, **wrong)


PACKETS = {
    "no length": lying(len8=0),
    "shorter than its descriptor": lying(len8=1),
    "shorter than it is": lying(len8=3),
    "longer than it is": lying(len8=5),
    "longer than the ring": lying(len8=0xFFFF),
    "payload before its descriptor's end": lying(offset8=0),
    "payload at its end": lying(offset8=4),
    "payload after its end": lying(offset8=5),
    "payload out of the ring": lying(offset8=0xFFFF),
    "both out of the ring": lying(offset8=0xFFFF, len8=0xFFFF),
}


@pytest.mark.parametrize("packet", PACKETS)
def test_packet_with_a_descriptor_that_lies(lab: Lab, packet: str) -> None:
    with requests_in_flight(lab):
        for _ in range(3):
            lab.first.send_raw(PACKETS[packet])
        lab.work.exchange_on(lab.node(SECOND), 1, 1000, 1000)
        release(lab.first)
        lab.work.exchange_on(lab.node(SECOND), 2, 1000, 1000)
