# SPDX-License-Identifier: GPL-2.0-only
"""Behaviours of a host, on a real socket; the other end of it is `vsp_peer`."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path

import pytest

from pyharness.vsp.behaviours import (
    NEVER_ISSUED,
    after,
    after_close,
    answering,
    bad_header,
    besides,
    chance,
    crowded,
    delay,
    disconnect,
    doing,
    drop,
    duplicate,
    every,
    fail,
    first,
    hold,
    larger,
    late_write,
    nth,
    other_id,
    overrun,
    reorder,
    resize,
    serve,
    stop_reading,
    unsolicited,
    where,
    wrong_id,
    wrong_type,
)
from pyharness.vsp.frames import Channel, FrameType, Packet, PacketType, pack_frame
from pyharness.vsp.parameters import BadParameter
from pyharness.vsp.play import Behaviour, Next
from pyharness.vsp.request import VspRequest
from pyharness.vsp.server import VspServer
from pyharness.vsp.wire import Completion, RequestHeader, Status, vmbus_packet
from tests.unit.test_vsp_server import HEADER, PAGES, Echo, completion, until
from tests.unit.vsp_peer import PAGE, DevicePeer

LONG = 3000.0
"""Seconds that no test waits for: what is due then comes when the block ends."""


@pytest.fixture
def peer(tmp_path: Path) -> Iterator[DevicePeer]:
    with DevicePeer(tmp_path / "vsp.sock") as device:
        yield device


@pytest.fixture(params=[0, 2], ids=["inline", "workers"])
def vsp(peer: DevicePeer, request: pytest.FixtureRequest) -> Iterator[VspServer]:
    server = VspServer(peer.path, Echo(), workers=request.param, attach_timeout_s=20)
    server.start()
    peer.serve()
    server.wait_attached()
    yield server
    server.close()
    assert not server.errors, server.errors[0].traceback


def post(peer: DevicePeer, count: int, header: RequestHeader = HEADER) -> list[Future[Packet]]:
    return [peer.post(header.pack(), PAGES) for _ in range(count)]


def errors(futures: list[Future[Packet]]) -> list[int]:
    return [completion(future.result(20)).error for future in futures]


def failing(*statuses: int) -> Behaviour:
    """Each request fails with the next of these statuses."""
    rest = iter(statuses)
    return doing(lambda request, go_on: None if request.complete(next(rest)) else go_on(request))


# -- how they compose


def test_the_example(peer: DevicePeer, vsp: VspServer) -> None:
    with vsp.behaving(first(2, hold()), every(3, fail(Status.IO_TIMEOUT)), delay(0.01)) as seen:
        futures = post(peer, 11)
        seen.wait("fail", 3)
        assert [request.transaction_id for request in seen.held] == [1, 2]
        assert errors(futures[2:]) == [0, 0, Status.IO_TIMEOUT] * 3
        seen.release()
        assert errors(futures[:2]) == [0, 0], "what is released goes on in the chain: as the tenth and eleventh there"
        assert seen.did == {"hold": 2, "fail": 3, "delay": 8}
    assert vsp.behaviour is None


@pytest.mark.parametrize(
    ("behaviour", "failed"),
    [
        (every(3, fail()), {3, 6, 9}),
        (every(1, fail()), set(range(1, 11))),
        (first(4, fail()), {1, 2, 3, 4}),
        (nth(4, fail()), {4}),
        (after(7, fail()), {8, 9, 10}),
        (where(lambda request: request.transaction_id == 5, fail()), {5}),
        (larger(PAGE - 1, fail()), set(range(1, 11))),
        (larger(PAGE, fail()), set()),
        (crowded(1, fail()), set(range(1, 11))),
        (crowded(2, fail()), set()),
        (every(2, every(2, fail())), {4, 8}),
        (every(2, first(1, serve()), fail()), {4, 6, 8, 10}),
        (chance(1.0, fail()), set(range(1, 11))),
        (chance(0.0, fail()), set()),
    ],
    ids=lambda value: value.name if isinstance(value, Behaviour) else None,
)
def test_which_requests(peer: DevicePeer, vsp: VspServer, behaviour: Behaviour, failed: set[int]) -> None:
    with vsp.behaving(behaviour):
        found = {
            number
            for number in range(1, 11)
            if completion(peer.post(HEADER.pack(), PAGES).result(20)).error == Status.INTERNAL_ERROR
        }
    assert found == failed


def test_chance_is_the_same_for_the_same_seed(peer: DevicePeer, vsp: VspServer) -> None:
    def failed(seed: int) -> list[int]:
        with vsp.behaving(chance(0.5, fail(), seed=seed)):
            return errors(post(peer, 40))

    assert failed(1) == failed(1) != failed(2)
    assert 5 < failed(1).count(0) < 35


def test_a_behaviour_begins_anew_in_each_block(peer: DevicePeer, vsp: VspServer) -> None:
    once = first(1, fail())
    for _ in range(3):
        with vsp.behaving(once):
            assert errors(post(peer, 2)) == [Status.INTERNAL_ERROR, 0]


def test_the_behaviour_before_comes_back(peer: DevicePeer, vsp: VspServer) -> None:
    vsp.behaviour = lambda request: request.complete(77)
    with vsp.behaving(fail(1)):
        with vsp.behaving(fail(2)):
            assert errors(post(peer, 1)) == [2]
        assert errors(post(peer, 1)) == [1]
    assert errors(post(peer, 1)) == [77]
    with pytest.raises(KeyError), vsp.behaving(fail(1)):
        raise KeyError
    assert errors(post(peer, 1)) == [77]


def test_devices_behave_each_for_itself(peer: DevicePeer, vsp: VspServer, tmp_path: Path) -> None:
    with DevicePeer(tmp_path / "other.sock") as second:
        other = VspServer(second.path, Echo(), attach_timeout_s=20)
        other.start()
        second.serve()
        other.wait_attached()
        with vsp.behaving(fail(1)), other.behaving(fail(2)):
            assert errors(post(peer, 2) + post(second, 2)) == [1, 1, 2, 2]
        other.close()


def test_malformed_requests_are_refused_at_the_end_of_the_chain(peer: DevicePeer, vsp: VspServer) -> None:
    with vsp.behaving(delay(0), overrun()) as seen:
        assert completion(peer.post(b"junk", []).result(20)).error == Status.INVALID_BUFFER_SIZE
        assert completion(peer.post(HEADER._replace(version=3).pack(), PAGES).result(20)).error
    assert seen.did["delay"] == 2


def test_a_request_that_wants_no_completion_gets_none(peer: DevicePeer, vsp: VspServer) -> None:
    with vsp.behaving(hold(), duplicate()):
        future = peer.post(HEADER.pack(), PAGES, completion_requested=False)
        peer.post(HEADER.pack(), PAGES)
        vsp.wait_in_flight(1)
    assert errors(post(peer, 1)) == [0]
    assert not future.done()


@pytest.mark.parametrize("workers", [0, 2])
def test_a_fault_of_a_behaviour_is_answered_and_kept(peer: DevicePeer, workers: int) -> None:
    def broken(request: VspRequest, go_on: Next) -> None:
        raise KeyError("behaviour fault")

    server = VspServer(peer.path, Echo(), workers=workers, attach_timeout_s=20)
    server.start()
    peer.serve()
    with server.behaving(every(2, delay(0)), doing(broken)):
        assert errors(post(peer, 4)) == [Status.INTERNAL_ERROR] * 4
    assert len(server.errors) == server.counters.backend_errors == 4
    assert errors(post(peer, 1)) == [0]
    server.close()


# -- what becomes of requests


def test_fail_says_why(peer: DevicePeer, vsp: VspServer) -> None:
    with vsp.behaving(fail(Status.NOT_SUPPORTED, "not today")):
        answer = peer.call(b"head", b"data")
        assert (answer.completion, answer.head) == (Completion(Status.NOT_SUPPORTED, 9), b"not today")
        assert answer.data == b"data"
        assert peer.call(b"head", response_room=3).head == b"not"


@pytest.mark.parametrize("behaviour", [hold(), drop(), delay(LONG), reorder(100, within=LONG)], ids=lambda b: b.name)
def test_what_waits_is_answered_when_the_block_ends(peer: DevicePeer, vsp: VspServer, behaviour: Behaviour) -> None:
    with vsp.behaving(every(2, behaviour)) as seen:
        futures = post(peer, 10)
        seen.wait(behaviour.name, 5)
        assert errors(futures[::2]) == [0] * 5
        assert [request.transaction_id for request in vsp.in_flight] == [2, 4, 6, 8, 10]
    assert errors(futures) == [0] * 10
    assert not vsp.in_flight
    assert not peer.unmatched


def test_held_requests_in_any_order(peer: DevicePeer, vsp: VspServer) -> None:
    with vsp.behaving(hold(), failing(*range(1, 5))) as seen:
        futures = post(peer, 4)
        seen.wait("hold", 4)
        one, two, three, four = seen.held
        seen.release(three, one)
        assert seen.held == [two, four]
        seen.release()
        assert seen.held == []
    assert errors(futures) == [2, 3, 1, 4]


@pytest.mark.parametrize(
    ("order", "expected"), [("reversed", [3, 2, 1, 6, 5, 4]), ("same", [1, 2, 3, 4, 5, 6]), ("shuffled", None)]
)
def test_reorder(peer: DevicePeer, vsp: VspServer, order: str, expected: list[int] | None) -> None:
    def answers(seed: int) -> list[int]:
        with vsp.behaving(reorder(3, order, seed, within=LONG), failing(*range(1, 7))):
            return errors(post(peer, 6))

    assert answers(1) == (expected or answers(1))
    assert sorted(answers(1)[:3]) == [1, 2, 3]
    assert expected or len({tuple(answers(seed)) for seed in range(20)}) > 1


def test_reorder_does_not_wait_for_ever(peer: DevicePeer, vsp: VspServer) -> None:
    with vsp.behaving(reorder(3, within=0.01)):
        for _ in range(3):
            assert errors(post(peer, 1)) == [0]


def test_released_requests_whose_channel_has_closed_are_left_alone(peer: DevicePeer, vsp: VspServer) -> None:
    """Their pages belong to somebody else by then."""
    with vsp.behaving(hold()) as seen:
        post(peer, 3)
        seen.wait("hold", 3)
        pages = seen.held[0].data
        peer.send_raw(pack_frame(FrameType.CHANNEL, Channel(False).pack()))
        vsp.wait_channel(is_open=False)
        pages.write(b"somebody else's")
    assert pages.read().startswith(b"somebody else's")
    assert not peer.unmatched


def test_disconnect_in_the_middle(peer: DevicePeer, vsp: VspServer) -> None:
    with vsp.behaving(every(5, disconnect()), hold()) as seen:
        lost = post(peer, 5)
        until(lambda: not vsp.attached)
        peer.hang_up()
        peer.serve()
        vsp.wait_attached()
        again = post(peer, 3)
        seen.wait("hold", 7)
    assert errors(again) == [0] * 3
    assert not any(future.done() for future in lost), "the device answers them"
    assert not peer.unmatched
    assert vsp.counters.voided == 5


def test_a_backend_that_is_away_comes_back_when_the_block_ends(peer: DevicePeer, vsp: VspServer) -> None:
    with vsp.behaving(first(1, disconnect(LONG))):
        post(peer, 1)
        until(lambda: not vsp.attached)
        peer.hang_up()
        peer.serve_in_background()
    assert vsp.attached
    assert errors(post(peer, 1)) == [0]


def test_stop_reading(peer: DevicePeer, vsp: VspServer) -> None:
    with vsp.behaving(nth(3, stop_reading())) as seen:
        futures = post(peer, 10)
        assert errors(futures[:3]) == [0] * 3
        assert vsp.counters.requests == 3
        seen.resume()
        assert errors(futures) == [0] * 10
    with vsp.behaving(stop_reading(0.01)):
        assert errors(post(peer, 10)) == [0] * 10
    with vsp.behaving(stop_reading()) as seen:
        futures = post(peer, 10)
        seen.wait("stop_reading")
    assert errors(futures) == [0] * 10


def test_unsolicited_packets(peer: DevicePeer, vsp: VspServer) -> None:
    with vsp.behaving(unsolicited(), first(1, unsolicited(500, 11, 0, 100))):
        assert errors(post(peer, 2)) == [0, 0]
    one = Packet(0, PacketType.IN_BAND, bytes(12), epoch=peer.epoch)
    assert peer.unmatched == [one, *[Packet(0, 11, bytes(100), epoch=peer.epoch)] * 500, one]


# -- what becomes of answers

LYING = Packet(1, 11, vmbus_packet(Completion(0, PAGE).pack(), 11, 1, len8=0xFFFF), epoch=1, raw=True)
OTHER = LYING._replace(payload=vmbus_packet(Completion(0, PAGE).pack(), 7, 1))
HONEST = Packet(1, PacketType.COMPLETION, Completion(0, PAGE).pack(), epoch=1)


@pytest.mark.parametrize(
    ("behaviour", "inside", "at_the_end"),
    [
        (duplicate(), [HONEST, HONEST], []),
        (duplicate(3), [HONEST] * 3, []),
        (besides(resize(0)), [HONEST._replace(payload=b""), HONEST], []),
        (besides(duplicate(2)), [HONEST] * 3, []),
        (besides(serve()), [HONEST], []),
        (resize(0), [HONEST._replace(payload=b"")], []),
        (resize(8), [HONEST._replace(payload=HONEST.payload[:8])], []),
        (resize(4096), [HONEST._replace(payload=HONEST.payload + bytes(4084))], []),
        (overrun(), [HONEST._replace(payload=Completion(0, PAGE + 1).pack())], []),
        (overrun(2**32 - 1), [HONEST._replace(payload=Completion(0, 2**32 - 1).pack())], []),
        (other_id(), [HONEST], []),
        (answering(lambda packet: [packet._replace(payload=b"x")]), [HONEST._replace(payload=b"x")], []),
        (bad_header("len8", 0xFFFF), [LYING], []),
        (bad_header("packet_type", 7), [OTHER], [HONEST]),
        (besides(bad_header("len8", 0xFFFF)), [LYING, HONEST], []),
        (wrong_id(), [HONEST._replace(transaction_id=NEVER_ISSUED)], [HONEST]),
        (wrong_id(0), [HONEST._replace(transaction_id=0)], [HONEST]),
        (wrong_type(), [HONEST._replace(packet_type=6)], [HONEST]),
        (answering(lambda packet: []), [], [HONEST]),
    ],
    ids=lambda value: value.name if isinstance(value, Behaviour) else "",
)
def test_answers(
    peer: DevicePeer, vsp: VspServer, behaviour: Behaviour, inside: list[Packet], at_the_end: list[Packet]
) -> None:
    """What leaves the request unanswered is followed by the honest answer when the block ends."""
    with vsp.behaving(behaviour):
        future = peer.post(HEADER.pack(), PAGES)
        until(lambda: len(peer.received) == len(inside) and vsp.counters.requests == 1)
        assert peer.received == inside
    assert future.result(20)
    until(lambda: len(peer.received) == len(inside + at_the_end))
    assert peer.received == inside + at_the_end
    assert not vsp.in_flight
    assert errors(post(peer, 1)) == [0]


def test_raw_packets(peer: DevicePeer, vsp: VspServer) -> None:
    whole = vmbus_packet(b"x", 11, 1)
    with vsp.behaving(hold()) as seen:
        post(peer, 1)
        seen.wait("hold")
        for packet in (b"", bytes(15), vmbus_packet(b"", 6, 1), vmbus_packet(b"", 11, 2)):
            vsp.send_raw(packet)
        assert len(vsp.in_flight) == 1, "those are no answers"
        vsp.send_raw(whole)
        assert not vsp.in_flight
    until(lambda: len(peer.received) == 5)
    assert peer.received[4] == Packet(0, 0, whole, raw=True)
    with vsp.behaving(besides(bad_header("packet_type", 7)), resize(4096)):
        post(peer, 1)
        until(lambda: len(peer.received) == 7)
    lying = peer.received[5]
    assert lying.raw and len(lying.payload) == 4096 and lying.payload[0] == 7, "no longer than a frame may be"


def test_answers_go_back_through_the_chain(peer: DevicePeer, vsp: VspServer) -> None:
    with vsp.behaving(duplicate(), besides(wrong_type())):
        peer.post(HEADER.pack(), PAGES).result(20)
        until(lambda: len(peer.received) == 4)
    assert [packet.packet_type for packet in peer.received] == [6, 6, 11, 11]


def test_answer_under_the_id_of_another(peer: DevicePeer, vsp: VspServer) -> None:
    with vsp.behaving(first(1, hold()), other_id(), failing(7, 8)) as seen:
        one, two = post(peer, 2)
        assert completion(one.result(20)).error == 7
        seen.release()
        assert not two.done()
    assert completion(two.result(20)).error == 7, "the one that is owed to it"
    assert not vsp.in_flight


def test_answer_after_the_channel_has_closed(peer: DevicePeer, vsp: VspServer) -> None:
    with vsp.behaving(first(2, after_close()), failing(1, 2, 3, 4)) as seen:
        post(peer, 2)
        seen.wait("after_close", 2)
        until(lambda: seen.did["doing"] == 2)
        for is_open in (False, True):
            peer.send_raw(pack_frame(FrameType.CHANNEL, Channel(is_open).pack()))
            vsp.wait_channel(is_open=is_open)
        peer.reopen()
        one = peer.post(HEADER.pack(), PAGES)
        assert completion(one.result(20)).error == 1, "the late answer"
        until(lambda: len(peer.received) == 2)
        assert [packet.epoch for packet in peer.received] == [0, 0]


def test_answer_after_close_of_a_channel_that_stays_open(peer: DevicePeer, vsp: VspServer) -> None:
    with vsp.behaving(after_close()) as seen:
        futures = post(peer, 2)
        seen.wait("after_close", 2)
        assert not any(future.done() for future in futures)
    assert errors(futures) == [0, 0]


def test_late_write(peer: DevicePeer, vsp: VspServer) -> None:
    requests: list[VspRequest] = []

    def note(request: VspRequest, go_on: Next) -> None:
        requests.append(request)
        go_on(request)

    with vsp.behaving(doing(note), late_write(7, LONG)):
        assert errors(post(peer, 1)) == [0]
        (request,) = requests
        assert set(request.data.read()) != {7}
    assert set(request.data.read()) == set(request.response.read()) == {7}
    assert set(request.request.read()) != {7}


# -- parameters


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: every(0, drop()), "n: 0 cannot be; allowed: a whole number 1 to 1048576"),
        (lambda: first(True, drop()), "n: True cannot be"),
        (lambda: chance(1.5, drop()), "probability: 1.5 cannot be; allowed: a number 0 to 1"),
        (lambda: chance(0.5, drop(), seed=-1), "seed: -1 cannot be"),
        (lambda: delay(-1), "seconds: -1 cannot be; allowed: a number 0 to 3600"),
        (lambda: delay(seconds=4000), "seconds: 4000 cannot be"),
        (lambda: resize(4097), "size: 4097 cannot be; allowed: a whole number 0 to 4096"),
        (
            lambda: fail(1 << 32),
            "status: 4294967296 cannot be; allowed: a whole number 0 to 0xffffffff, or one of SUCC",
        ),
        (lambda: wrong_type(65536), "packet_type: 65536 cannot be"),
        (lambda: reorder(3, "random"), "order: 'random' cannot be; allowed: one of reversed, shuffled, same"),
        (lambda: fail(Status.IO_TIMEOUT, b"bytes"), "text: b'bytes' cannot be; allowed: a string"),  # type: ignore[arg-type]
        (lambda: delay(), "seconds: it is missing; allowed: a number 0 to 3600"),  # type: ignore[call-arg]
    ],
)
def test_parameters_are_checked_at_once(make: Callable[[], Behaviour], words: str) -> None:
    with pytest.raises(BadParameter, match="^" + words):
        make()


# -- many requests, anything


@pytest.mark.parametrize("seed", range(12))
def test_each_request_is_answered_exactly_once(peer: DevicePeer, vsp: VspServer, seed: int) -> None:
    """Whatever is put together, and whatever goes out meanwhile."""
    rng = random.Random(seed)
    some: list[Callable[[], Behaviour]] = [
        *(serve, fail, hold, drop, duplicate, wrong_id, wrong_type, other_id, overrun, after_close),
        lambda: delay(rng.choice((0, 0.01, LONG))),
        lambda: reorder(rng.randint(1, 5), within=0.01),
        lambda: stop_reading(0.01),
        lambda: unsolicited(rng.randint(1, 30)),
        lambda: resize(rng.randrange(40)),
    ]
    chosen = [every(rng.randint(1, 4), rng.choice(some)()) for _ in range(4)]
    with vsp.behaving(*chosen):
        futures = post(peer, 60)
        until(lambda: vsp.counters.requests == 60)
    for future in futures:
        assert future.result(20).packet_type in (PacketType.COMPLETION, PacketType.IN_BAND)
    until(lambda: not vsp.in_flight)
    until(lambda: set(range(1, 61)) <= {packet.transaction_id for packet in peer.received if packet.packet_type == 11})
