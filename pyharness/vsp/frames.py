# SPDX-License-Identifier: GPL-2.0-only
"""The frames between the QEMU device and its backend (docs/vsp-protocol.md).

Each struct packs to and parses from the payload of one frame. Parsing is strict: what the document does not allow
raises `ProtocolError`, and nothing else is ever raised.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from enum import IntEnum
from itertools import pairwise
from typing import NamedTuple
from uuid import UUID

from pyharness.errors import HarnessError
from pyharness.vsp.layout import Layout

MAGIC = 0x42505641
PROTOCOL_VERSION = 2
MAX_PAYLOAD = 2 << 20
MAX_FDS = 16
MAX_PACKET_PAYLOAD = 4096
MAX_IN_FLIGHT = 1024
FLAG_WANTS_COMPLETION = 1
FLAG_RAW = 2

_HEADER = Layout("AzureBlobFrame", "I magic", "H type", "H reserved0", "I length", "I reserved1")
_HELLO = Layout("AzureBlobHello", "I version", "I num_regions", "16s instance", "I channel_open", "I num_fds")
_REGION = Layout("AzureBlobRegion", "Q gpa", "Q size", "Q fd_offset", "I fd_index", "I flags")
_CHANNEL = Layout("AzureBlobChannel", "I open")
_REQUEST = Layout(
    "AzureBlobRequest",
    "Q transaction_id",
    "H packet_type",
    "H flags",
    "I inline_len",
    "I num_segments",
    "H epoch",
    "H reserved",
)
_SEGMENT = Layout("AzureBlobSegment", "Q gpa", "Q len")
_ATTACH = Layout("AzureBlobAttach", "I version", "I flags")
_PACKET = Layout("AzureBlobPacket", "Q transaction_id", "H packet_type", "H flags", "H payload_len", "H epoch")
HEADER_SIZE = _HEADER.size
_ADDRESS_SPACE = 1 << 64


class ProtocolError(HarnessError):
    """The other side of the socket broke the backend protocol; the connection is over."""

    def __init__(self, message: str) -> None:
        super().__init__(message, mend="rebuild QEMU and the harness from the same checkout")


class FrameType(IntEnum):
    """What a frame carries."""

    HELLO = 1
    CHANNEL = 2
    REQUEST = 3
    ATTACH = 101
    PACKET = 102


class PacketType(IntEnum):
    """VMBus packet types that this project sends or expects (enum vmbus_packet_type, include/linux/hyperv.h)."""

    IN_BAND = 6
    GPA_DIRECT = 9
    COMPLETION = 11


def pack_frame(frame_type: int, payload: bytes) -> bytes:
    """One whole frame."""
    return _HEADER.pack(MAGIC, frame_type, 0, len(payload), 0) + payload


def parse_header(buffer: bytes | bytearray | memoryview, offset: int = 0) -> tuple[FrameType, int]:
    """Type and payload length of the frame whose 16 header bytes start at `offset`."""
    magic, frame_type, reserved, length, reserved2 = _HEADER.unpack_from(buffer, offset)
    if magic != MAGIC:
        raise ProtocolError(f"frame magic is {magic:#010x}, not {MAGIC:#010x}")
    if reserved or reserved2:
        raise ProtocolError(f"reserved header fields are {reserved:#x} and {reserved2:#x}, not zero")
    if length > MAX_PAYLOAD:
        raise ProtocolError(f"payload of {length} bytes exceeds the limit of {MAX_PAYLOAD}")
    try:
        return FrameType(frame_type), length
    except ValueError:
        raise ProtocolError(f"unknown frame type {frame_type}") from None


def _expect(condition: bool, message: str) -> None:
    if not condition:
        raise ProtocolError(message)


def _expect_size(name: str, payload: bytes | memoryview, size: int) -> None:
    if len(payload) != size:
        raise ProtocolError(f"{name} payload has {len(payload)} bytes, not {size}")


class Region(NamedTuple):
    """Guest RAM [gpa, gpa + size), found at `fd_offset` of the descriptor with index `fd_index`."""

    gpa: int
    size: int
    fd_offset: int
    fd_index: int
    read_only: bool = False


class Hello(NamedTuple):
    """First frame of the device: where guest RAM is."""

    instance: UUID
    channel_open: bool
    fd_count: int
    regions: tuple[Region, ...]

    def pack(self) -> bytes:
        """The payload of a HELLO frame."""
        head = _HELLO.pack(
            PROTOCOL_VERSION, len(self.regions), self.instance.bytes_le, self.channel_open, self.fd_count
        )
        return head + b"".join(_REGION.pack(r.gpa, r.size, r.fd_offset, r.fd_index, r.read_only) for r in self.regions)

    @classmethod
    def parse(cls, payload: bytes | memoryview) -> Hello:
        """Regions come back in the order sent; they are known to be non-empty, disjoint and within 64 bits."""
        _expect(len(payload) >= _HELLO.size, f"HELLO payload has {len(payload)} bytes, fewer than {_HELLO.size}")
        version, count, instance, state, fd_count = _HELLO.unpack_from(payload)
        _expect(version == PROTOCOL_VERSION, f"the device speaks protocol version {version}, not {PROTOCOL_VERSION}")
        _expect_size("HELLO", payload, _HELLO.size + count * _REGION.size)
        _expect(state in (0, 1), f"HELLO has channel state {state}")
        _expect(fd_count <= MAX_FDS, f"HELLO announces {fd_count} descriptors, more than {MAX_FDS}")
        regions = []
        for gpa, size, fd_offset, fd_index, flags in _REGION.iter_unpack(payload[_HELLO.size :]):
            _expect(flags in (0, 1), f"region at {gpa:#x} has unknown flags {flags:#x}")
            _expect(size > 0, f"region at {gpa:#x} is empty")
            _expect(gpa + size <= _ADDRESS_SPACE, f"region at {gpa:#x} of {size:#x} bytes wraps around")
            _expect(fd_offset + size <= _ADDRESS_SPACE, f"region at {gpa:#x} wraps around in its descriptor")
            _expect(fd_index < fd_count, f"region at {gpa:#x} names descriptor {fd_index} of {fd_count}")
            regions.append(Region(gpa, size, fd_offset, fd_index, bool(flags)))
        ordered = sorted(regions)
        for before, after in pairwise(ordered):
            _expect(before.gpa + before.size <= after.gpa, f"regions at {before.gpa:#x} and {after.gpa:#x} overlap")
        return cls(UUID(bytes_le=instance), bool(state), fd_count, tuple(regions))


class Channel(NamedTuple):
    """The guest opened or closed the VMBus channel."""

    is_open: bool

    def pack(self) -> bytes:
        """The payload of a CHANNEL frame."""
        return _CHANNEL.pack(self.is_open)

    @classmethod
    def parse(cls, payload: bytes | memoryview) -> Channel:
        """See `Hello.parse`."""
        _expect_size("CHANNEL", payload, _CHANNEL.size)
        (state,) = _CHANNEL.unpack(payload)
        _expect(state in (0, 1), f"CHANNEL has state {state}")
        return cls(bool(state))


class Request(NamedTuple):
    """One packet that the VSC sent: its inline bytes, and its page list as (gpa, length) pairs laid out flat."""

    transaction_id: int
    packet_type: int
    completion_requested: bool
    inline: bytes
    segments: tuple[int, ...]
    epoch: int = 1
    """Counts the openings of the channel; an honest answer repeats it."""

    def pack(self) -> bytes:
        """The payload of a REQUEST frame."""
        head = _REQUEST.pack(
            self.transaction_id,
            self.packet_type,
            self.completion_requested,
            len(self.inline),
            len(self.segments) // 2,
            self.epoch,
            0,
        )
        segments = struct.pack(f"<{len(self.segments)}Q", *self.segments)
        return head + self.inline + bytes(-len(self.inline) % 8) + segments

    @classmethod
    def parse(cls, payload: bytes | memoryview) -> Request:
        """The segments are taken as they are: whether they lie in guest RAM is the memory map's business."""
        if len(payload) < _REQUEST.size:
            raise ProtocolError(f"REQUEST payload has {len(payload)} bytes, fewer than {_REQUEST.size}")
        transaction_id, packet_type, flags, inline_len, count, epoch, reserved = _REQUEST.unpack_from(payload)
        if reserved or flags > 1 or not epoch:
            raise ProtocolError(f"REQUEST has flags {flags:#x}, epoch {epoch} and reserved field {reserved:#x}")
        inline_end = _REQUEST.size + inline_len
        segments_at = inline_end + -inline_len % 8
        _expect_size("REQUEST", payload, segments_at + count * _SEGMENT.size)
        if any(payload[inline_end:segments_at]):
            raise ProtocolError("REQUEST has padding that is not zero")
        segments = struct.unpack_from(f"<{2 * count}Q", payload, segments_at)
        inline = bytes(payload[_REQUEST.size : inline_end])
        return cls(transaction_id, packet_type, bool(flags), inline, segments, epoch)


class Attach(NamedTuple):
    """First frame of the backend."""

    version: int = PROTOCOL_VERSION

    def pack(self) -> bytes:
        """The payload of an ATTACH frame."""
        return _ATTACH.pack(self.version, 0)

    @classmethod
    def parse(cls, payload: bytes | memoryview) -> Attach:
        """See `Hello.parse`."""
        _expect_size("ATTACH", payload, _ATTACH.size)
        version, flags = _ATTACH.unpack(payload)
        _expect(version == PROTOCOL_VERSION and flags == 0, f"ATTACH has version {version} and flags {flags:#x}")
        return cls(version)


class Packet(NamedTuple):
    """One packet for the VSC, sent as it is: nothing here says that it makes sense."""

    transaction_id: int
    packet_type: int
    payload: bytes
    completion_requested: bool = False
    epoch: int = 0
    """That of the request which this answers; the device takes zero for the current one."""
    raw: bool = False
    """The payload is the whole VMBus packet with its descriptor (`wire.vmbus_packet`): id and type mean nothing."""

    def pack(self) -> bytes:
        """The payload of a PACKET frame."""
        flags = FLAG_WANTS_COMPLETION * self.completion_requested | FLAG_RAW * self.raw
        head = _PACKET.pack(self.transaction_id, self.packet_type, flags, len(self.payload), self.epoch)
        return head + self.payload

    @classmethod
    def parse(cls, payload: bytes | memoryview) -> Packet:
        """See `Hello.parse`."""
        _expect(len(payload) >= _PACKET.size, f"PACKET payload has {len(payload)} bytes, fewer than {_PACKET.size}")
        transaction_id, packet_type, flags, length, epoch = _PACKET.unpack_from(payload)
        _expect(not flags & ~(FLAG_WANTS_COMPLETION | FLAG_RAW), f"PACKET has unknown flags {flags:#x}")
        _expect(length <= MAX_PACKET_PAYLOAD, f"PACKET carries {length} bytes, more than {MAX_PACKET_PAYLOAD}")
        _expect_size("PACKET", payload, _PACKET.size + length)
        wants_completion, raw = bool(flags & FLAG_WANTS_COMPLETION), bool(flags & FLAG_RAW)
        return cls(transaction_id, packet_type, bytes(payload[_PACKET.size :]), wants_completion, epoch, raw)


def segments_of(pairs: Sequence[tuple[int, int]]) -> tuple[int, ...]:
    """Lay (gpa, length) pairs out flat, as `Request.segments` holds them."""
    return tuple(value for pair in pairs for value in pair)
