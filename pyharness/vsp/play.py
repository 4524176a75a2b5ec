# SPDX-License-Identifier: GPL-2.0-only
"""How behaviours are put together and run: requests go in through a chain of links, answers come out through it."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import reduce
from itertools import chain, count
from typing import TYPE_CHECKING, NamedTuple

from pyharness.errors import TimedOut
from pyharness.vsp.frames import Packet
from pyharness.vsp.request import VspRequest

if TYPE_CHECKING:
    from pyharness.vsp.server import VspServer

Next = Callable[[VspRequest], None]
"""The rest of the chain; at its end the request is served honestly."""

Link = Callable[[VspRequest, Next], None]
"""What a behaviour does with one request: pass it on, now or later and from any thread, or not."""

_END_TIMEOUT_S = 60.0

Transform = Callable[[Packet], Iterable[Packet]]
"""What is sent in place of an answer. A generator goes on after each packet that it yields has been sent."""


@dataclass(frozen=True)
class Behaviour:
    """One thing that a host may do. It holds no state: each block in which it is used starts it anew."""

    name: str
    start: Callable[[Play], Link]
    counted: bool = True
    """Whether `Play.did` tells of it: a condition does nothing itself."""


class _Kept(NamedTuple):
    name: str
    request: VspRequest
    go_on: Next


class _Later(NamedTuple):
    timer: threading.Timer
    call: Callable[[], None]


class Play:
    """What `VspServer.behaving` yields: what the host did in the block, and what it holds.

    A test uses `did`, `wait`, `held` and `release`, and `resume` after `stop_reading`; the rest is for behaviours.
    """

    def __init__(self, server: VspServer, behaviours: Sequence[Behaviour]) -> None:
        self.server = server
        self._changed = threading.Condition()
        self._did: Counter[str] = Counter()
        self._done: Counter[str] = Counter()
        self._tokens = count()
        self._kept: dict[int, _Kept] = {}
        self._later: dict[int, _Later] = {}
        self._working = 0
        """How many threads are in the middle of something."""
        self._owed: list[tuple[VspRequest, Packet]] = []
        self._epoch = 0
        self._at_opening: list[Callable[[VspRequest], None]] = []
        self._ending = False
        self._away = self._came_back = False
        self._chain = self.chain(behaviours)

    # -- for tests

    @property
    def did(self) -> Counter[str]:
        """How many requests each behaviour has had, by its name: a copy of the counts as they are now."""
        with self._changed:
            return self._did.copy()

    def wait(self, name: str, times: int = 1, timeout_s: float = 60.0) -> None:
        """Return once the behaviour of that name has done with so many requests what it does. Raises TimedOut."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._done[name] >= times, timeout_s):
                raise TimedOut(f"{name} had {self._done[name]} requests in {timeout_s:g} s, not {times}")

    @property
    def held(self) -> list[VspRequest]:
        """What `hold` holds, oldest first."""
        with self._changed:
            return [kept.request for kept in self._kept.values() if kept.name == "hold"]

    def release(self, *requests: VspRequest) -> None:
        """Let these requests go on, in the order given, or else all that are held, oldest first."""
        with self._changed:
            tokens = {id(kept.request): token for token, kept in self._kept.items() if kept.name == "hold"}
        self.let_go(tokens[id(request)] for request in requests) if requests else self.let_go(tokens.values())

    def resume(self) -> None:
        """Read on after `stop_reading`."""
        self.server.resume_reading()

    # -- for behaviours

    def chain(self, behaviours: Iterable[Behaviour]) -> Link:
        """Start the behaviours and join them to one link."""
        link: Link = _pass_on
        return reduce(_joined, map(self._started, behaviours), link)

    def serve(self, request: VspRequest) -> None:
        """Answer honestly, unless no answer is due any more: the pages may be somebody else's then."""
        if request.awaited or not request.completion_requested:
            self.server.serve(request)

    def keep(self, name: str, request: VspRequest, go_on: Next) -> int:
        """Let a request wait until `let_go` of the returned token, or the end of the block."""
        token = next(self._tokens)
        with self._changed:
            self._kept[token] = _Kept(name, request, go_on)
            ending = self._ending
        if ending:
            self.let_go([token])
        return token

    def let_go(self, tokens: Iterable[int]) -> None:
        """Let what is kept go on, in this order; what is kept no more has gone already."""
        for token in list(tokens):
            with self._changed:
                kept = self._kept.pop(token, None)
            if kept is None:
                continue
            try:
                kept.go_on(kept.request)
            except Exception as error:
                self.server.fail(kept.request, error)

    def later(self, seconds: float, call: Callable[[], None]) -> None:
        """Call it then, from a thread of its own, or when the block ends."""
        key = next(self._tokens)
        timer = threading.Timer(seconds, self._fire, (key,))
        timer.daemon = True
        with self._changed:
            self._later[key] = _Later(timer, call)
            ending = self._ending
            if not ending:
                timer.start()
        if ending:
            self._fire(key)

    def alter(self, request: VspRequest, transform: Transform) -> None:
        """Have `transform` make of the request's answer what is sent; further ones apply before it."""
        if not isinstance(request.outlet, _Outlet):
            request.outlet = _Outlet(self, request)
        request.outlet.transforms.append(transform)

    def owe(self, request: VspRequest, answer: Packet) -> None:
        """Send this answer at the end of the block, unless the request has had another by then."""
        with self._changed:
            self._owed.append((request, answer))
            ending = self._ending
        if ending:
            self._pay()

    def at_opening(self, call: Callable[[VspRequest], None]) -> None:
        """Call it once with the first request that comes through another opening of the channel."""
        with self._changed:
            self._at_opening.append(call)

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """The block does not end before this does."""
        with self._changed:
            self._working += 1
        try:
            yield
        finally:
            with self._changed:
                self._working -= 1
                self._changed.notify_all()

    def go_away(self, seconds: float) -> None:
        """Detach as soon as can be, and attach again after so long, or when the block ends."""
        with self._changed:
            if self._away or self._ending:
                return
            self._away = True

        def leave() -> None:
            self.server.disconnect()
            self.later(seconds, come_back)

        def come_back() -> None:
            self.server.start()
            with self._changed:
                self._away, self._came_back = False, True

        self.later(0, leave)

    # -- for the server

    def take(self, request: VspRequest) -> bool:
        """The server's hook: everything goes through the chain."""
        with self.at_work():
            if request.epoch != self._epoch:
                self._open(request)
            self._chain(request, self.serve)
        return True

    def end(self) -> bool:
        """Settle everything; True when the backend is on its way back. Raises TimedOut when a behaviour blocks."""
        with self._changed:
            self._ending = True
        self.server.resume_reading()
        for key in list(self._later):
            self._fire(key)
        with self._changed:
            if not self._changed.wait_for(lambda: not self._working, _END_TIMEOUT_S):
                raise TimedOut(f"a behaviour of the host did not return in {_END_TIMEOUT_S:g} s")
        self.let_go(sorted(self._kept))
        self._pay()
        return self._came_back

    def _started(self, behaviour: Behaviour) -> Link:
        link = behaviour.start(self)
        if not behaviour.counted:
            return link

        def counted(request: VspRequest, go_on: Next) -> None:
            with self._changed:
                self._did[behaviour.name] += 1
            link(request, go_on)
            with self._changed:
                self._done[behaviour.name] += 1
                self._changed.notify_all()

        return counted

    def _fire(self, key: int) -> None:
        with self.at_work():
            with self._changed:
                later = self._later.pop(key, None)
            if later is None:
                return
            later.timer.cancel()
            try:
                later.call()
            except Exception as error:
                self.server.record(error)

    def _pay(self) -> None:
        with self._changed:
            owed, self._owed = self._owed, []
        for request, answer in owed:
            if request.awaited:
                request.send(answer)

    def _open(self, request: VspRequest) -> None:
        with self._changed:
            calls = self._at_opening if self._epoch else []
            self._epoch = request.epoch
            if calls:
                self._at_opening = []
        for call in calls:
            call(request)


class _Outlet:
    """Where the answer to one request goes, see `VspRequest.outlet`."""

    def __init__(self, play: Play, request: VspRequest) -> None:
        self.transforms: list[Transform] = []
        self._play = play
        self._request = request

    def __call__(self, answer: Packet) -> None:
        with self._play.at_work():
            for packet in altered(answer, self.transforms):
                self._request.send(packet)
            if self._request.awaited:
                self._play.owe(self._request, answer)


def altered(answer: Packet, transforms: Sequence[Transform]) -> Iterator[Packet]:
    """What the transforms make of an answer, the last one first, each packet when the one before has been taken."""
    packets: Iterator[Packet] = iter((answer,))
    for transform in reversed(transforms):
        packets = chain.from_iterable(map(transform, packets))
    return packets


def transforms_of(request: VspRequest) -> list[Transform]:
    """Those of the behaviours that the request has come through, to be changed in place."""
    return request.outlet.transforms if isinstance(request.outlet, _Outlet) else []


def _pass_on(request: VspRequest, go_on: Next) -> None:
    go_on(request)


def _joined(first: Link, second: Link) -> Link:
    return lambda request, go_on: first(request, lambda request: second(request, go_on))
