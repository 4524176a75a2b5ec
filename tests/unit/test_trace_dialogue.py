# SPDX-License-Identifier: GPL-2.0-only
"""What a transcript's records are taken to say, and which answers which."""

from __future__ import annotations

import struct
from uuid import UUID

import pytest

from pyharness.trace.messages import LAYOUTS, decode_message
from pyharness.trace.render import Lines
from pyharness.vsp.wire import Status
from tests.unit.transcript import (
    CLOSE,
    GPADL_BODY,
    GPADL_CREATED,
    GPADL_TEARDOWN,
    GPADL_TORNDOWN,
    INSTANCE,
    MODIFIED,
    MODIFY,
    OPENED,
    RELEASED,
    RESCIND,
    UNLOADED,
    VERSION,
    closed,
    completion,
    events,
    initiate,
    life,
    message,
    odd,
    offer,
    opened,
    pairs,
    raw,
    request,
    u32,
    u64,
    version,
)

SECOND = UUID("0c9d2a6e-2f3b-4f8e-9a53-6d5f5b1e0a02")
OTHER_CLASS = UUID("57164f39-9115-4e78-ab55-382f3bd5422d")


# -- messages


def test_every_message_of_a_life() -> None:
    found = {event.line.number: event.decoded for event in events(*life())}
    assert not any(decoded.fault for decoded in found.values())
    assert found[2].values == {
        "version": "4.1",
        "target_vp": 0,
        "interrupt_page": 0x1000,
        "monitor_page1": 0x2000,
        "monitor_page2": 0x3000,
    }
    assert found[3].values == {"supported": False, "state": 0}
    assert found[6].values == {}
    assert found[7].values["instance"] == str(INSTANCE)
    assert (found[7].values["flags"], found[7].values["relid"], found[7].values["connection_id"]) == (0x200, 2, 0x2002)
    assert found[9].values == {
        "relid": 2,
        "gpadl": 0xE1E10,
        "range_bytes": 24,
        "ranges": 1,
        "bytes": 8192,
        "offset": 0,
        "pages": [0x10, 0x11],
    }
    assert found[10].values == {"number": 0, "gpadl": 0xE1E10, "pages": [0x12]}
    assert found[12].values == {
        "relid": 2,
        "open_id": 2,
        "gpadl": 0xE1E10,
        "target_vp": 1,
        "downstream_page": 2,
        "user_data": "",
    }
    names = [event.decoded.name for event in events(*life()[-6:])]
    assert names == ["CLOSECHANNEL", "GPADL_TEARDOWN", "GPADL_TORNDOWN", "RELID_RELEASED", "UNLOAD", "UNLOAD_RESPONSE"]


@pytest.mark.parametrize("kind", LAYOUTS)
def test_a_message_is_read_as_far_as_it_goes(kind: int) -> None:
    layout = LAYOUTS[kind]
    size = struct.calcsize("<" + "".join(row.code for row in layout.fields))
    whole = decode_message(u32(kind, 0) + bytes(size))
    assert whole.name == layout.name
    assert not whole.fault
    assert [row.name for row in layout.fields] == [name for name in whole.values if name != "pages"]
    required = struct.calcsize("<" + "".join(row.code for row in layout.fields[: layout.required]))
    for length in range(size):
        assert bool(decode_message(u32(kind, 0) + bytes(length)).fault) == (length < required)


def test_a_message_that_is_short_says_what_is_missing() -> None:
    decoded = decode_message(u32(6, 0, 2, 3) + b"\1\2")
    assert decoded.values == {"relid": 2, "open_id": 3}
    assert decoded.fault == "status is missing, the body has only 10 bytes: 02000000030000000102"


@pytest.mark.parametrize(
    ("octets", "name", "fault"),
    [
        (b"", "MESSAGE", "only 0 bytes: "),
        (b"\1\0\0\0\0\0\0", "MESSAGE", "only 7 bytes: 01000000000000"),
        (u32(18, 0, 5), "MESSAGE_18", "unknown type, 4 bytes: 05000000"),
        (u32(2**32 - 1, 0), "MESSAGE_4294967295", "unknown type, 0 bytes: "),
        (u32(99, 0) + bytes(40), "MESSAGE_99", f"unknown type, 40 bytes: {'00' * 32}..."),
    ],
)
def test_a_message_of_no_known_kind(octets: bytes, name: str, fault: str) -> None:
    decoded = decode_message(octets)
    assert (decoded.name, decoded.fault) == (name, fault)


# -- packets


def test_a_request_and_its_completion() -> None:
    asked, answered = events(request(1000, 2, 7), completion(2000, 2, 7, Status.BUFFER_TOO_SMALL))
    assert asked.decoded.values["data_buffer_valid"] == 100
    assert asked.decoded.texts["request"] == "40@4096"
    assert asked.decoded.texts["operation"] == "USER_REQUEST"
    assert answered.decoded.values == {
        "length": 12,
        "error": 0xC0000023,
        "response_len": 7,
        "status": "BUFFER_TOO_SMALL",
    }


def test_data_of_another_length_or_class_is_shown_as_it_is() -> None:
    (short,) = events(request(1000, 2, 7, b"\1\2\3"))
    assert short.decoded.texts["data"] == "3:010203"
    *_, other = events(offer(0, 2, device_class=OTHER_CLASS), request(1000, 2, 7))
    assert other.decoded.values == {}
    assert other.decoded.texts["data"].startswith("56:")


def test_numbers_that_have_no_name() -> None:
    *_, unknown = events(completion(0, 2, 7, 0x1234))
    assert unknown.decoded.texts["status"] == "0x1234"
    (strange,) = events(b'{"ns":1,"from":"host","relid":2,"type":77,"flags":0,"id":5,"data":""}')
    assert strange.decoded.name == "PACKET_77"


def test_a_raw_packet_says_what_it_claims() -> None:
    honest, short = events(raw(1, 2, struct.pack("<HHHHQ", 11, 2, 4, 0, 9) + b"data"), raw(2, 2, b"\x0b"))
    assert honest.decoded.values == {"claims": "COMPLETION", "offset": 16, "length": 32, "flags": 0, "id": 9}
    assert honest.decoded.texts["data"].startswith("20:0b0002000400")
    assert short.decoded.fault == "no descriptor, only 1 bytes: 0b"


# -- channels


def test_a_channel_is_known_by_its_offer() -> None:
    names = [str(event.channel or "-") for event in events(*life())]
    known = "2 Azure Blob 0c9d2a6e"
    assert names == [*"-----", known, "-", *[known] * 11, "-", "-"]


def test_a_channel_without_an_offer_is_a_number() -> None:
    (event,) = events(request(1000, 2, 7))
    assert str(event.channel) == "2"


def test_a_class_without_a_name_is_shortened() -> None:
    (event,) = events(offer(0, 5, device_class=OTHER_CLASS))
    assert str(event.channel) == "5 57164f39 0c9d2a6e"


def test_offers_of_an_earlier_connection_are_forgotten() -> None:
    *_, late = events(*life(), initiate(9, 4, 0), completion(10, 2, 1))
    assert str(late.channel) == "2"


def test_a_message_that_names_a_gpadl_alone_belongs_to_its_channel() -> None:
    (event,) = events(message(0, "host", GPADL_TORNDOWN, u32(0x77)))
    assert event.channel is None


# -- pairs


def test_answers_name_their_requests_and_what_they_took() -> None:
    assert pairs(*life()) == {3: 2, 5: 4, 8: 6, 11: 9, 13: 12, 15: 14, 18: 17, 21: 20}
    took = {event.line.number: event.pair.latency_ns for event in events(*life())}
    assert (took[3], took[15], took[14]) == (1000, 123_400, None)
    assert odd(*life()) == []


def test_requests_overtake_each_other() -> None:
    lines = [request(0, 2, 1), request(1, 2, 2), completion(2, 2, 2), completion(3, 2, 1)]
    assert pairs(*lines) == {3: 2, 4: 1}


def test_channels_have_ids_of_their_own() -> None:
    lines = [offer(0, 2), offer(0, 3, SECOND), request(0, 2, 1), request(1, 3, 1), completion(2, 2, 1)]
    assert pairs(*lines) == {5: 3}


def test_an_id_may_be_used_again() -> None:
    lines = [request(0, 2, 1), completion(1, 2, 1), request(2, 2, 1), completion(3, 2, 1)]
    assert pairs(*lines) == {2: 1, 4: 3}
    assert odd(*lines) == []


def test_an_id_that_is_in_flight_already() -> None:
    lines = [request(0, 2, 1), request(2, 2, 1), completion(3, 2, 1), completion(3, 2, 1)]
    assert pairs(*lines) == {3: 2}
    assert odd(*lines) == [(2, "no answer to 1"), (4, "answered already in 3")]


def test_a_second_completion_and_one_of_nothing() -> None:
    lines = [request(0, 2, 1), completion(1, 2, 1), completion(2, 2, 1), completion(3, 2, 99)]
    assert odd(*lines) == [(3, "answered already in 2"), (4, "answers nothing")]


def test_a_packet_that_wants_no_completion_gets_none() -> None:
    assert odd(request(0, 2, 1, flags=0), completion(1, 2, 1)) == [(2, "answers nothing")]


def test_the_guest_answers_the_host() -> None:
    asked = b'{"ns":1,"from":"host","relid":2,"type":6,"flags":1,"id":5,"data":""}'
    assert pairs(asked, completion(2, 2, 5, sender="guest")) == {2: 1}
    assert odd(asked, completion(2, 2, 5)) == [(2, "answers nothing")], "it does not answer itself"


def test_a_raw_packet_answers_nothing_and_is_none_the_worse() -> None:
    claims = struct.pack("<HHHHQ", 11, 2, 4, 0, 1)
    assert odd(request(0, 2, 1), raw(1, 2, claims), completion(2, 2, 1)) == []


def test_a_close_ends_what_is_in_flight() -> None:
    lines = [*opened(0, 2, 7), request(1, 2, 1), request(2, 2, 3), request(3, 3, 1), *closed(4, 2, 7)]
    assert odd(*lines) == [(9, "no answer any more to 6, 7")]
    assert odd(*lines, completion(9, 2, 1), completion(9, 3, 1)) == [
        (9, "no answer any more to 6, 7"),
        (12, "answers nothing"),
    ]


def test_a_channel_that_is_opened_again_starts_afresh() -> None:
    once = [*opened(0, 2, 7), request(1, 2, 1), completion(2, 2, 1), *closed(3, 2, 7)]
    assert odd(*once, *once) == []
    assert odd(*once, *opened(0, 2, 8), completion(4, 2, 1))[-1] == (16, "answers nothing")


def test_a_new_connection_starts_afresh() -> None:
    lines = [*life()[:14], initiate(9, 4, 0), version(10, True), completion(11, 2, 1)]
    assert odd(*lines) == [(15, "no answer any more to 14"), (17, "answers nothing")]


def test_versions_that_nobody_answers() -> None:
    lines = [initiate(0, 5, 3), initiate(1, 5, 2), version(2, True), message(3, "host", VERSION, b"\1\0")]
    assert odd(*lines) == [(2, "no answer to 1"), (4, "answered already in 3")]
    assert pairs(*lines) == {3: 2}


def test_control_messages_are_told_apart_by_what_they_name() -> None:
    lines = [*opened(0, 2, 7)[:1], *opened(0, 3, 8)[:1]]
    lines += [message(1, "host", GPADL_CREATED, u32(3, 8, 0)), message(1, "host", GPADL_CREATED, u32(2, 7, 0))]
    lines += [message(2, "guest", MODIFY, u32(2, 1)), message(3, "host", MODIFIED, u32(2, 0))]
    lines += [message(4, "guest", GPADL_TEARDOWN, u32(2, 7)), message(5, "host", GPADL_TORNDOWN, u32(7))]
    assert pairs(*lines) == {3: 2, 4: 1, 6: 5, 8: 7}


def test_a_rescind_is_answered_by_the_release_which_may_also_come_alone() -> None:
    lines = [message(0, "host", RESCIND, u32(2)), message(1, "guest", CLOSE, u32(2))]
    lines += [message(2, "guest", RELEASED, u32(2)), message(3, "guest", RELEASED, u32(3))]
    assert pairs(*lines) == {3: 1}
    assert odd(*lines) == []


@pytest.mark.parametrize("answer", [message(0, "host", UNLOADED), message(0, "host", OPENED, u32(2, 2, 0))])
def test_an_answer_to_nothing(answer: bytes) -> None:
    assert odd(answer) == [(1, "answers nothing")]


def test_a_guest_that_plays_the_host() -> None:
    lines = [initiate(0, 4, 0), message(1, "guest", VERSION, b"\1\0"), version(2, True)]
    assert odd(*lines) == [(2, "answers nothing")]
    assert pairs(*lines) == {3: 1}


def test_pages_that_do_not_make_eight_bytes() -> None:
    (event,) = events(message(0, "guest", GPADL_BODY, u32(0, 7) + u64(1) + b"\1\2\3"))
    assert event.decoded.values["pages"] == [1]
    assert "pages=1" in Lines().render(event)
