# SPDX-License-Identifier: GPL-2.0-only
"""One request of the VSC, as backends and behaviours see it."""

from __future__ import annotations

from typing import Protocol

from pyharness.vsp import frames
from pyharness.vsp.frames import PacketType
from pyharness.vsp.memory import GuestBuffer, GuestMemory, OutsideGuestRam
from pyharness.vsp.wire import REQUEST_SIZE, Completion, Refusal, RequestHeader, Status, refusal

_NOTHING = GuestBuffer()


class Responder(Protocol):
    """Where a request's answers go; the server is one."""

    def retire(self, request: VspRequest, error: int) -> bool:
        """Take `request` out of what is in flight; False when it no longer is."""
        ...

    def send_packet(
        self, payload: bytes, *, packet_type: int, transaction_id: int, epoch: int, completion_requested: bool = False
    ) -> None:
        """Send a packet to the VSC as it is."""
        ...


class VspRequest:
    """A packet of the VSC and the guest memory that it names.

    `header` is None when the inline data is not a VSP request. `refusal` says why an honest VSP does not serve it, and
    `data`, `request` and `response` are empty then. A request may be kept and completed later, from any thread.
    """

    __slots__ = (
        "_responder",
        "completion_requested",
        "data",
        "epoch",
        "header",
        "inline",
        "packet_type",
        "pages",
        "refusal",
        "request",
        "response",
        "transaction_id",
    )

    def __init__(self, frame: frames.Request, memory: GuestMemory, responder: Responder) -> None:
        self._responder = responder
        self.transaction_id = frame.transaction_id
        self.packet_type = frame.packet_type
        self.completion_requested = frame.completion_requested
        self.epoch = frame.epoch
        self.inline = frame.inline
        self.header: RequestHeader | None = None
        self.pages = self.data = self.request = self.response = _NOTHING
        self.refusal = self._read(frame, memory)

    def _read(self, frame: frames.Request, memory: GuestMemory) -> Refusal | None:
        if len(frame.inline) != REQUEST_SIZE:
            return Refusal(Status.INVALID_BUFFER_SIZE, f"{len(frame.inline)} bytes of inline data")
        header = self.header = RequestHeader.parse(frame.inline)
        if frame.packet_type != PacketType.GPA_DIRECT:
            return Refusal(Status.INVALID_DEVICE_REQUEST, f"packet type {frame.packet_type}")
        try:
            self.pages = pages = memory.translate(frame.segments)
        except OutsideGuestRam as error:
            return Refusal(Status.INVALID_ADDRESS, error.message)
        refused = refusal(header, len(pages))
        if refused is None:
            self.data = _part(pages, header.data_buffer_offset, header.data_buffer_length)
            self.request = _part(pages, header.request_buffer_offset, header.request_buffer_length)
            self.response = _part(pages, header.response_buffer_offset, header.response_buffer_length)
        return refused

    @property
    def data_valid(self) -> GuestBuffer:
        """The part of the data buffer that the guest filled: the body of an upload."""
        return self.data[: self.header.data_buffer_valid] if self.header else _NOTHING

    def complete(self, error: int = Status.SUCCESS, response_len: int = 0) -> bool:
        """Answer once. False when no answer is due: answered before, channel closed, connection gone."""
        if not self._responder.retire(self, error):
            return False
        self._send(Completion(error, response_len).pack(), PacketType.COMPLETION, self.transaction_id)
        return True

    def complete_raw(
        self, payload: bytes, *, packet_type: int = PacketType.COMPLETION, transaction_id: int | None = None
    ) -> None:
        """Send any packet, as often as wanted, for a hostile host.

        One that the device takes for this request's answer is that for `complete` too.
        """
        if packet_type == PacketType.COMPLETION and transaction_id in (None, self.transaction_id):
            self._responder.retire(self, Status.SUCCESS)
        self._send(payload, packet_type, self.transaction_id if transaction_id is None else transaction_id)

    def _send(self, payload: bytes, packet_type: int, transaction_id: int) -> None:
        self._responder.send_packet(payload, packet_type=packet_type, transaction_id=transaction_id, epoch=self.epoch)

    def __repr__(self) -> str:
        return f"<VspRequest id {self.transaction_id:#x}, data {len(self.data)} bytes, {self.refusal or 'served'}>"


def _part(pages: GuestBuffer, offset: int, length: int) -> GuestBuffer:
    return pages[offset : offset + length]
