# SPDX-License-Identifier: GPL-2.0-only
"""One request of the VSC, as backends and behaviours see it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

from pyharness.vsp import frames
from pyharness.vsp.frames import Packet, PacketType
from pyharness.vsp.memory import GuestBuffer, GuestMemory, OutsideGuestRam
from pyharness.vsp.wire import REQUEST_SIZE, Completion, Refusal, RequestHeader, Status, refusal

_NOTHING = GuestBuffer()


class Responder(Protocol):
    """Where a request's answers go; the server is one."""

    def answer(self, request: VspRequest, error: int, packet: Packet) -> bool:
        """Take `request` out of what is in flight and send its answer; False, and no answer, when it no longer is."""
        ...

    def awaits(self, request: VspRequest) -> bool:
        """Whether `request` is in flight."""
        ...

    def send_anything(self, packet: Packet) -> None:
        """Send a packet as it is, and take whatever the guest takes it for an answer to out of what is in flight."""
        ...


class VspRequest:
    """A packet of the VSC and the guest memory that it names.

    `header` is None when the inline data is not a VSP request. `refusal` says why an honest VSP does not serve it, and
    `data`, `request` and `response` are empty then. A request may be kept and completed later, from any thread.
    """

    __slots__ = (
        "_responder",
        "arrived",
        "completion_requested",
        "data",
        "epoch",
        "header",
        "inline",
        "outlet",
        "packet_type",
        "pages",
        "refusal",
        "request",
        "response",
        "transaction_id",
    )

    def __init__(self, frame: frames.Request, memory: GuestMemory, responder: Responder) -> None:
        self._responder = responder
        self.arrived = time.monotonic()
        self.transaction_id = frame.transaction_id
        self.packet_type = frame.packet_type
        self.completion_requested = frame.completion_requested
        self.epoch = frame.epoch
        self.inline = frame.inline
        self.outlet: Callable[[Packet], None] | None = None
        """Takes the answer in place of the VSC, and sends what it likes."""
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
            self.data = pages.part(header.data_buffer_offset, header.data_buffer_length)
            self.request = pages.part(header.request_buffer_offset, header.request_buffer_length)
            self.response = pages.part(header.response_buffer_offset, header.response_buffer_length)
        return refused

    @property
    def data_valid(self) -> GuestBuffer:
        """The part of the data buffer that the guest filled: the body of an upload."""
        return self.data[: self.header.data_buffer_valid] if self.header else _NOTHING

    @property
    def awaited(self) -> bool:
        """Whether an answer is due: it is asked for, there was none yet, and the channel has been open since."""
        return self._responder.awaits(self)

    def complete(self, error: int = Status.SUCCESS, response_len: int = 0) -> bool:
        """Answer once. False when no answer is due: answered before, channel closed, connection gone."""
        answer = Packet(
            self.transaction_id, PacketType.COMPLETION, Completion(error, response_len).pack(), False, self.epoch
        )
        if self.outlet is None:
            return self._responder.answer(self, error, answer)
        if due := self.awaited:
            self.outlet(answer)
        return due

    def complete_raw(
        self, payload: bytes, *, packet_type: int = PacketType.COMPLETION, transaction_id: int | None = None
    ) -> None:
        """Send any packet, as often as wanted, for a hostile host.

        One that the guest takes for this request's answer is that for `complete` too.
        """
        own = self.transaction_id if transaction_id is None else transaction_id
        self.send(Packet(own, packet_type, payload, epoch=self.epoch))

    def send(self, packet: Packet) -> None:
        """As `complete_raw`, for a whole packet; its epoch 0 stands for whatever opening of the channel is current."""
        self._responder.send_anything(packet)

    def __repr__(self) -> str:
        return f"<VspRequest id {self.transaction_id:#x}, data {len(self.data)} bytes, {self.refusal or 'served'}>"
