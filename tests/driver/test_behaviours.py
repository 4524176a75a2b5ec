# SPDX-License-Identifier: GPL-2.0-only
"""Each way in which a host can misbehave, against the driver: every request returns, once, and nothing is left."""

from __future__ import annotations

import errno
import time
from typing import NamedTuple

import pytest

from pyharness.vsp.behaviours import (
    BEHAVIOURS,
    after_close,
    bad_header,
    besides,
    chance,
    delay,
    disconnect,
    drop,
    duplicate,
    every,
    fail,
    first,
    hold,
    late_write,
    nth,
    other_id,
    overrun,
    reorder,
    resize,
    serve,
    stop_reading,
    unsolicited,
    wrong_id,
    wrong_type,
)
from pyharness.vsp.frames import PacketType
from pyharness.vsp.play import Behaviour
from pyharness.vsp.server import VspServer
from pyharness.vsp.wire import COMPLETION_SIZE, DESCRIPTOR_SIZE, Completion, Status, vmbus_packet
from tests.driver.lab import FIRST, Lab, outcome

SERVED = "served"
DISCONNECTED = hex(Status.CONNECTION_DISCONNECTED)
MARK = 0x1234
CLIENTS, ROUNDS = 6, 6
REQUESTS = CLIENTS * ROUNDS
STUCK = 3
"""So many clients wait at least, where each second request has to: a lucky one comes through."""
LONG = 3000.0
"""Seconds that no test waits for: what is due then comes when the block ends."""

IGNORED = ("ignored the completion of unknown request", "ignored a packet of type", "callbacks suppressed")
MALFORMED = ("malformed completion", *IGNORED)


def test_the_example(lab: Lab, node: str, vsp: VspServer) -> None:
    with vsp.behaving(first(2, hold()), every(3, fail(Status.IO_TIMEOUT)), delay(0.01)) as seen:
        clients = lab.work.start("tally", node, CLIENTS, ROUNDS)
        seen.wait("fail", 3)
        assert len(seen.held) == 2
        assert [row[1] for row in lab.pending()].count("sent") >= 2
        seen.release()
        assert dict(outcome(clients)) == {SERVED: REQUESTS * 2 // 3, hex(Status.IO_TIMEOUT): REQUESTS // 3}


# -- each behaviour, in the middle of requests of many threads


class Case(NamedTuple):
    """What the host does, what a request may come to, and what the driver may say of it."""

    behaviours: tuple[Behaviour, ...]
    outcomes: set[str]
    tolerated: tuple[str, ...] = ()
    stuck: bool = False
    """Each client waits sooner or later for an answer that comes when the block ends."""
    clients: int = CLIENTS
    rounds: int = ROUNDS


CASES = {
    "serve": Case((serve(), fail()), {SERVED}),
    "fail": Case((chance(0.5, fail(MARK, "why"), seed=3),), {SERVED, hex(MARK)}),
    "hold": Case((every(2, hold()),), {SERVED}, stuck=True),
    "drop": Case((every(2, drop()),), {SERVED}, stuck=True),
    "delay": Case((chance(0.5, delay(0.02), seed=1),), {SERVED}),
    "reorder": Case((reorder(4, "shuffled", seed=5),), {SERVED}),
    "disconnect": Case((nth(5, disconnect()),), {SERVED, DISCONNECTED}),
    "stop_reading": Case((every(9, stop_reading(0.05)),), {SERVED}),
    "unsolicited": Case((every(5, unsolicited(300, size=100)),), {SERVED}, IGNORED),
    # Linux gives an id out again at once, and a second answer that comes after that is for whoever has it then. So all
    # requests are there before the first is answered.
    "duplicate": Case(
        (reorder(REQUESTS, "same", within=LONG), duplicate(3)), {SERVED}, IGNORED, clients=REQUESTS, rounds=1
    ),
    "wrong_id": Case((every(2, wrong_id()), every(3, wrong_id(0))), {SERVED}, IGNORED, stuck=True),
    "other_id": Case((first(2, hold()), every(2, other_id(), fail(MARK))), {SERVED, hex(MARK)}, IGNORED, stuck=True),
    "wrong_type": Case((every(2, wrong_type()), every(3, wrong_type(0))), {SERVED}, IGNORED, stuck=True),
    "resize": Case((every(2, resize(0)), every(3, resize(8)), resize(4096)), {SERVED, "EIO"}, MALFORMED),
    "overrun": Case((every(2, overrun()), every(3, overrun(0xFFFFFFFF))), {SERVED, "EIO"}, MALFORMED),
}
ELSEWHERE = {"after_close", "late_write", "bad_header"}


def test_no_behaviour_is_left_out() -> None:
    assert {*CASES} | ELSEWHERE == {*BEHAVIOURS}
    assert not {*CASES} & ELSEWHERE


@pytest.mark.parametrize("name", CASES)
def test_each_request_returns_once(lab: Lab, node: str, vsp: VspServer, name: str) -> None:
    case = CASES[name]
    lab.tolerated = case.tolerated
    with vsp.behaving(*case.behaviours) as seen:
        clients = lab.work.start("tally", node, case.clients, case.rounds)
        seen.wait(name, STUCK if case.stuck else 1)
        if not case.stuck:
            clients.wait()
    found = dict(outcome(clients))
    assert sum(found.values()) == REQUESTS
    assert set(found) == case.outcomes
    assert lab.pending() == []
    assert lab.work.attempt_on(node) == 0


def test_all_kinds_of_nonsense_at_once(lab: Lab, node: str, vsp: VspServer) -> None:
    """And the honest answer as well: every request is served."""
    lab.tolerated = MALFORMED
    with vsp.behaving(
        chance(0.3, unsolicited(5, packet_type=11, transaction_id=2**64 - 1)),
        chance(0.5, besides(wrong_id(0)), seed=1),
        chance(0.5, besides(wrong_type(0xFFFF)), seed=2),
        chance(0.5, reorder(3, "shuffled"), seed=3),
        chance(0.5, delay(0.01), seed=4),
    ):
        clients = lab.work.start("tally", node, CLIENTS, ROUNDS)
        assert dict(outcome(clients)) == {SERVED: REQUESTS}


# -- the channel closes before the answer


def bind_anew(lab: Lab, vsp: VspServer) -> str:
    """The node, once the channel has been opened anew: Linux then numbers requests from 1."""
    lab.work.bind(str(FIRST))
    lab.work.wait_for_nodes(3)
    vsp.wait_channel()
    return lab.node()


def test_answer_of_a_former_opening(lab: Lab, vsp: VspServer) -> None:
    """It carries the id of a request that is in flight now, and the driver cannot know better; nothing else happens."""
    lab.tolerated = IGNORED
    lab.work.unbind(str(FIRST))
    node = bind_anew(lab, vsp)
    with vsp.behaving(first(2, after_close(), fail(MARK))) as seen:
        waiters = [lab.work.start("waiter_errno", node) for _ in range(2)]
        seen.wait("fail", 2)
        lab.work.unbind(str(FIRST))
        assert [waiter.value() for waiter in waiters] == [errno.ENODEV] * 2
        found = dict(outcome(lab.work.start("tally", bind_anew(lab, vsp), CLIENTS, ROUNDS)))
    assert set(found) == {SERVED, hex(MARK)}
    assert found[hex(MARK)] <= 2
    assert sum(found.values()) == REQUESTS


# -- the host writes to pages when it should not


def test_late_write_hits_the_callers_own_buffers_only(lab: Lab, node: str, vsp: VspServer) -> None:
    with vsp.behaving(late_write(0xEE, LONG)):
        witness = lab.work.Witness(4 << 20)
        kept = lab.work.KeptRequest(node, 31, 50_000)
        assert not kept.filled_with(0xEE)
    assert kept.filled_with(0xEE)
    assert witness.content_is_right()


def test_host_writes_to_pages_of_a_killed_caller(lab: Lab, node: str, vsp: VspServer) -> None:
    """They belong to nobody else until it has answered, however much memory others want meanwhile."""
    before = lab.work.pinned_pages()
    with vsp.behaving(hold()) as seen:
        waiter = lab.work.start("waiter", node, 32, 200 * 4096)
        seen.wait("hold")
        waiter.kill()
        waiter.wait()
        witness = lab.work.Witness(4 << 20)
        (held,) = seen.held
        held.pages.write(b"\xee" * len(held.pages))
        assert witness.content_is_right()
        lab.work.use_memory(64 << 20)
        assert held.pages.read() == b"\xee" * len(held.pages), "nobody else got the pages meanwhile"
        held.complete()
    lab.work.wait_until_unpinned(str(FIRST))
    assert lab.work.pinned_pages() == before


# -- the host stops reading


def queued(lab: Lab) -> int:
    return [row[1] for row in lab.pending()].count("queued")


@pytest.mark.default_kernel_only("it takes a quarter of a million pages to fill QEMU's buffers")
def test_host_that_stops_reading(lab: Lab, node: str, vsp: VspServer) -> None:
    """QEMU buffers what it may, then the guest's ring fills up, and callers wait until the host goes on."""
    with vsp.behaving(first(1, stop_reading())) as seen:
        callers = lab.work.start("scattered_requests", node, 40)
        before = vsp.counters.requests
        while not queued(lab):
            assert callers.alive(), callers.failure()
            time.sleep(0.1)
        assert vsp.counters.requests <= before + 1
        seen.resume()
        assert outcome(callers) is None


# -- VMBus itself


def forget_in_flight(lab: Lab, vsp: VspServer) -> None:
    """The device takes a raw packet for no answer; it forgets the requests with the channel."""
    lab.work.unbind(str(FIRST))
    bind_anew(lab, vsp)


# A length that lies loses the answers behind it, whose callers then wait for ever: see test_ring.py.
HEADERS: dict[tuple[str, int], tuple[set[str], bool]] = {
    ("packet_type", 7): ({SERVED}, True),
    ("flags", 0xFFFF): ({SERVED}, False),
    ("offset8", 0): ({SERVED}, False),
    ("offset8", 0xFFFF): ({SERVED}, False),
    ("offset8", 3): ({SERVED, "EIO"}, False),
    ("offset8", 4): ({SERVED, "EIO"}, False),
}
"""What requests come to, and whether their callers wait for the end of the block."""


@pytest.mark.parametrize("header", HEADERS, ids=lambda header: f"{header[0]} {header[1]:#x}")
def test_descriptor_that_lies(lab: Lab, node: str, vsp: VspServer, header: tuple[str, int]) -> None:
    """An offset that cannot be is taken for the right one by VMBus; one within the packet cuts the answer short."""
    outcomes, stuck = HEADERS[header]
    lab.tolerated = MALFORMED
    with vsp.behaving(every(2, bad_header(*header))) as seen:
        clients = lab.work.start("tally", node, CLIENTS, ROUNDS)
        seen.wait("bad_header", STUCK)
        if not stuck:
            clients.wait()
    found = dict(outcome(clients))
    assert sum(found.values()) == REQUESTS
    assert set(found) == outcomes
    assert lab.work.attempt_on(node) == 0
    forget_in_flight(lab, vsp)


@pytest.mark.parametrize("more", [0, 1, 8, 4096 - DESCRIPTOR_SIZE - COMPLETION_SIZE])
def test_raw_packet_that_is_an_answer(lab: Lab, node: str, vsp: VspServer, more: int) -> None:
    lab.tolerated = IGNORED
    with vsp.behaving(hold()) as seen:
        caller = lab.work.start("waiter_status", node)
        seen.wait("hold")
        (held,) = seen.held
        answer = Completion(MARK, 0).pack() + bytes(more)
        vsp.send_raw(vmbus_packet(answer, PacketType.COMPLETION, held.transaction_id))
        assert tuple(caller.value()) == (0, MARK, 0)
    assert lab.work.attempt_on(node) == 0
    forget_in_flight(lab, vsp)
