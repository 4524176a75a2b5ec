# SPDX-License-Identifier: GPL-2.0-only
"""What the VSC and the VSP say to each other: the 56-byte request, the 12-byte completion, the status codes.

And the packet of VMBus in which they say it, for hosts that get that wrong too.
"""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple
from uuid import UUID

from pyharness.vsp.layout import Layout

REQUEST_VERSION = 0

AZURE_BLOB_CLASS = UUID("0590b792-db64-45cc-81db-b8d70c577c9e")

_REQUEST = Layout(
    "az_blob_wire_request",
    "I version",
    "I timeout_ms",
    "I data_offset",
    "I data_len",
    "I data_valid",
    "I operation",
    "I request_offset",
    "I request_len",
    "I response_offset",
    "I response_len",
    "16s guid",
)
_COMPLETION = Layout("az_blob_wire_completion", "I len", "I status", "I response_len")
_DESCRIPTOR = Layout("vmpacket_descriptor", "H type", "H offset8", "H len8", "H flags", "Q trans_id")
REQUEST_SIZE = _REQUEST.size
COMPLETION_SIZE = _COMPLETION.size
DESCRIPTOR_SIZE = _DESCRIPTOR.size
_UNIT = 8
"""VMBus counts in units of so many bytes."""


class Operation(IntEnum):
    """operation_type of a request. Only USER_REQUEST is served."""

    USER_REQUEST = 0x100
    REGISTER_BUFFER = 0x101
    DEREGISTER_BUFFER = 0x102


class Status(IntEnum):
    """The `error` field of a completion: NTSTATUS values ([MS-ERREF] 2.3.1), and when this VSP gives each."""

    SUCCESS = 0x00000000
    ACCESS_VIOLATION = 0xC0000005
    """The answer had to be written to guest memory that is read-only."""
    INVALID_PARAMETER = 0xC000000D
    """Offsets and lengths do not add up, or data_buffer_valid exceeds data_buffer_length."""
    INVALID_DEVICE_REQUEST = 0xC0000010
    """operation_type is unknown, or the packet is not one that uses GPA direct."""
    BUFFER_TOO_SMALL = 0xC0000023
    """The response head does not fit into the response buffer. The operation itself has been carried out."""
    REVISION_MISMATCH = 0xC0000059
    """The request's version is not 0."""
    NOT_SUPPORTED = 0xC00000BB
    """A registered-buffer operation."""
    IO_TIMEOUT = 0xC00000B5
    """The backend did not answer within the request's timeout."""
    INVALID_NETWORK_RESPONSE = 0xC00000C3
    """What the backend's endpoint said is no HTTP/1.1."""
    UNEXPECTED_NETWORK_ERROR = 0xC00000C4
    """The way to the backend's endpoint failed in another manner than those below."""
    INTERNAL_ERROR = 0xC00000E5
    """The backend raised; the traceback is in `VspServer.errors`."""
    INVALID_ADDRESS = 0xC0000141
    """A page lies outside guest RAM."""
    INVALID_BUFFER_SIZE = 0xC0000206
    """The inline data is not 56 bytes long."""
    CONNECTION_DISCONNECTED = 0xC000020C
    """Given by the device itself while no backend is attached."""
    CONNECTION_RESET = 0xC000020D
    """The backend's endpoint hung up in the middle of the request; whether it carried it out is unknown."""
    CONNECTION_REFUSED = 0xC0000236
    """Nobody listens at the backend's endpoint, so nothing was sent; so too with the next two."""
    NETWORK_UNREACHABLE = 0xC000023C
    HOST_UNREACHABLE = 0xC000023D


class RequestHeader(NamedTuple):
    """The VSP request. Buffer offsets and lengths are bytes, offsets count from the start of the whole page array."""

    version: int
    timeout_ms: int
    data_buffer_offset: int
    data_buffer_length: int
    data_buffer_valid: int
    operation_type: int
    request_buffer_offset: int
    request_buffer_length: int
    response_buffer_offset: int
    response_buffer_length: int
    guid: bytes
    """The transaction GUID in wire order; `transaction_guid` reads it."""

    @property
    def transaction_guid(self) -> UUID:
        """The GUID that the user gave to the ioctl; Windows order, its first three fields little-endian."""
        return UUID(bytes_le=self.guid)

    def pack(self) -> bytes:
        """The 56 bytes."""
        return _REQUEST.pack(*self)

    @classmethod
    def parse(cls, inline: bytes) -> RequestHeader:
        """Take the fields as they are; `inline` must be 56 bytes. Judging them is `refusal`'s job."""
        return cls._make(_REQUEST.unpack(inline))


class Completion(NamedTuple):
    """The VSP's answer. `length` is that of the struct itself, `response_len` what the response buffer holds."""

    error: int
    response_len: int
    length: int = COMPLETION_SIZE

    def pack(self) -> bytes:
        """The 12 bytes."""
        return _COMPLETION.pack(self.length, self.error, self.response_len)

    @classmethod
    def parse(cls, payload: bytes) -> Completion:
        """`payload` must be 12 bytes."""
        length, error, response_len = _COMPLETION.unpack(payload)
        return cls(error, response_len, length)


class Descriptor(NamedTuple):
    """The head of each VMBus packet (struct vmpacket_descriptor, include/linux/hyperv.h)."""

    packet_type: int
    offset8: int
    """Where the payload begins, in units of 8 bytes."""
    len8: int
    """How long the packet is, this head included, in units of 8 bytes."""
    flags: int
    """Bit 0: a completion is asked for."""
    transaction_id: int

    def pack(self) -> bytes:
        """The 16 bytes."""
        return _DESCRIPTOR.pack(*self)

    @classmethod
    def parse(cls, packet: bytes) -> Descriptor:
        """`packet` must have 16 bytes or more."""
        return cls._make(_DESCRIPTOR.unpack_from(packet))


def vmbus_packet(payload: bytes, packet_type: int, transaction_id: int, /, **wrong: int) -> bytes:
    """A whole packet, for `Packet.raw`; `wrong` are fields of its descriptor that are to lie."""
    offset8 = DESCRIPTOR_SIZE // _UNIT
    right = Descriptor(packet_type, offset8, offset8 + -(-len(payload) // _UNIT), 0, transaction_id)
    return (right._replace(**wrong).pack() + payload).ljust(right.len8 * _UNIT, b"\0")


class Refusal(NamedTuple):
    """Why the VSP does not serve a request."""

    status: Status
    reason: str


def refusal(header: RequestHeader, page_bytes: int) -> Refusal | None:
    """Judge a request that came with `page_bytes` of guest memory; None when it can be served."""
    if header.version != REQUEST_VERSION:
        return Refusal(Status.REVISION_MISMATCH, f"request version {header.version}")
    if header.operation_type != Operation.USER_REQUEST:
        if header.operation_type in (Operation.REGISTER_BUFFER, Operation.DEREGISTER_BUFFER):
            return Refusal(Status.NOT_SUPPORTED, "registered buffers")
        return Refusal(Status.INVALID_DEVICE_REQUEST, f"operation {header.operation_type:#x}")
    end = 0
    for name, offset, length in (
        ("data", header.data_buffer_offset, header.data_buffer_length),
        ("request", header.request_buffer_offset, header.request_buffer_length),
        ("response", header.response_buffer_offset, header.response_buffer_length),
    ):
        if length == 0:
            continue
        if offset < end:
            return Refusal(Status.INVALID_PARAMETER, f"{name} buffer at {offset} starts before {end}")
        end = offset + length
        if end > page_bytes:
            return Refusal(Status.INVALID_PARAMETER, f"{name} buffer ends at {end} of {page_bytes} bytes")
    if header.data_buffer_valid > header.data_buffer_length:
        return Refusal(
            Status.INVALID_PARAMETER, f"{header.data_buffer_valid} valid bytes of {header.data_buffer_length}"
        )
    return None
