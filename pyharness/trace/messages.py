# SPDX-License-Identifier: GPL-2.0-only
"""The control messages of VMBus: a table of their layouts, and what reads a message by it."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

_HEADER = struct.Struct("<II")
_GUID = "16s"
_CUT = 32


@dataclass(frozen=True)
class Field:
    """A field of a body; `code` is struct's."""

    name: str
    code: str = "I"
    value: Callable[[Any], Any] = lambda raw: raw
    """Makes of what struct reads what JSON is to hold."""
    text: Callable[[Any], str] | None = str
    """Makes of that what a person reads; None: a person is not told of it."""
    is_quiet: bool = False
    """A person is not told of it while it is zero."""


@dataclass(frozen=True)
class Layout:
    """A message's body: fields that follow each other without gaps, then perhaps page frame numbers to the end."""

    name: str
    fields: tuple[Field, ...] = ()
    required: int | None = None
    """How many of the fields each sender sends; None: all."""
    has_pages: bool = False


@dataclass(frozen=True)
class Decoded:
    """What a record says."""

    name: str
    values: dict[str, Any] = field(default_factory=dict)
    """Its fields as JSON is to hold them."""
    texts: dict[str, str] = field(default_factory=dict)
    """Those that a person is told, by the same names."""
    fault: str = ""
    """Why not all of it can be read, if so."""


def cut_hex(octets: bytes) -> str:
    """The first bytes in hexadecimal."""
    return octets[:_CUT].hex() + ("..." if len(octets) > _CUT else "")


def _guid(raw: bytes) -> str:
    return str(UUID(bytes_le=raw))


def _version(raw: int) -> str:
    return f"{raw >> 16}.{raw & 0xFFFF}"


def _until_zeros(raw: bytes) -> str:
    return raw.rstrip(b"\0").hex()


RELID = Field("relid")
GPADL = Field("gpadl", text=hex)
STATUS = Field("status", text=lambda status: f"{status:#x}" if status else "0")
OPEN_ID = Field("open_id")
VP = Field("target_vp")
USER_DATA = Field("user_data", "120s", _until_zeros, is_quiet=True)

LAYOUTS = {
    0: Layout("INVALID"),
    1: Layout(
        "OFFERCHANNEL",
        (
            Field("class", _GUID, _guid),
            Field("instance", _GUID, _guid),
            Field("reserved1", "Q", is_quiet=True),
            Field("reserved2", "Q", is_quiet=True),
            Field("flags", "H", text=hex),
            Field("mmio_mb", "H", is_quiet=True),
            USER_DATA,
            Field("subchannel", "H", is_quiet=True),
            Field("reserved3", "H", is_quiet=True),
            RELID,
            Field("monitor_id", "B", is_quiet=True),
            Field("monitor_allocated", "B", is_quiet=True),
            Field("dedicated_interrupt", "H", is_quiet=True),
            Field("connection_id", text=hex),
        ),
    ),
    2: Layout("RESCIND_CHANNELOFFER", (RELID,)),
    3: Layout("REQUESTOFFERS"),
    4: Layout("ALLOFFERS_DELIVERED"),
    5: Layout(
        "OPENCHANNEL",
        (RELID, OPEN_ID, GPADL, VP, Field("downstream_page"), USER_DATA),
    ),
    6: Layout("OPENCHANNEL_RESULT", (RELID, OPEN_ID, STATUS)),
    7: Layout("CLOSECHANNEL", (RELID,)),
    8: Layout(
        "GPADL_HEADER",
        (
            RELID,
            GPADL,
            Field("range_bytes", "H", text=None),
            Field("ranges", "H"),
            # Of the first range, whose pages follow; a ring has no second one.
            Field("bytes"),
            Field("offset", is_quiet=True),
        ),
        has_pages=True,
    ),
    9: Layout("GPADL_BODY", (Field("number"), GPADL), has_pages=True),
    10: Layout("GPADL_CREATED", (RELID, GPADL, STATUS)),
    11: Layout("GPADL_TEARDOWN", (RELID, GPADL)),
    12: Layout("GPADL_TORNDOWN", (GPADL,)),
    13: Layout("RELID_RELEASED", (RELID,)),
    14: Layout(
        "INITIATE_CONTACT",
        (
            Field("version", value=_version),
            VP,
            # From 5.0 on: the SINT and the VTL of messages, then flags.
            Field("interrupt_page", "Q", text=hex),
            Field("monitor_page1", "Q", text=None),
            Field("monitor_page2", "Q", text=None),
        ),
    ),
    15: Layout(
        "VERSION_RESPONSE",
        (
            Field("supported", "B", bool, lambda value: "yes" if value else "no"),
            Field("state", "B", is_quiet=True),
            Field("reserved", "H", is_quiet=True),
            Field("connection_id", is_quiet=True),
        ),
        required=2,
    ),
    16: Layout("UNLOAD"),
    17: Layout("UNLOAD_RESPONSE"),
    21: Layout("TL_CONNECT_REQUEST", (Field("guest_endpoint", _GUID, _guid), Field("host_service", _GUID, _guid))),
    22: Layout("MODIFYCHANNEL", (RELID, VP)),
    23: Layout(
        "TL_CONNECT_RESULT", (Field("guest_endpoint", _GUID, _guid), Field("host_service", _GUID, _guid), STATUS)
    ),
    24: Layout("MODIFYCHANNEL_RESPONSE", (RELID, STATUS)),
}
"""By message type. All integers are little-endian."""


def decode_message(message: bytes) -> Decoded:
    """Read a control message as far as it can be read."""
    if len(message) < _HEADER.size:
        return Decoded("MESSAGE", fault=f"only {len(message)} bytes: {cut_hex(message)}")
    kind, _ = _HEADER.unpack_from(message)
    body = message[_HEADER.size :]
    if kind not in LAYOUTS:
        return Decoded(f"MESSAGE_{kind}", fault=f"unknown type, {len(body)} bytes: {cut_hex(body)}")
    return _decode_body(LAYOUTS[kind], body)


def _decode_body(layout: Layout, body: bytes) -> Decoded:
    decoded, position = Decoded(layout.name), 0
    for index, row in enumerate(layout.fields):
        reader = struct.Struct("<" + row.code)
        if position + reader.size > len(body):
            if layout.required is None or index < layout.required:
                fault = f"{row.name} is missing, the body has only {len(body)} bytes: {cut_hex(body)}"
                return Decoded(decoded.name, decoded.values, decoded.texts, fault)
            break
        value = row.value(*reader.unpack_from(body, position))
        position += reader.size
        decoded.values[row.name] = value
        if row.text and (value or not row.is_quiet):
            decoded.texts[row.name] = row.text(value)
    if layout.has_pages:
        count = (len(body) - position) // 8
        decoded.values["pages"] = list(struct.unpack_from(f"<{count}Q", body, position))
        decoded.texts["pages"] = str(count)
    return decoded
