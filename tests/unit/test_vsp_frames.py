# SPDX-License-Identifier: GPL-2.0-only
"""Every struct of docs/vsp-protocol.md: the bytes, the round trip, and what is refused."""

from __future__ import annotations

import random
import struct
import uuid

import pytest

from pyharness.vsp import frames, wire
from pyharness.vsp.frames import (
    Attach,
    Channel,
    FrameType,
    Hello,
    Packet,
    ProtocolError,
    Region,
    Request,
    pack_frame,
    parse_header,
    segments_of,
)

INSTANCE = uuid.UUID("00112233-4455-6677-8899-aabbccddeeff")
HELLO = Hello(INSTANCE, True, 2, (Region(0, 4096, 0, 0), Region(1 << 32, 8192, 4096, 1, True)))
REQUEST = Request(7, 9, True, bytes(range(56)), segments_of([(4096, 4096), (1 << 33, 100)]), 3)
PACKET = Packet(2**64 - 1, 11, b"abc", True, 9)
RAW = Packet(0, 0, b"\0" * 16, epoch=9, raw=True)


def test_frame_header_bytes() -> None:
    frame = pack_frame(FrameType.CHANNEL, b"\x01\0\0\0")
    assert frame == b"AVPB\x02\0\0\0\x04\0\0\0\0\0\0\0\x01\0\0\0"
    assert parse_header(frame) == (FrameType.CHANNEL, 4)


def test_hello_bytes() -> None:
    payload = HELLO.pack()
    assert len(payload) == 32 + 2 * 32
    assert payload[8:24] == bytes.fromhex("33221100554477668899aabbccddeeff"), "the GUID is mixed-endian on the wire"
    assert struct.unpack_from("<IIII", payload[:8] + payload[24:32]) == (2, 2, 1, 2)
    assert struct.unpack_from("<QQQII", payload, 64) == (1 << 32, 8192, 4096, 1, 1)


def test_request_bytes() -> None:
    payload = Request(7, 9, True, b"12345", (4096, 8), 3).pack()
    assert payload == struct.pack("<QHHIIHH", 7, 9, 1, 5, 1, 3, 0) + b"12345\0\0\0" + struct.pack("<QQ", 4096, 8)


def test_packet_bytes() -> None:
    assert PACKET.pack() == struct.pack("<QHHHH", 2**64 - 1, 11, 1, 3, 9) + b"abc"


def test_raw_packet_bytes() -> None:
    assert RAW.pack() == struct.pack("<QHHHH", 0, 0, 2, 16, 9) + bytes(16)


@pytest.mark.parametrize(
    ("wrong", "descriptor"),
    [
        ({}, (11, 2, 4, 0, 77)),
        ({"offset8": 9}, (11, 9, 4, 0, 77)),
        ({"len8": 0xFFFF, "flags": 3}, (11, 2, 0xFFFF, 3, 77)),
        ({"packet_type": 0, "transaction_id": 2**64 - 1}, (0, 2, 4, 0, 2**64 - 1)),
    ],
)
def test_vmbus_packet(wrong: dict[str, int], descriptor: tuple[int, ...]) -> None:
    """Only the descriptor lies: the packet is as long as it would have been."""
    packet = wire.vmbus_packet(b"twelve bytes", 11, 77, **wrong)
    assert packet == struct.pack("<HHHHQ", *descriptor) + b"twelve bytes" + bytes(4)


@pytest.mark.parametrize("value", [HELLO, Channel(True), Channel(False), REQUEST, Attach(), PACKET, RAW], ids=repr)
def test_round_trip(value: Hello | Channel | Request | Attach | Packet) -> None:
    assert type(value).parse(value.pack()) == value
    assert type(value).parse(memoryview(value.pack())) == value


@pytest.mark.parametrize("value", [HELLO, Channel(True), REQUEST, Attach(), PACKET], ids=lambda v: type(v).__name__)
def test_every_other_length_is_refused(value: Hello | Channel | Request | Attach | Packet) -> None:
    payload = value.pack()
    for length in range(len(payload)):
        with pytest.raises(ProtocolError):
            type(value).parse(payload[:length])
    with pytest.raises(ProtocolError):
        type(value).parse(payload + b"\0")


def changed(payload: bytes, offset: int, fmt: str, value: int) -> bytes:
    data = bytearray(payload)
    struct.pack_into(fmt, data, offset, value)
    return bytes(data)


@pytest.mark.parametrize(
    ("offset", "fmt", "value", "words"),
    [
        (0, "<I", 1, "version 1"),
        (4, "<I", 3, "bytes, not"),
        (24, "<I", 2, "channel state 2"),
        (28, "<I", 17, "17 descriptors"),
        (28, "<I", 1, "descriptor 1 of 1"),
        (40, "<Q", 0, "is empty"),
        (40, "<Q", 2**64 - 1, "overlap"),
        (64, "<Q", 2**64 - 4096, "wraps around"),
        (80, "<Q", 2**64 - 4096, "wraps around in its descriptor"),
        (64, "<Q", 4095, "overlap"),
        (60, "<I", 2, "unknown flags"),
    ],
)
def test_hello_refusals(offset: int, fmt: str, value: int, words: str) -> None:
    with pytest.raises(ProtocolError, match=words):
        Hello.parse(changed(HELLO.pack(), offset, fmt, value))


@pytest.mark.parametrize(
    ("value", "offset", "fmt", "bad"),
    [
        (REQUEST, 10, "<H", 2),
        (REQUEST, 12, "<I", 2**32 - 1),
        (REQUEST, 16, "<I", 2**32 - 1),
        (REQUEST, 20, "<H", 0),
        (REQUEST, 22, "<H", 1),
        (PACKET, 10, "<H", 4),
        (PACKET, 12, "<H", 4097),
        (Channel(True), 0, "<I", 2),
        (Attach(), 0, "<I", 1),
        (Attach(), 4, "<I", 1),
    ],
)
def test_field_refusals(value: Channel | Request | Attach | Packet, offset: int, fmt: str, bad: int) -> None:
    with pytest.raises(ProtocolError):
        type(value).parse(changed(value.pack(), offset, fmt, bad))


def test_padding_must_be_zero() -> None:
    payload = Request(1, 9, True, b"12345", (), 1).pack()
    with pytest.raises(ProtocolError, match="padding"):
        Request.parse(changed(payload, 24 + 7, "<B", 1))


@pytest.mark.parametrize(
    "header",
    [
        struct.pack("<IHHII", 0, 1, 0, 0, 0),
        struct.pack("<IHHII", frames.MAGIC, 4, 0, 0, 0),
        struct.pack("<IHHII", frames.MAGIC, 1, 1, 0, 0),
        struct.pack("<IHHII", frames.MAGIC, 1, 0, 0, 1),
        struct.pack("<IHHII", frames.MAGIC, 1, 0, frames.MAX_PAYLOAD + 1, 0),
    ],
)
def test_header_refusals(header: bytes) -> None:
    with pytest.raises(ProtocolError):
        parse_header(header)


def test_mutated_payloads_parse_or_are_refused() -> None:
    """Random damage gives a value that packs to the same bytes, or ProtocolError; never anything else."""
    rng = random.Random(20)
    refused = 0
    for _ in range(20_000):
        value = rng.choice((HELLO, REQUEST, PACKET, Channel(True), Attach()))
        payload = bytearray(value.pack())
        for _ in range(rng.randint(1, 3)):
            payload[rng.randrange(len(payload))] = rng.choice((0, 1, 0x7F, 0xFF, rng.randrange(256)))
        if rng.random() < 0.2:
            del payload[rng.randrange(len(payload)) :]
        try:
            parsed = type(value).parse(bytes(payload))
        except ProtocolError:
            refused += 1
        else:
            assert parsed.pack() == payload
    assert 2000 < refused < 18_000


def test_vsp_request_bytes() -> None:
    header = wire.RequestHeader(0, 1, 2, 3, 4, 0x100, 5, 6, 7, 8, INSTANCE.bytes_le)
    assert header.pack() == struct.pack("<10I", 0, 1, 2, 3, 4, 0x100, 5, 6, 7, 8) + INSTANCE.bytes_le
    assert wire.RequestHeader.parse(header.pack()) == header
    assert header.transaction_guid == INSTANCE


def test_completion_bytes() -> None:
    assert wire.Completion(0xC000000D, 17).pack() == struct.pack("<III", 12, 0xC000000D, 17)
    assert wire.Completion.parse(struct.pack("<III", 12, 5, 6)) == wire.Completion(5, 6)


GOOD = wire.RequestHeader(0, 0, 0, 100, 50, 0x100, 4096, 10, 8192, 20, bytes(16))


@pytest.mark.parametrize(
    ("header", "status"),
    [
        (GOOD, None),
        (GOOD._replace(data_buffer_offset=2**32 - 1, data_buffer_length=0, data_buffer_valid=0), None),
        (GOOD._replace(response_buffer_length=4096), None),
        (GOOD._replace(version=1), wire.Status.REVISION_MISMATCH),
        (GOOD._replace(operation_type=0x101), wire.Status.NOT_SUPPORTED),
        (GOOD._replace(operation_type=0x102), wire.Status.NOT_SUPPORTED),
        (GOOD._replace(operation_type=0), wire.Status.INVALID_DEVICE_REQUEST),
        (GOOD._replace(operation_type=0x103), wire.Status.INVALID_DEVICE_REQUEST),
        (GOOD._replace(data_buffer_valid=101), wire.Status.INVALID_PARAMETER),
        (GOOD._replace(data_buffer_length=0), wire.Status.INVALID_PARAMETER),
        (GOOD._replace(data_buffer_length=4097), wire.Status.INVALID_PARAMETER),
        (GOOD._replace(request_buffer_offset=8190), wire.Status.INVALID_PARAMETER),
        (GOOD._replace(response_buffer_length=4097), wire.Status.INVALID_PARAMETER),
        (GOOD._replace(response_buffer_offset=2**32 - 1), wire.Status.INVALID_PARAMETER),
        (GOOD._replace(response_buffer_offset=2**32 - 4, response_buffer_length=8), wire.Status.INVALID_PARAMETER),
        (GOOD._replace(request_buffer_length=2**32 - 1), wire.Status.INVALID_PARAMETER),
    ],
)
def test_refusal(header: wire.RequestHeader, status: wire.Status | None) -> None:
    refused = wire.refusal(header, 3 * 4096)
    assert (refused.status if refused else None) == status
