# SPDX-License-Identifier: GPL-2.0-only
"""The Python frames against the C header that the QEMU device is built from."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import NamedTuple
from uuid import UUID

import pytest

from pyharness.vsp import frames
from pyharness.vsp.frames import Attach, Channel, FrameType, Hello, Packet, Region, Request
from pyharness.vsp.wire import Completion, Status

HEADER = Path(__file__).parents[2] / "qemu/src/include/hw/hyperv/azure-blob-backend.h"

HELLO = Hello(
    UUID("a1a2a3a4-b1b2-c1c2-d1d2-e1e2e3e4e5e6"), True, 13, (Region(0x1111, 0x2222, 0x3333, 12, True),)
).pack()
REQUEST = Request(0x0102030405060708, 0x1112, True, bytes(0x41), (0xAAAA, 0xBBBB, 0xCCCC, 0xDDDD), 0x2122).pack()
PACKET = Packet(0x0807060504030201, 0x3132, b"payload", True, 0x4142).pack()

CONSTANTS = {
    "AZURE_BLOB_PROTOCOL_VERSION": frames.PROTOCOL_VERSION,
    "AZURE_BLOB_FRAME_MAGIC": frames.MAGIC,
    "AZURE_BLOB_MAX_PAYLOAD": frames.MAX_PAYLOAD,
    "AZURE_BLOB_MAX_FDS": frames.MAX_FDS,
    "AZURE_BLOB_MAX_PACKET_PAYLOAD": frames.MAX_PACKET_PAYLOAD,
    "AZURE_BLOB_MAX_IN_FLIGHT": frames.MAX_IN_FLIGHT,
    "AZURE_BLOB_FLAG_WANTS_COMPLETION": frames.FLAG_WANTS_COMPLETION,
    "AZURE_BLOB_FLAG_RAW": frames.FLAG_RAW,
    "AZURE_BLOB_STATUS_DISCONNECTED": Status.CONNECTION_DISCONNECTED,
    **{f"AZURE_BLOB_FRAME_{member.name}": member.value for member in FrameType},
}


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
]


@pytest.fixture(scope="module")
def header(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, ...]]:
    """Constants as (value,), structs as (size,), fields as (offset, size), as the compiler sees them."""
    directory = tmp_path_factory.mktemp("header")
    lines = [f'printf("{name} %llu\\n", (unsigned long long){name});' for name in CONSTANTS]
    for mirror in MIRRORS:
        lines.append(f'printf("{mirror.struct} %zu\\n", sizeof({mirror.struct}));')
        lines += [
            f'printf("{mirror.struct}.{field} %zu %zu\\n", '
            f"offsetof({mirror.struct}, {field}), sizeof((({mirror.struct} *)0)->{field}));"
            for field in mirror.fields
        ]
    source = directory / "header.c"
    source.write_text(
        f'#include "{HEADER}"\n#include <stddef.h>\n#include <stdio.h>\nint main(void)\n{{\n'
        + "\n".join(lines)
        + "\n}\n"
    )
    program = directory / "header"
    subprocess.run(["gcc", "-std=gnu11", "-Wall", "-Wextra", "-Werror", source, "-o", program], check=True)
    printed = subprocess.run([program], capture_output=True, text=True, check=True).stdout
    return {name: tuple(map(int, numbers)) for name, *numbers in map(str.split, printed.splitlines())}


@pytest.mark.parametrize("name", CONSTANTS)
def test_constant(header: dict[str, tuple[int, ...]], name: str) -> None:
    assert header[name] == (CONSTANTS[name],)


@pytest.mark.parametrize("mirror", MIRRORS, ids=[mirror.struct for mirror in MIRRORS])
def test_struct(header: dict[str, tuple[int, ...]], mirror: Mirror) -> None:
    for field, expected in mirror.fields.items():
        offset, size = header[f"{mirror.struct}.{field}"]
        found = mirror.packed[offset : offset + size]
        assert found == (expected if isinstance(expected, bytes) else expected.to_bytes(size, "little")), field


@pytest.mark.parametrize("mirror", MIRRORS, ids=[mirror.struct for mirror in MIRRORS])
def test_no_field_is_left_out(header: dict[str, tuple[int, ...]], mirror: Mirror) -> None:
    covered = sum(header[f"{mirror.struct}.{field}"][1] for field in mirror.fields)
    assert header[mirror.struct] == (covered,)


def test_variable_parts_follow_the_structs(header: dict[str, tuple[int, ...]]) -> None:
    (hello,), (region,) = header["AzureBlobHello"], header["AzureBlobRegion"]
    (request,), (segment,) = header["AzureBlobRequest"], header["AzureBlobSegment"]
    (packet,) = header["AzureBlobPacket"]
    assert len(HELLO) == hello + region
    assert len(REQUEST) == request + 0x48 + 2 * segment
    assert PACKET[packet:] == b"payload"
