# SPDX-License-Identifier: GPL-2.0-only
"""Everything that a host may do wrong, to be put together as a test needs it.

    with vsp.behaving(first(2, hold()), every(3, fail(Status.IO_TIMEOUT)), delay(0.01)) as seen:
        clients = lab.work.start("clients", node, 8, 10)  # in the guest
        seen.wait("fail", 3)                              # until the host has failed three requests
        assert len(seen.held) == 2                        # the first two; all others were answered
        seen.release()

Each request goes through the behaviours from left to right, until one of them answers it or keeps it; what comes out
at the end is served honestly, after 10 ms here. The answer goes back the same way from right to left, and a behaviour
like `duplicate` or `wrong_id` changes it. A condition like `first` or `every` lets only some requests into what it
holds, which is a chain again, and the others past it; it counts the requests that reach it.

When the block ends, what is held, delayed or dropped goes on, what was answered wrongly is answered, and the server
behaves as before: each request of the guest returns exactly once. `Play` has what `seen` can do. Chance is seeded.

`docs/behaviours.md` lists all. What is missing is a function: see `doing`, `answering` and `behaviour`.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterable, Iterator
from functools import update_wrapper
from itertools import count as counting
from typing import Annotated, Concatenate, Generic, ParamSpec

from pyharness.vsp.frames import MAX_PACKET_PAYLOAD, Packet, PacketType
from pyharness.vsp.memory import GuestBuffer
from pyharness.vsp.parameters import (
    U8,
    U16,
    U32,
    Bytes,
    Count,
    PayloadSize,
    Probability,
    Seconds,
    Seed,
    Signature,
    TransactionId,
    Within,
)
from pyharness.vsp.play import Behaviour, Link, Next, Play, Transform, altered, transforms_of
from pyharness.vsp.request import VspRequest
from pyharness.vsp.wire import DESCRIPTOR_SIZE, Completion, Status, vmbus_packet

P = ParamSpec("P")
Condition = Callable[[VspRequest], bool]

NEVER_ISSUED = 1 << 63
"""A transaction id that no guest gives to a request: Linux counts from 1."""

Field = Annotated[str, ("packet_type", "offset8", "len8", "flags")]
Order = Annotated[str, ("reversed", "shuffled", "same")]
_StatusCode = Annotated[int, Within(0, 2**32 - 1, Status)]


class Maker(Generic[P]):
    """A row of `BEHAVIOURS`: called with its parameters, it makes a behaviour."""

    def __init__(self, function: Callable[Concatenate[Play, P], Link]) -> None:
        self.name = function.__name__
        self.signature = Signature(function)
        self._function = function
        update_wrapper(self, function)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Behaviour:
        """Raises BadParameter, a ValueError that says what is allowed."""
        given = dict(zip(self.signature.parameters, args, strict=False)) | kwargs
        self.signature.check({name: value for name, value in given.items() if name in self.signature.parameters})
        return Behaviour(self.name, lambda play: self._function(play, *args, **kwargs))


def behaviour(function: Callable[Concatenate[Play, P], Link]) -> Maker[P]:
    """Make a behaviour of a function that is called when a block begins, and returns what to do with each request."""
    return Maker(function)


# -- which requests


def where(condition: Condition, *behaviours: Behaviour) -> Behaviour:
    """The requests for which the condition holds."""
    return _choosing("where", lambda play: condition, behaviours)


def every(n: Count, *behaviours: Behaviour) -> Behaviour:
    """Each n-th request."""
    return _numbered("every", n, lambda number: number % n == 0, behaviours)


def first(n: Count, *behaviours: Behaviour) -> Behaviour:
    """The first n requests."""
    return _numbered("first", n, lambda number: number <= n, behaviours)


def nth(n: Count, *behaviours: Behaviour) -> Behaviour:
    """The n-th request alone, counted from 1."""
    return _numbered("nth", n, lambda number: number == n, behaviours)


def after(n: Count, *behaviours: Behaviour) -> Behaviour:
    """All but the first n requests."""
    return _numbered("after", n, lambda number: number > n, behaviours)


def chance(probability: Probability, *behaviours: Behaviour, seed: Seed = 0) -> Behaviour:
    """Each request with this probability; the same ones each time for the same seed."""
    _SIGNATURES["chance"].check({"probability": probability, "seed": seed})

    def start(play: Play) -> Condition:
        dice = random.Random(seed)
        return lambda request: dice.random() < probability

    return _choosing("chance", start, behaviours)


def larger(size: Bytes, *behaviours: Behaviour) -> Behaviour:
    """Requests with a data buffer of more than so many bytes."""
    return _choosing("larger", lambda play: lambda request: len(request.data) > size, behaviours)


def crowded(n: Count, *behaviours: Behaviour) -> Behaviour:
    """Requests that come when n or more are in flight, themselves included."""
    return _choosing("crowded", lambda play: lambda request: len(play.server.in_flight) >= n, behaviours)


CONDITIONS: dict[str, Callable[..., Behaviour]] = {
    condition.__name__: condition for condition in (larger, crowded, after, first, every, nth, chance)
}
"""What scenario files know by name, in the order in which those of one request are asked."""

_SIGNATURES = {name: Signature(condition) for name, condition in CONDITIONS.items()}


def _choosing(name: str, start: Callable[[Play], Condition], behaviours: Iterable[Behaviour]) -> Behaviour:
    inner = tuple(behaviours)

    def begin(play: Play) -> Link:
        condition, chosen = start(play), play.chain(inner)

        def link(request: VspRequest, go_on: Next) -> None:
            if condition(request):
                chosen(request, go_on)
            else:
                go_on(request)

        return link

    return Behaviour(name, begin, counted=False)


def _numbered(name: str, n: int, wanted: Callable[[int], bool], behaviours: Iterable[Behaviour]) -> Behaviour:
    _SIGNATURES[name].check({"n": n})

    def start(play: Play) -> Condition:
        numbers = counting(1)
        return lambda request: wanted(next(numbers))

    return _choosing(name, start, behaviours)


# -- what becomes of a request


@behaviour
def serve(play: Play) -> Link:
    """Answer honestly, whatever comes later in the chain."""
    return lambda request, go_on: play.serve(request)


@behaviour
def fail(play: Play, status: _StatusCode = Status.INTERNAL_ERROR, text: str = "") -> Link:
    """Answer with an error and with `text` in the response buffer, as far as it fits; move no data."""
    said = text.encode()

    def link(request: VspRequest, go_on: Next) -> None:
        head = said[: len(request.response)]
        request.response.write(head)
        request.complete(status, len(head))

    return link


@behaviour
def hold(play: Play) -> Link:
    """Keep the request until `seen.release`, then let it go on."""
    return lambda request, go_on: _ignore(play.keep("hold", request, go_on))


@behaviour
def drop(play: Play) -> Link:
    """Do not answer. (What has been dropped is served when the block ends.)"""
    return lambda request, go_on: _ignore(play.keep("drop", request, play.serve))


@behaviour
def delay(play: Play, seconds: Seconds) -> Link:
    """Let the request go on after so long; others may overtake it."""

    def link(request: VspRequest, go_on: Next) -> None:
        token = play.keep("delay", request, go_on)
        play.later(seconds, lambda: play.let_go([token]))

    return link


@behaviour
def reorder(play: Play, count: Count, order: Order = "reversed", seed: Seed = 0, within: Seconds = 0.2) -> Link:
    """Gather `count` requests, or those that come `within` so long of the first; let them go on in this order."""
    shuffler = random.Random(seed)
    lock = threading.Lock()
    gathered: list[int] = []

    def link(request: VspRequest, go_on: Next) -> None:
        nonlocal gathered
        token = play.keep("reorder", request, go_on)
        with lock:
            batch = gathered
            batch.append(token)
            size = len(batch)
            if size >= count:
                gathered = []
        if size >= count:
            let_go(batch)
        elif size == 1:
            play.later(within, lambda: expire(batch))

    def expire(batch: list[int]) -> None:
        nonlocal gathered
        with lock:
            if gathered is not batch:
                return
            gathered = []
        let_go(batch)

    def let_go(batch: list[int]) -> None:
        if order == "reversed":
            batch.reverse()
        elif order == "shuffled":
            shuffler.shuffle(batch)
        play.let_go(batch)

    return link


@behaviour
def disconnect(play: Play, seconds: Seconds = 0.0) -> Link:
    """Go away in the middle of this request and of all that are in flight; attach again after so long."""

    def link(request: VspRequest, go_on: Next) -> None:
        play.keep("disconnect", request, play.serve)
        play.go_away(seconds)

    return link


@behaviour
def stop_reading(play: Play, seconds: Seconds = 3600) -> Link:
    """Let this request go on and read no further one until `seen.resume`, or for so long."""

    def link(request: VspRequest, go_on: Next) -> None:
        play.server.stop_reading()
        play.later(seconds, play.resume)
        go_on(request)

    return link


@behaviour
def unsolicited(
    play: Play,
    count: Count = 1,
    packet_type: U16 = PacketType.IN_BAND,
    transaction_id: TransactionId = 0,
    size: PayloadSize = 12,
) -> Link:
    """Send `count` packets of zeroes that nobody asked for, then let the request go on. Many are a flood."""

    def link(request: VspRequest, go_on: Next) -> None:
        for _ in range(count):
            request.send(Packet(transaction_id, packet_type, bytes(size), epoch=request.epoch))
        go_on(request)

    return link


@behaviour
def doing(play: Play, link: Link) -> Link:
    """Anything: `link(request, go_on)` is called for each request, and calls `go_on(request)` or not."""
    return link


# -- what becomes of its answer


@behaviour
def answering(play: Play, transform: Transform) -> Link:
    """Any answer: `transform(packet)` returns the packets to be sent in place of the honest one."""
    return _altering(play, lambda request: transform)


@behaviour
def duplicate(play: Play, count: Count = 2) -> Link:
    """Send the answer so many times."""
    return _altering(play, lambda request: lambda packet: [packet] * count)


@behaviour
def wrong_id(play: Play, transaction_id: TransactionId = NEVER_ISSUED) -> Link:
    """Answer under this transaction id, one that was never issued or 0."""
    return _altering(play, lambda request: lambda packet: [packet._replace(transaction_id=transaction_id)])


@behaviour
def other_id(play: Play) -> Link:
    """Answer under the transaction id of another request in flight, the oldest; under its own if it is alone."""

    def make(request: VspRequest) -> Transform:
        def transform(packet: Packet) -> Iterator[Packet]:
            others = (other.transaction_id for other in play.server.in_flight if other is not request)
            yield packet._replace(transaction_id=next(others, packet.transaction_id))

        return transform

    return _altering(play, make)


@behaviour
def wrong_type(play: Play, packet_type: U16 = PacketType.IN_BAND) -> Link:
    """Answer with a packet of another VMBus type."""
    return _altering(play, lambda request: lambda packet: [packet._replace(packet_type=packet_type)])


@behaviour
def resize(play: Play, size: PayloadSize) -> Link:
    """Answer with so many bytes of payload: the 12 honest ones, cut off or padded with zeroes."""
    return _altering(
        play, lambda request: lambda packet: [packet._replace(payload=packet.payload[:size].ljust(size, b"\0"))]
    )


@behaviour
def overrun(play: Play, excess: U32 = 1) -> Link:
    """Say that the response is so many bytes longer than its buffer."""

    def make(request: VspRequest) -> Transform:
        length = request.header.response_buffer_length if request.header else 0
        beyond = min(length + excess, 2**32 - 1)
        return lambda packet: [
            packet._replace(payload=Completion.parse(packet.payload)._replace(response_len=beyond).pack())
        ]

    return _altering(play, make)


@behaviour
def bad_header(play: Play, field: Field, value: U16) -> Link:
    """Answer with a packet in whose VMBus descriptor this field has this value.

    The device does not look into such a packet: the request stays in flight there until the channel is closed.
    """

    def transform(packet: Packet) -> Iterable[Packet]:
        payload = packet.payload[: MAX_PACKET_PAYLOAD - DESCRIPTOR_SIZE]
        whole = vmbus_packet(payload, packet.packet_type, packet.transaction_id, **{field: value})
        return [packet._replace(payload=whole, raw=True)]

    return _altering(play, lambda request: transform)


@behaviour
def after_close(play: Play) -> Link:
    """Answer when the guest has closed the channel and uses it anew: whatever has that transaction id gets it."""

    def transform(packet: Packet) -> Iterable[Packet]:
        play.at_opening(lambda request: request.send(packet._replace(epoch=0)))
        return ()

    return _altering(play, lambda request: transform)


@behaviour
def late_write(play: Play, byte: U8 = 0xEE, seconds: Seconds = 0.05) -> Link:
    """Fill the data and the response buffer with this byte so long after the answer. They may be anybody's by then."""

    def make(request: VspRequest) -> Transform:
        def transform(packet: Packet) -> Iterator[Packet]:
            yield packet
            play.later(seconds, lambda: _fill(byte, request.data, request.response))

        return transform

    return _altering(play, make)


def besides(*behaviours: Behaviour) -> Behaviour:
    """What these make of the answer is sent, and then the answer as it is as well."""

    def start(play: Play) -> Link:
        chosen = play.chain(behaviours)

        def link(request: VspRequest, go_on: Next) -> None:
            outer = len(transforms_of(request))
            chosen(request, lambda request: go_on(_both(request, outer)))

        return link

    return Behaviour("besides", start, counted=False)


def _both(request: VspRequest, outer: int) -> VspRequest:
    transforms = transforms_of(request)
    inner = transforms[outer:]
    if inner:

        def both(packet: Packet) -> Iterator[Packet]:
            yield from altered(packet, inner)
            yield packet

        transforms[outer:] = [both]
    return request


def _altering(play: Play, make: Callable[[VspRequest], Transform]) -> Link:
    def link(request: VspRequest, go_on: Next) -> None:
        play.alter(request, make(request))
        go_on(request)

    return link


def _ignore(_: object) -> None:
    return None


def _fill(byte: int, *parts: GuestBuffer) -> None:
    for part in parts:
        part.write(bytes((byte,)) * len(part))


BEHAVIOURS: dict[str, Maker[...]] = {
    maker.name: maker
    for maker in (
        serve,
        fail,
        hold,
        drop,
        delay,
        reorder,
        disconnect,
        stop_reading,
        unsolicited,
        duplicate,
        wrong_id,
        other_id,
        wrong_type,
        resize,
        overrun,
        bad_header,
        after_close,
        late_write,
    )
}
"""All but those that take functions, by the names that scenario files know."""
