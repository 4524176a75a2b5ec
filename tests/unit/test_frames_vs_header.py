# SPDX-License-Identifier: GPL-2.0-only
"""What Python packs, found where C looks for it: each value in the field of its name.

That both have the same structs is `test_abi_planted`'s; this is about the order of the arguments.
"""

from __future__ import annotations

from typing import NamedTuple
from uuid import UUID

import pytest

from pyharness import repository
from pyharness.abi import mirror
from pyharness.abi.header import compile_header
from pyharness.abi.model import Struct
from pyharness.abi.sources import QEMU, WIRE
from pyharness.vsp import frames
from pyharness.vsp.frames import Attach, Channel, FrameType, Hello, Packet, Region, Request
from pyharness.vsp.wire import Completion, Descriptor, RequestHeader

HELLO = Hello(
    UUID("a1a2a3a4-b1b2-c1c2-d1d2-e1e2e3e4e5e6"), True, 13, (Region(0x1111, 0x2222, 0x3333, 12, True),)
).pack()
REQUEST = Request(0x0102030405060708, 0x1112, True, bytes(0x41), (0xAAAA, 0xBBBB, 0xCCCC, 0xDDDD), 0x2122).pack()
PACKET = Packet(0x0807060504030201, 0x3132, b"payload", True, 0x4142).pack()


class Mirror(NamedTuple):
    """Bytes that the Python side packed, and what C must find in them. Every field has a value of its own."""

    struct: str
    packed: bytes
    fields: dict[str, int | bytes]


MIRRORS = [
    Mirror(
        "AzureBlobFrame",
        frames.pack_frame(FrameType.REQUEST, bytes(0x4567)),
        {"magic": frames.MAGIC, "type": 3, "reserved0": 0, "length": 0x4567, "reserved1": 0},
    ),
    Mirror(
        "AzureBlobHello",
        HELLO,
        {
            "version": 2,
            "num_regions": 1,
            "instance": bytes.fromhex("a4a3a2a1b2b1c2c1d1d2e1e2e3e4e5e6"),
            "channel_open": 1,
            "num_fds": 13,
        },
    ),
    Mirror(
        "AzureBlobRegion",
        HELLO[-32:],
        {"gpa": 0x1111, "size": 0x2222, "fd_offset": 0x3333, "fd_index": 12, "flags": 1},
    ),
    Mirror("AzureBlobChannel", Channel(True).pack(), {"open": 1}),
    Mirror(
        "AzureBlobRequest",
        REQUEST,
        {
            "transaction_id": 0x0102030405060708,
            "packet_type": 0x1112,
            "flags": 1,
            "inline_len": 0x41,
            "num_segments": 2,
            "epoch": 0x2122,
            "reserved": 0,
        },
    ),
    Mirror("AzureBlobSegment", REQUEST[-16:], {"gpa": 0xCCCC, "len": 0xDDDD}),
    Mirror("AzureBlobAttach", Attach().pack(), {"version": 2, "flags": 0}),
    Mirror(
        "AzureBlobPacket",
        PACKET,
        {"transaction_id": 0x0807060504030201, "packet_type": 0x3132, "flags": 1, "payload_len": 7, "epoch": 0x4142},
    ),
    Mirror(
        "AzureBlobResponse",
        Completion(length=12, error=0xC000020C, response_len=34).pack(),
        {"length": 12, "error": 0xC000020C, "response_len": 34},
    ),
    Mirror(
        "az_blob_wire_request",
        RequestHeader(0, 11, 22, 33, 44, 0x100, 55, 66, 77, 88, bytes(range(16))).pack(),
        {
            "version": 0,
            "timeout_ms": 11,
            "data_offset": 22,
            "data_len": 33,
            "data_valid": 44,
            "operation": 0x100,
            "request_offset": 55,
            "request_len": 66,
            "response_offset": 77,
            "response_len": 88,
            "guid": bytes(range(16)),
        },
    ),
    Mirror(
        "az_blob_wire_completion",
        Completion(length=12, error=0xC000020C, response_len=34).pack(),
        {"len": 12, "status": 0xC000020C, "response_len": 34},
    ),
    Mirror(
        "vmpacket_descriptor",
        Descriptor(packet_type=1, offset8=2, len8=3, flags=4, transaction_id=5).pack(),
        {"type": 1, "offset8": 2, "len8": 3, "flags": 4, "trans_id": 5},
    ),
]


@pytest.fixture(scope="module")
def structs() -> dict[str, Struct]:
    """Those of QEMU's header as the compiler has them, and those of the wire, which the driver's are compared with."""
    compiled = compile_header(repository.ROOT / QEMU, 64).structs
    return {**mirror.load(repository.ROOT / WIRE).structs, **compiled}


@pytest.mark.parametrize("mirrored", MIRRORS, ids=[mirrored.struct for mirrored in MIRRORS])
def test_each_value_is_in_its_field(structs: dict[str, Struct], mirrored: Mirror) -> None:
    for field in structs[mirrored.struct].fields:
        expected = mirrored.fields[field.name]
        found = mirrored.packed[field.offset : field.offset + field.size]
        assert found == (expected if isinstance(expected, bytes) else expected.to_bytes(field.size, "little")), field


def test_every_struct_is_here(structs: dict[str, Struct]) -> None:
    assert structs.keys() == {mirrored.struct for mirrored in MIRRORS}


def test_variable_parts_follow_the_structs(structs: dict[str, Struct]) -> None:
    hello, region = structs["AzureBlobHello"].size, structs["AzureBlobRegion"].size
    request, segment = structs["AzureBlobRequest"].size, structs["AzureBlobSegment"].size
    assert len(HELLO) == hello + region
    assert len(REQUEST) == request + 0x48 + 2 * segment
    assert PACKET[structs["AzureBlobPacket"].size :] == b"payload"
