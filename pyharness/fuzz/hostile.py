# SPDX-License-Identifier: GPL-2.0-only
"""A host that does anything, and knows what may come of it.

A script is a list of actions, one for each request in the order of their arrival; a new kind of action is a function
and a row of `ACTIONS`. Each completion carries a status that no other one does, so that what an ioctl returns
tells which completion it was, and whether that was one that it may have got.
"""

from __future__ import annotations

import queue
import struct
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from errno import EIO, ENODEV
from itertools import count
from typing import NamedTuple

from pyharness.guest.load import RESPONSE_LEN, Order, Outcome, pattern
from pyharness.vsp.frames import PacketType
from pyharness.vsp.request import VspRequest
from pyharness.vsp.server import VspServer
from pyharness.vsp.wire import Completion, Status

Script = Sequence[tuple[str, int]]
"""Actions by name, each with a number that means what its row says."""

_REMEMBERED = 64
_HUGE_ID = 2**64 - 1
_ENDED_BY_DEVICE = int(Status.CONNECTION_DISCONNECTED)


class Operation(NamedTuple):
    """What cannot be done by the thread that receives requests."""

    name: str
    number: int


class Sent(NamedTuple):
    """A completion that was sent."""

    transaction_id: int
    response_len: int
    honest_for: int | None
    """The serial of the request that it answers honestly."""


@dataclass
class Host:
    """One play of a script. `act` is the server's behaviour meanwhile."""

    server: VspServer
    script: deque[tuple[str, int]]
    operations: queue.SimpleQueue[Operation | None] = field(default_factory=queue.SimpleQueue)
    """For the operator; None when there will be no more."""
    statuses: Iterator[int] = field(default_factory=lambda: count(1))
    """Those to be used; each once in a guest."""
    packets: int = 0
    """How many were sent to the guest."""
    spoilt: bool = False
    """The rings have been: what was answered long ago may be answered again."""
    disconnected: bool = False
    departures: int = 0
    """How often the device has been taken away in this play."""
    killed: bool = False
    held: list[VspRequest] = field(default_factory=list)
    sent: dict[int, Sent] = field(default_factory=dict)
    """By status."""
    malformed: set[int] = field(default_factory=set)
    """Ids for which a completion was sent that the driver must refuse."""
    ids: dict[int, int] = field(default_factory=dict)
    """The transaction id of each request that came here, by its serial."""
    tickets: dict[int, int] = field(default_factory=dict)
    """By serial: how many completions had been sent for the request's id when it came; -1 if it may have got one."""
    came: Counter[int] = field(default_factory=Counter)
    """Requests by id."""
    completions: Counter[int] = field(default_factory=Counter)
    """Completions by id."""
    careful: bool = False
    """Nobody knows any more which requests have got their answers: nothing is written to their buffers."""
    last: int = 0
    """The status of the last completion; one that was not sent, if that had none."""
    recent: deque[int] = field(default_factory=lambda: deque([1], maxlen=_REMEMBERED))
    """Ids of requests that came, the latest last."""
    damaged: list[str] = field(default_factory=list)
    _lock: threading.RLock = field(default_factory=threading.RLock)

    # -- requests

    def act(self, request: VspRequest) -> bool:
        """Do with the request what the script says; honest when it is at its end."""
        with self._lock:
            order, own_id = _order(request), request.transaction_id
            self.ids[order.serial] = own_id
            self.recent.append(own_id)
            # A completion that was sent before the request came may have hit it: its buffers are another's then.
            safe = self.completions[own_id] == self.came[own_id] and not self.careful
            self.tickets[order.serial] = self.completions[own_id] if safe else -1
            self.came[own_id] += 1
            if safe and request.request.read() != order.pack():
                self.damaged.append(f"request {order.serial} arrived damaged")
            if safe and request.data_valid.read() != pattern(order.serial, 0, order.out_len):
                self.damaged.append(f"the upload of request {order.serial} arrived damaged")
            name, number = self.script.popleft() if self.script else ("honest", 0)
            ACTIONS[name](self, request, number)
        return True

    def forget(self) -> None:
        """The backend or the device goes, or has gone: what was held then is not for the host to answer any more."""
        with self._lock:
            self.careful = True
            self.held = [request for request in self.held if request.awaited]

    def release(self) -> None:
        """Answer honestly what is held."""
        with self._lock:
            held, self.held = self.held, []
            for request in held:
                self.answer(request)

    # -- what actions are made of

    def answer(self, request: VspRequest) -> None:
        """The honest answer, unless the request may have been answered already: then a completion alone."""
        order = _order(request)
        honest = self.tickets[order.serial] == self.completions[request.transaction_id] and not self.careful
        if honest:
            request.data.write(pattern(order.serial, 1, order.in_len))
            request.response.write(pattern(order.serial, 2, RESPONSE_LEN))
        self.complete(request, RESPONSE_LEN, honest_for=order.serial if honest else None)

    def complete(
        self,
        request: VspRequest,
        response_len: int = 0,
        *,
        transaction_id: int | None = None,
        more: bytes = b"",
        honest_for: int | None = None,
    ) -> None:
        """Send a completion with a status of its own, for this request or for another id."""
        status = next(self.statuses)
        target = request.transaction_id if transaction_id is None else transaction_id
        if response_len > RESPONSE_LEN:
            self.malformed.add(target)
        self.sent[status] = Sent(target, response_len, honest_for)
        self.raw(request, Completion(status, response_len).pack() + more, transaction_id=target)
        self.last = status

    def raw(
        self,
        request: VspRequest,
        payload: bytes,
        *,
        packet_type: int = PacketType.COMPLETION,
        transaction_id: int | None = None,
    ) -> None:
        """Send any packet."""
        target = request.transaction_id if transaction_id is None else transaction_id
        self.packets += 1
        if packet_type == PacketType.COMPLETION:
            self.completions[target] += 1
            self.last = next(self.statuses)
        request.complete_raw(payload, packet_type=packet_type, transaction_id=target)

    # -- what came of it

    def fault(self, outcomes: Sequence[Outcome], serials: range) -> str:
        """What is wrong with these outcomes of the requests `serials`; nothing, if nothing is."""
        faults = list(self.damaged)
        seen = [outcome.serial for outcome in outcomes]
        if len(seen) != len(set(seen)) or not set(seen) <= set(serials):
            faults.append("a request has returned twice")
        if len(seen) < len(serials) and not self.killed:
            faults.append(f"{len(serials) - len(seen)} requests have not returned")
        faults += filter(None, map(self._fault_of, outcomes))
        return faults[0] if faults else ""

    def settled(self, outcomes: Sequence[Outcome]) -> bool:
        """Whether no completion is on its way any more: the guest takes them in order, and has got the last one."""
        return not self.last or any(not outcome.error and outcome.status == self.last for outcome in outcomes)

    def _fault_of(self, outcome: Outcome) -> str:
        what = f"request {outcome.serial}"
        own_id = self.ids.get(outcome.serial)
        if outcome.damaged:
            return f"{what}: {outcome.damaged} changed"
        if self.spoilt:
            return f"{what}: errno {outcome.error}" if outcome.error not in (0, EIO, ENODEV) else ""
        if outcome.error == ENODEV:
            return "" if self.departures else f"{what}: ENODEV, and the device was not gone"
        if outcome.error == EIO:
            refused = bool(self.malformed) if own_id is None else own_id in self.malformed
            return "" if refused else f"{what}: EIO, and no malformed completion was sent for its id {own_id}"
        if outcome.error:
            return f"{what}: errno {outcome.error}"
        if outcome.status == _ENDED_BY_DEVICE:
            return "" if self.disconnected else f"{what}: disconnected, and the backend was not"
        # Each can be got once.
        sent = self.sent.pop(outcome.status, None)
        if sent is None:
            return f"{what}: status {outcome.status:#x}, which was not sent, or was got before"
        if own_id is not None and sent.transaction_id != own_id:
            return f"{what} of id {own_id} got the completion of id {sent.transaction_id}"
        if sent.response_len > RESPONSE_LEN:
            return f"{what}: a completion was taken whose response of {sent.response_len} bytes has no room"
        if outcome.response_len != sent.response_len:
            return f"{what}: response of {outcome.response_len} bytes, {sent.response_len} were sent"
        if sent.honest_for == outcome.serial and not outcome.right:
            return f"{what} was answered honestly, and its data are wrong"
        return ""


def _order(request: VspRequest) -> Order:
    assert request.header
    return Order(int.from_bytes(request.header.guid[:8], "little"))


# -- actions

Action = Callable[[Host, VspRequest, int], None]


def _honest(host: Host, request: VspRequest, number: int) -> None:
    host.answer(request)


def _status(host: Host, request: VspRequest, number: int) -> None:
    """A status and a response of at most its buffer's size."""
    host.complete(request, number % (RESPONSE_LEN + 1))


def _too_long(host: Host, request: VspRequest, number: int) -> None:
    """More response than there is room for."""
    host.complete(request, (RESPONSE_LEN + 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)[number % 4])


def _short(host: Host, request: VspRequest, number: int) -> None:
    """VMBus counts in units of 8 bytes: 9 to 11 would be as good as 16."""
    host.malformed.add(request.transaction_id)
    host.raw(request, bytes((0, 1, 4, 8)[number % 4]))


def _padded(host: Host, request: VspRequest, number: int) -> None:
    """Bytes after the completion."""
    host.complete(request, 1, more=bytes(number % 4000))


def _late(host: Host, request: VspRequest, number: int) -> None:
    """Held, until some other request brings it up."""
    host.held.append(request)


def _oldest(host: Host, request: VspRequest, number: int) -> None:
    """Held, and the oldest one that is held is answered."""
    host.held.append(request)
    host.answer(host.held.pop(0))


def _reversed(host: Host, request: VspRequest, number: int) -> None:
    """All that are held are answered, the latest first."""
    host.held.append(request)
    host.held.reverse()
    host.release()


def _again(host: Host, request: VspRequest, number: int) -> None:
    """Answered honestly, and then some times more."""
    host.answer(request)
    for _ in range(number % 16 + 1):
        host.complete(request, number % RESPONSE_LEN)


def _old_id(host: Host, request: VspRequest, number: int) -> None:
    """A completion for a request that came earlier, answered or not, before the honest one for this."""
    host.complete(request, transaction_id=host.recent[-1 - number % len(host.recent)])
    host.answer(request)


def _stray_id(host: Host, request: VspRequest, number: int) -> None:
    """A completion for an id that is nobody's, or may be."""
    host.complete(request, transaction_id=(0, _HUGE_ID, 1 << 63, 1024, 1025, number)[number % 6])
    host.answer(request)


def _stolen(host: Host, request: VspRequest, number: int) -> None:
    """A completion for one that is held; both are answered honestly too, this one first."""
    if host.held:
        host.complete(request, 3, transaction_id=host.held[number % len(host.held)].transaction_id)
    host.answer(request)


def _wrong_type(host: Host, request: VspRequest, number: int) -> None:
    """A packet of another type with the request's id, then the honest answer."""
    kind = (6, 7, 9, 12, 0, 1, 0xFFFF)[number % 7]
    host.raw(request, bytes(number % 4097), packet_type=kind)
    host.answer(request)


def _flood(host: Host, request: VspRequest, number: int) -> None:
    """Many packets that nobody asked for."""
    for each in range(number % 50):
        host.complete(request, transaction_id=(1 << 40) + each)
    host.answer(request)


def _garbage(host: Host, request: VspRequest, number: int) -> None:
    """A completion in which nothing makes sense."""
    host.malformed.add(request.transaction_id)
    host.raw(request, struct.pack("<III", number, _ENDED_BY_DEVICE - 1, 0xFFFFFFF0))


def _operator(name: str) -> Action:
    """Held, and something happens that the receiving thread cannot do."""

    def act(host: Host, request: VspRequest, number: int) -> None:
        host.held.append(request)
        host.operations.put(Operation(name, number))

    return act


ACTIONS: dict[str, Action] = {
    "honest": _honest,
    "status": _status,
    "too long": _too_long,
    "short": _short,
    "padded": _padded,
    "late": _late,
    "oldest": _oldest,
    "reversed": _reversed,
    "again": _again,
    "old id": _old_id,
    "stray id": _stray_id,
    "stolen": _stolen,
    "wrong type": _wrong_type,
    "flood": _flood,
    "garbage": _garbage,
    "kill": _operator("kill"),
    "disconnect": _operator("disconnect"),
    "unplug": _operator("unplug"),
    "signal": _operator("signal"),
    "spoil": _operator("spoil"),
    "raw": _operator("raw"),
}
"""What a host may do with a request, by the name that scripts use. The first is the simplest."""

RARE = ("signal", "disconnect", "kill", "unplug", "spoil", "raw")
"""Those that take long."""
