# SPDX-License-Identifier: GPL-2.0-only
"""What the host answers and how the driver takes it: statuses, malformed and stray packets, several devices."""

from __future__ import annotations

import errno
import struct
import uuid
from collections.abc import Callable

import pytest

from pyharness.vsp.request import VspRequest
from pyharness.vsp.server import VspServer
from pyharness.vsp.wire import Completion, Status
from tests.driver.lab import FIRST, NULL, SECOND, Lab, release, until


@pytest.mark.parametrize("status", [1, 0x80000005, *(status for status in Status if status), 0xFFFFFFFF], ids=hex)
def test_host_status_is_passed_on(lab: Lab, node: str, vsp: VspServer, status: int) -> None:
    vsp.behaviour = lambda request: request.complete(error=status)
    assert tuple(lab.work.answer_of(node)) == (0, status, 0, bytes(64))


def test_status_and_response_go_together(lab: Lab, node: str, vsp: VspServer) -> None:
    def answer(request: VspRequest) -> bool:
        request.response.write(b"why it failed")
        return request.complete(error=Status.INVALID_PARAMETER, response_len=13)

    vsp.behaviour = answer
    error, status, length, response = lab.work.answer_of(node)
    assert (error, status, length) == (0, Status.INVALID_PARAMETER, 13)
    assert response == b"why it failed" + bytes(51)


def test_response_may_fill_its_buffer(lab: Lab, node: str, vsp: VspServer) -> None:
    vsp.behaviour = lambda request: request.complete(response_len=64)
    assert lab.work.answer_of(node)[:3] == (0, 0, 64)


# -- malformed completions: EIO


@pytest.mark.parametrize(
    "payload",
    [
        # VMBus counts in units of 8 bytes: a completion of 9 to 11 bytes cannot be told from one of 16.
        *(bytes(length) for length in (0, 1, 4, 8)),
        Completion(0, 65).pack(),
        Completion(0, 0x80000000).pack(),
        Completion(0, 0xFFFFFFFF).pack(),
        Completion(Status.INTERNAL_ERROR, 65).pack(),
    ],
    ids=bytes.hex,
)
def test_malformed_completion_is_eio(lab: Lab, node: str, vsp: VspServer, payload: bytes) -> None:
    def answer(request: VspRequest) -> bool:
        request.complete_raw(payload)
        return True

    vsp.behaviour = answer
    lab.tolerated = ("malformed completion", "callbacks suppressed")
    error, status, length, response = lab.work.answer_of(node)
    assert (error, status, length, response) == (errno.EIO, 0, 0, bytes(64))
    vsp.behaviour = None
    assert lab.work.attempt_on(node) == 0


@pytest.mark.parametrize("extra", [1, 4, 100, 4084])
def test_longer_completion_is_taken(lab: Lab, node: str, vsp: VspServer, extra: int) -> None:
    def answer(request: VspRequest) -> bool:
        request.complete_raw(Completion(5, 6).pack() + bytes(extra))
        return True

    vsp.behaviour = answer
    assert lab.work.answer_of(node)[:3] == (0, 5, 6)


def test_length_field_of_a_completion_means_nothing(lab: Lab, node: str, vsp: VspServer) -> None:
    def answer(request: VspRequest) -> bool:
        request.complete_raw(struct.pack("<III", 0xFFFFFFFF, 0, 3))
        return True

    vsp.behaviour = answer
    assert lab.work.answer_of(node)[:3] == (0, 0, 3)


IGNORED = ("ignored the completion of unknown request", "ignored a packet of type", "callbacks suppressed")

Stray = Callable[[VspRequest], None]
STRAYS: dict[str, Stray] = {
    "unknown id": lambda request: request.complete_raw(bytes(12), transaction_id=999_999),
    "id zero": lambda request: request.complete_raw(bytes(12), transaction_id=0),
    "huge id": lambda request: request.complete_raw(bytes(12), transaction_id=2**64 - 1),
    "id of nobody in flight": lambda request: request.complete_raw(bytes(12), transaction_id=1000),
    "in-band packet": lambda request: request.complete_raw(bytes(12), packet_type=6),
    "packet type 0": lambda request: request.complete_raw(bytes(12), packet_type=0),
    "packet type 65535": lambda request: request.complete_raw(bytes(12), packet_type=0xFFFF),
    "empty in-band packet": lambda request: request.complete_raw(b"", packet_type=6),
    "4096 bytes": lambda request: request.complete_raw(bytes(4096), packet_type=6),
}


@pytest.mark.parametrize("stray", STRAYS)
def test_stray_packet_before_the_answer_is_ignored(lab: Lab, node: str, vsp: VspServer, stray: str) -> None:
    def answer(request: VspRequest) -> bool:
        STRAYS[stray](request)
        return request.complete(error=7)

    vsp.behaviour = answer
    lab.tolerated = IGNORED
    assert lab.work.answer_of(node)[:3] == (0, 7, 0)


def test_second_completion_is_ignored(lab: Lab, node: str, vsp: VspServer) -> None:
    def answer(request: VspRequest) -> bool:
        request.complete(error=7)
        request.complete_raw(Completion(8, 0).pack())
        return True

    vsp.behaviour = answer
    lab.tolerated = IGNORED
    inbound = lab.machine.blob_device(0).inbound
    for _ in range(20):
        assert lab.work.answer_of(node)[:3] == (0, 7, 0)
        # Its id may be that of the next request.
        until(lambda: inbound.read_index == inbound.write_index, "the second answer to be read")


def test_packets_that_nobody_asked_for(lab: Lab, node: str, vsp: VspServer) -> None:
    lab.tolerated = IGNORED
    for packet_type in (0, 1, 6, 7, 9, 11, 12, 0xFFFF):
        for transaction_id in (0, 1, 2**64 - 1):
            vsp.send_packet(b"unsolicited!", packet_type=packet_type, transaction_id=transaction_id)
    assert lab.work.attempt_on(node) == 0


# -- pending_requests


def test_pending_requests_while_held(lab: Lab, node: str, vsp: VspServer) -> None:
    vsp.behaviour = lambda request: True
    waiter = lab.work.start("waiter", node, 21, 5000)
    (held,) = vsp.wait_in_flight(1)
    assert held.header is not None
    ((guid, state, age_ms, timeout_ms, request_len, response_len, data_len),) = lab.pending()
    assert uuid.UUID(guid) == held.header.transaction_guid
    assert state == "sent"
    assert int(age_ms) < 600_000
    assert (timeout_ms, response_len, data_len) == ("0", "64", "5000")
    assert int(request_len) == held.header.request_buffer_length
    assert lab.pending(SECOND) == []
    release(vsp)
    assert waiter.failure() == ""
    assert lab.pending() == []


def test_pending_requests_of_a_killed_caller(lab: Lab, node: str, vsp: VspServer) -> None:
    vsp.behaviour = lambda request: True
    waiter = lab.work.start("waiter", node, 22)
    vsp.wait_in_flight(1)
    waiter.kill()
    waiter.wait()
    assert [row[1] for row in lab.pending()] == ["orphaned"]


# -- several devices


def test_devices_have_nodes_of_their_own(lab: Lab) -> None:
    nodes = dict(lab.work.nodes())
    assert set(nodes) == {str(FIRST), str(SECOND), str(NULL)}
    assert sorted(nodes.values()) == ["/dev/azure_blob", "/dev/azure_blob1", "/dev/azure_blob2"]


def test_devices_do_not_mix(lab: Lab) -> None:
    before = (lab.first.counters.requests, lab.second.counters.requests)
    lab.work.exchange_on(lab.node(FIRST), 1, 1000, 1000)
    lab.work.exchange_on(lab.node(SECOND), 2, 2000, 2000)
    lab.work.exchange_on(lab.node(SECOND), 3, 3000, 3000)
    assert (lab.first.counters.requests, lab.second.counters.requests) == (before[0] + 1, before[1] + 2)


def test_held_device_does_not_hold_the_other(lab: Lab, vsp: VspServer) -> None:
    vsp.behaviour = lambda request: True
    waiter = lab.work.start("waiter", lab.node(FIRST), 4)
    vsp.wait_in_flight(1)
    lab.work.exchange_on(lab.node(SECOND), 5, 1000, 1000)
    assert waiter.alive()
    release(vsp)
    assert waiter.failure() == ""


def test_device_without_backend_answers_with_success(lab: Lab) -> None:
    """It moves no data: neither response nor data buffer change."""
    assert tuple(lab.work.answer_of(lab.node(NULL))) == (0, 0, 0, bytes(64))
    assert lab.work.null_exchange(lab.node(NULL)) == ""


# -- the backend goes away


def test_backend_that_goes_away(lab: Lab, node: str, vsp: VspServer) -> None:
    """What it held and what comes meanwhile is answered by the device; a new backend serves again."""
    vsp.behaviour = lambda request: True
    waiter = lab.work.start("waiter_status", node)
    vsp.wait_in_flight(1)
    vsp.disconnect()
    try:
        assert tuple(waiter.value()) == (0, Status.CONNECTION_DISCONNECTED, 0)
        for _ in range(3):
            assert lab.work.answer_of(node)[:3] == (0, Status.CONNECTION_DISCONNECTED, 0)
        assert lab.pending() == []
    finally:
        vsp.behaviour = None
        vsp.reconnect()
    assert vsp.channel_open
    assert lab.work.attempt_on(node) == 0


def test_backend_that_comes_and_goes_under_load(lab: Lab, node: str, vsp: VspServer) -> None:
    """Each request is either served right or answered as disconnected; none hangs, none is lost."""
    load = lab.work.start("tolerant_clients", node, 8, 60)
    for _ in range(10):
        vsp.reconnect()
    served, disconnected = load.value()
    assert served + disconnected == 8 * 60
    assert served > 0
    assert lab.pending() == []
