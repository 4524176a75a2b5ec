# SPDX-License-Identifier: GPL-2.0-only
"""The hostile host's book-keeping: what may come of what it sends, judged without a guest."""

from __future__ import annotations

import errno
import struct
from collections import deque
from dataclasses import dataclass, field
from typing import Any, cast

import pytest

from pyharness.fuzz.host import SCRIPTS, from_json, to_json
from pyharness.fuzz.hostile import ACTIONS, RARE, Host
from pyharness.guest.load import RESPONSE_LEN, Order, Outcome, pattern
from pyharness.vsp.frames import PacketType
from pyharness.vsp.server import VspServer
from pyharness.vsp.wire import Completion, Status


@dataclass
class Buffer:
    content: bytes
    written: bytes = b""

    def read(self) -> bytes:
        return self.content

    def write(self, data: bytes) -> None:
        self.written = data


class Request:
    """A request as `Host` uses it, and what was sent in answer."""

    def __init__(self, serial: int, transaction_id: int) -> None:
        order = Order(serial)
        self.transaction_id = transaction_id
        self.header = Header(struct.pack("<QQ", serial, 0))
        self.request = Buffer(order.pack())
        self.data_valid = Buffer(pattern(serial, 0, order.out_len))
        self.data, self.response = Buffer(b""), Buffer(b"")
        self.sent: list[tuple[int, int, bytes]] = []
        self.awaited = True

    def complete_raw(self, payload: bytes, *, packet_type: int, transaction_id: int) -> None:
        self.sent.append((packet_type, transaction_id, payload))


@dataclass
class Header:
    guid: bytes


@dataclass
class Stage:
    """A host, and what its guest would see."""

    host: Host
    requests: dict[int, Request] = field(default_factory=dict)

    def request(self, serial: int, transaction_id: int) -> Request:
        request = self.requests[serial] = Request(serial, transaction_id)
        self.host.act(cast(Any, request))
        return request

    def outcome(self, serial: int, number: int = 0, right: bool = True) -> Outcome:
        """What the guest gets of the completion `number` that was sent on the occasion of request `serial`."""
        _, _, payload = self.requests[serial].sent[number]
        completion = Completion.parse(payload)
        return Outcome(serial, 0, completion.error, completion.response_len, right, "")


def stage(*script: tuple[str, int]) -> Stage:
    return Stage(Host(cast(VspServer, None), deque(script)))


def test_honest_answers_are_right() -> None:
    play = stage()
    play.request(7, 1)
    play.request(8, 2)
    assert play.requests[7].response.written == pattern(7, 2, RESPONSE_LEN)
    assert play.requests[7].data.written == pattern(7, 1, Order(7).in_len)
    outcomes = [play.outcome(7), play.outcome(8)]
    assert play.host.settled(outcomes)
    assert play.host.fault(outcomes, range(7, 9)) == ""


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"right": False}, "its data are wrong"),
        ({"damaged": "bytes beside a buffer"}, "bytes beside a buffer changed"),
        ({"status": 999}, "which was not sent"),
        ({"response_len": 1}, "response of 1 bytes"),
        ({"error": errno.EIO}, "no malformed completion was sent"),
        ({"error": errno.ENODEV}, "the device was not gone"),
        ({"error": errno.EINTR}, "errno 4"),
        ({"status": Status.CONNECTION_DISCONNECTED}, "the backend was not"),
    ],
)
def test_what_an_honest_answer_cannot_bring_is_a_fault(change: dict[str, Any], said: str) -> None:
    play = stage()
    play.request(7, 1)
    assert said in play.host.fault([play.outcome(7)._replace(**change)], range(7, 8))


def test_a_request_must_return_once() -> None:
    play = stage()
    play.request(7, 1)
    assert "1 requests have not returned" in play.host.fault([play.outcome(7)], range(7, 9))
    assert "returned twice" in play.host.fault([play.outcome(7), play.outcome(7)], range(7, 8))
    play.host.killed = True
    assert play.host.fault([], range(7, 9)) == ""


def test_a_completion_is_got_once_and_by_its_id() -> None:
    play = stage(("status", 3), ("status", 4))
    play.request(1, 1)
    play.request(2, 2)
    swapped = play.outcome(1)._replace(serial=2)
    assert "got the completion of id 1" in play.host.fault([swapped], range(2, 3))
    assert "got before" in play.host.fault([play.outcome(1)], range(1, 2))


def test_malformed_completions_may_bring_eio() -> None:
    for name in ("too long", "short", "garbage"):
        play = stage((name, 0))
        play.request(1, 5)
        assert play.host.fault([Outcome(1, errno.EIO, 0, 0, False, "")], range(1, 2)) == ""


def test_a_malformed_completion_must_not_be_taken() -> None:
    play = stage(("too long", 0))
    play.request(1, 5)
    assert "has no room" in play.host.fault([play.outcome(1)], range(1, 2))


def test_what_is_held_is_released() -> None:
    play = stage(("late", 0), ("late", 0), ("reversed", 0))
    first, second, third = (play.request(serial, serial) for serial in (1, 2, 3))
    assert [len(request.sent) for request in (first, second, third)] == [1, 1, 1]
    statuses = [Completion.parse(request.sent[0][2]).error for request in (third, second, first)]
    assert statuses == sorted(statuses)


def test_a_request_that_may_have_been_answered_is_left_alone() -> None:
    """Its buffers may be those of the next one by now."""
    play = stage(("again", 0))
    play.request(1, 5)
    reused = play.request(2, 5)
    other = play.request(3, 6)
    assert (reused.data.written, reused.response.written) == (b"", b"")
    assert other.response.written
    early = play.outcome(1, 1)._replace(serial=2, right=False)
    assert play.host.fault([play.outcome(1), early, play.outcome(3)], range(1, 4)) == ""


def test_a_held_request_whose_id_was_completed_is_left_alone() -> None:
    play = stage(("late", 0), ("stolen", 0))
    held = play.request(1, 5)
    play.request(2, 6)
    play.host.release()
    assert held.response.written == b""


def test_what_the_backend_held_when_it_went_is_left_to_the_device() -> None:
    play = stage(("late", 0), ("late", 0))
    old, new = play.request(1, 5), play.request(2, 6)
    old.awaited = False
    play.host.forget()
    play.host.release()
    assert (len(old.sent), len(new.sent)) == (0, 1)
    assert new.response.written == b"", "nobody knows whose buffers these are"


def test_the_guest_must_have_got_the_last_completion() -> None:
    play = stage(("again", 0), ("honest", 0), ("short", 0))
    assert play.host.settled([])
    play.request(1, 5)
    assert not play.host.settled([play.outcome(1)])
    play.request(2, 6)
    assert play.host.settled([play.outcome(1), play.outcome(2)])
    play.request(3, 6)
    assert not play.host.settled([play.outcome(2), Outcome(3, errno.EIO, 0, 0, False, "")])


def test_uploads_are_checked() -> None:
    play = stage()
    request = Request(3, 1)
    request.data_valid.content = b"damaged"
    play.host.act(cast(Any, request))
    assert "upload of request 3 arrived damaged" in play.host.fault([], range(0))


@pytest.mark.parametrize("name", ACTIONS)
def test_each_action_answers_holds_or_asks_the_operator(name: str) -> None:
    for number in (0, 1, 2, 3, 99, 2**32 - 1):
        play = stage((name, number))
        request = play.request(1, 5)
        play.host.release()
        own = [payload for kind, to, payload in request.sent if (kind, to) == (PacketType.COMPLETION, 5)]
        assert own, (name, number)
        assert play.host.packets == len(request.sent)
        assert all(len(payload) <= 4096 for _, _, payload in request.sent)


def test_rare_actions_exist() -> None:
    assert set(RARE) < ACTIONS.keys()
    assert next(iter(ACTIONS)) == "honest"


def test_scripts_are_the_same_when_read_back() -> None:
    script = tuple((name, number) for number, name in enumerate(ACTIONS))
    assert from_json(to_json(script)) == script
    assert not SCRIPTS.is_empty


@pytest.mark.parametrize("text", ["", "[1]", '[["no such action", 1]]', '[["honest"]]', '[["honest", "x"]]'])
def test_what_is_no_script_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        from_json(text)
