# SPDX-License-Identifier: GPL-2.0-only
"""The packets of a channel, and what the Azure Blob driver and its host say in them."""

from __future__ import annotations

import struct
from contextlib import suppress

from pyharness.trace.messages import Decoded, cut_hex
from pyharness.trace.records import Packet, RawPacket
from pyharness.vsp.wire import (
    AZURE_BLOB_CLASS,
    COMPLETION_SIZE,
    REQUEST_SIZE,
    Completion,
    Operation,
    RequestHeader,
    Status,
)

GPA_DIRECT, COMPLETION = 9, 11
WANTS_COMPLETION = 1
"""The flag of a packet that is to be answered by a completion of the same id."""

_NAMES = {
    1: "SYNCH",
    2: "ADD_XFER_PAGESET",
    3: "REMOVE_XFER_PAGESET",
    4: "ESTABLISH_GPADL",
    5: "TEARDOWN_GPADL",
    6: "INBAND",
    7: "XFER_PAGES",
    8: "GPADL",
    GPA_DIRECT: "GPA_DIRECT",
    10: "CANCEL_REQUEST",
    COMPLETION: "COMPLETION",
    12: "ADDITIONAL_PACKET",
    13: "ADDITIONAL_DATA",
}
# type, offset and length in units of 8 bytes, flags, transaction id
_DESCRIPTOR = struct.Struct("<HHHHQ")
_BUFFERS = ("data", "request", "response")


def decode_packet(packet: Packet, device_class: str) -> Decoded:
    """Read a packet. Where the offer has not been seen the class is empty, and the size tells what the data is."""
    decoded = Decoded(_name(packet.type), {}, {"id": str(packet.id)})
    if packet.type == GPA_DIRECT:
        decoded.texts.update(memory=str(packet.memory), segments=str(packet.segments))
    is_blob = device_class in ("", str(AZURE_BLOB_CLASS))
    if is_blob and (packet.type, len(packet.data)) == (GPA_DIRECT, REQUEST_SIZE):
        _read_request(RequestHeader.parse(packet.data), decoded)
    elif is_blob and (packet.type, len(packet.data)) == (COMPLETION, COMPLETION_SIZE):
        _read_completion(Completion.parse(packet.data), decoded)
    else:
        decoded.texts["data"] = f"{len(packet.data)}:{cut_hex(packet.data)}"
    return decoded


def decode_raw(packet: RawPacket) -> Decoded:
    """Read what the packet's descriptor claims."""
    if len(packet.raw) < _DESCRIPTOR.size:
        return Decoded("RAW", fault=f"no descriptor, only {len(packet.raw)} bytes: {cut_hex(packet.raw)}")
    kind, offset8, len8, flags, id_ = _DESCRIPTOR.unpack_from(packet.raw)
    claims = {"claims": _name(kind), "offset": offset8 * 8, "length": len8 * 8, "flags": flags, "id": id_}
    texts = {name: str(value) for name, value in claims.items()}
    texts["data"] = f"{len(packet.raw)}:{cut_hex(packet.raw)}"
    return Decoded("RAW", claims, texts)


def _name(kind: int) -> str:
    return _NAMES.get(kind, f"PACKET_{kind}")


def _read_request(header: RequestHeader, into: Decoded) -> None:
    operation = f"{header.operation_type:#x}"
    with suppress(ValueError):
        operation = Operation(header.operation_type).name
    into.values.update(header._asdict(), operation=operation, guid=str(header.transaction_guid))
    into.texts["operation"] = operation
    for name in _BUFFERS:
        offset, length = (getattr(header, f"{name}_buffer_{what}") for what in ("offset", "length"))
        into.texts[name] = f"{length}@{offset}"
    into.texts["valid"] = str(header.data_buffer_valid)
    if header.version:
        into.texts["version"] = str(header.version)
    into.texts["timeout_ms"] = str(header.timeout_ms)
    into.texts["guid"] = str(header.transaction_guid)


def _read_completion(completion: Completion, into: Decoded) -> None:
    status = f"{completion.error:#x}"
    with suppress(ValueError):
        status = Status(completion.error).name
    into.values.update(completion._asdict(), status=status)
    into.texts["status"] = status
    into.texts["response_len"] = str(completion.response_len)
    if completion.length != COMPLETION_SIZE:
        into.texts["length"] = str(completion.length)
