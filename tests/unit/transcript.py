# SPDX-License-Identifier: GPL-2.0-only
"""A transcript made by hand: what QEMU would write of a device's life, with each message's bytes spelled out."""

from __future__ import annotations

import json
import struct
from uuid import UUID

from pyharness.trace.dialogue import Dialogue, Event
from pyharness.trace.records import Transcript
from pyharness.vsp.wire import AZURE_BLOB_CLASS, Completion, Operation, RequestHeader

INSTANCE = UUID("0c9d2a6e-2f3b-4f8e-9a53-6d5f5b1e0a01")
GUID = UUID("00112233-4455-6677-8899-aabbccddeeff")
HEADER = b'{"vmbus-transcript": 1, "kernel": "k 6.12", "qemu": "q", "driver": "d", "accelerator": "tcg"}\n'

# Types of control messages.
OFFER, RESCIND, REQUEST_OFFERS, ALL_OFFERS, OPEN, OPENED, CLOSE = range(1, 8)
GPADL, GPADL_BODY, GPADL_CREATED, GPADL_TEARDOWN, GPADL_TORNDOWN, RELEASED, INITIATE, VERSION = range(8, 16)
UNLOAD, UNLOADED = 16, 17
MODIFY, MODIFIED = 22, 24


def message(ns: int, sender: str, kind: int, body: bytes = b"") -> bytes:
    return line(ns=ns, message=(struct.pack("<II", kind, 0) + body).hex(), **{"from": sender})


def u32(*values: int) -> bytes:
    return struct.pack(f"<{len(values)}I", *values)


def u64(*values: int) -> bytes:
    return struct.pack(f"<{len(values)}Q", *values)


def initiate(ns: int, major: int, minor: int) -> bytes:
    return message(ns, "guest", INITIATE, u32(major << 16 | minor, 0) + u64(0x1000, 0x2000, 0x3000))


def version(ns: int, supported: bool) -> bytes:
    return message(ns, "host", VERSION, bytes((supported, 0)))


def offer(ns: int, relid: int, instance: UUID = INSTANCE, device_class: UUID = AZURE_BLOB_CLASS) -> bytes:
    guids = device_class.bytes_le + instance.bytes_le
    rest = struct.pack("<QQHH120sHHIBBHI", 0, 0, 0x200, 0, b"", 0, 0, relid, 0, 0, 1, 0x2000 + relid)
    return message(ns, "host", OFFER, guids + rest)


def gpadl_header(ns: int, relid: int, gpadl: int, *pages: int) -> bytes:
    body = u32(relid, gpadl) + struct.pack("<HHII", 8 + 8 * len(pages), 1, 4096 * len(pages), 0) + u64(*pages)
    return message(ns, "guest", GPADL, body)


def request(ns: int, relid: int, id_: int, data: bytes | None = None, flags: int = 1) -> bytes:
    blob = RequestHeader(0, 30000, 0, 4096, 100, Operation.USER_REQUEST, 4096, 40, 8192, 4096, GUID.bytes_le)
    data = blob.pack() if data is None else data
    known = {"relid": relid, "type": 9, "flags": flags, "id": id_, "data": data.hex(), "segments": 2, "bytes": 12288}
    return line(ns=ns, **{"from": "guest"}, **known)


def completion(ns: int, relid: int, id_: int, error: int = 0, sender: str = "host") -> bytes:
    data = Completion(error, 7).pack().hex()
    return line(ns=ns, relid=relid, type=11, flags=0, id=id_, data=data, **{"from": sender})


def raw(ns: int, relid: int, octets: bytes) -> bytes:
    return line(ns=ns, relid=relid, raw=octets.hex(), **{"from": "host"})


def line(**entry: object) -> bytes:
    return json.dumps(entry).encode() + b"\n"


def opened(ns: int, relid: int, gpadl: int) -> list[bytes]:
    """A channel's ring, and the channel."""
    return [
        gpadl_header(ns, relid, gpadl, 0x10, 0x11),
        message(ns + 1000, "guest", GPADL_BODY, u32(0, gpadl) + u64(0x12)),
        message(ns + 2000, "host", GPADL_CREATED, u32(relid, gpadl, 0)),
        message(ns + 3000, "guest", OPEN, u32(relid, relid, gpadl, 1, 2) + bytes(120)),
        message(ns + 4500, "host", OPENED, u32(relid, relid, 0)),
    ]


def closed(ns: int, relid: int, gpadl: int) -> list[bytes]:
    return [
        message(ns, "guest", CLOSE, u32(relid)),
        message(ns + 1000, "guest", GPADL_TEARDOWN, u32(relid, gpadl)),
        message(ns + 2000, "host", GPADL_TORNDOWN, u32(gpadl)),
    ]


def life(ns: int = 8_000_000_000, relid: int = 2, gpadl: int = 0xE1E10, id_: int = 1) -> list[bytes]:
    """From the first contact to the last word; 23 lines with the header."""
    return [
        HEADER,
        initiate(ns, 4, 1),
        version(ns + 1000, False),
        initiate(ns + 2000, 4, 0),
        version(ns + 3500, True),
        message(ns + 4000, "guest", REQUEST_OFFERS),
        offer(ns + 5000, relid),
        message(ns + 6000, "host", ALL_OFFERS),
        *opened(ns + 10_000, relid, gpadl),
        request(ns + 20_000, relid, id_),
        completion(ns + 143_400, relid, id_),
        *closed(ns + 200_000, relid, gpadl),
        message(ns + 210_000, "guest", RELEASED, u32(relid)),
        message(ns + 220_000, "guest", UNLOAD),
        message(ns + 221_000, "host", UNLOADED),
    ]


def events(*lines: bytes) -> list[Event]:
    return list(Dialogue(Transcript(lines, "test")))


def odd(*lines: bytes) -> list[tuple[int, str]]:
    """What is said of which line, where something is."""
    return [(event.line.number, str(event.pair.oddity)) for event in events(*lines) if event.pair.oddity]


def pairs(*lines: bytes) -> dict[int, int]:
    """Requests by their answers."""
    found = events(*lines)
    return {event.line.number: event.pair.request for event in found if event.pair.request is not None}
