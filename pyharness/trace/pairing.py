# SPDX-License-Identifier: GPL-2.0-only
"""Which record answers which, and how long it took."""

from __future__ import annotations

from dataclasses import dataclass

from pyharness.trace.messages import Decoded
from pyharness.trace.packets import COMPLETION, WANTS_COMPLETION
from pyharness.trace.records import SIDES, Line, Packet, RawPacket, Side

_PACKET = "packet"


@dataclass(frozen=True)
class _Rule:
    """A control message and the one that answers it; fields that both have tell which one."""

    request: str
    answer: str
    fields: tuple[str, ...] = ()
    may_come_unasked: bool = False


_RULES = (
    _Rule("INITIATE_CONTACT", "VERSION_RESPONSE"),
    _Rule("REQUESTOFFERS", "ALLOFFERS_DELIVERED"),
    _Rule("GPADL_HEADER", "GPADL_CREATED", ("relid", "gpadl")),
    _Rule("OPENCHANNEL", "OPENCHANNEL_RESULT", ("relid", "open_id")),
    _Rule("GPADL_TEARDOWN", "GPADL_TORNDOWN", ("gpadl",)),
    _Rule("MODIFYCHANNEL", "MODIFYCHANNEL_RESPONSE", ("relid",)),
    _Rule("TL_CONNECT_REQUEST", "TL_CONNECT_RESULT", ("guest_endpoint", "host_service")),
    # A guest that goes away gives back channels that nobody has rescinded.
    _Rule("RESCIND_CHANNELOFFER", "RELID_RELEASED", ("relid",), may_come_unasked=True),
    _Rule("UNLOAD", "UNLOAD_RESPONSE"),
)
_BY_REQUEST = {rule.request: rule for rule in _RULES}
_BY_ANSWER = {rule.answer: rule for rule in _RULES}

_RESTARTS = ("INITIATE_CONTACT", "UNLOAD")
"""From here on the guest has another connection, or none."""
_ENDS = ("OPENCHANNEL", "CLOSECHANNEL", "RELID_RELEASED")
"""From here on the channel's ids mean something else."""


@dataclass(frozen=True)
class Oddity:
    """Something about a record that is not answer and request one after the other."""

    what: str
    lines: tuple[int, ...] = ()
    """Of the records that it has to do with."""

    def __str__(self) -> str:
        """For one line."""
        return " ".join((self.what, ", ".join(map(str, self.lines)))).rstrip()


_ANSWERS_NOTHING = Oddity("answers nothing")


@dataclass(frozen=True)
class Pair:
    """What a record has to do with earlier ones; those are named by the numbers of their lines."""

    request: int | None = None
    """What it answers."""
    latency_ns: int | None = None
    oddity: Oddity | None = None
    """What is not as it should be, or worth a second look."""


@dataclass(frozen=True)
class _Key:
    """What a request and its answer have in common."""

    kind: str
    asker: Side
    relid: int | None
    """A packet's channel."""
    ids: tuple[object, ...]


class Pairing:
    """Follows a transcript record by record. Ids are used again, and what is in flight at a channel's end is void.

    What a raw packet means to its receiver is not known, so none is taken for an answer.
    """

    def __init__(self) -> None:
        self._in_flight: dict[_Key, Line] = {}
        self._answered: dict[_Key, int] = {}

    @property
    def unanswered(self) -> list[int]:
        """The lines of the requests that are waiting for an answer now."""
        return sorted(line.number for line in self._in_flight.values())

    def observe(self, line: Line, decoded: Decoded) -> Pair:
        """Take the next record."""
        void = self._forget(decoded)
        asked, answered = _keys(line, decoded)
        if answered:
            return self._answer(answered, line, decoded.name)
        if not asked:
            return Pair(oddity=void)
        before = self._in_flight.get(asked)
        self._in_flight[asked] = line
        self._answered.pop(asked, None)
        return Pair(oddity=void or (Oddity("no answer to", (before.number,)) if before else None))

    def _answer(self, key: _Key, line: Line, name: str) -> Pair:
        request = self._in_flight.pop(key, None)
        if request:
            self._answered[key] = line.number
            return Pair(request.number, line.record.ns - request.record.ns)
        if key in self._answered:
            return Pair(oddity=Oddity("answered already in", (self._answered[key],)))
        rule = _BY_ANSWER.get(name)
        return Pair(oddity=None if rule and rule.may_come_unasked else _ANSWERS_NOTHING)

    def _forget(self, decoded: Decoded) -> Oddity | None:
        """Drop what this record ends; returns which packets it leaves without an answer."""
        if decoded.name in _RESTARTS:
            ended = [key for key in self._in_flight | self._answered if key.kind != decoded.name]
        elif decoded.name in _ENDS and "relid" in decoded.values:
            ended = [key for key in self._in_flight | self._answered if key.relid == decoded.values["relid"]]
        else:
            return None
        void = [self._in_flight[key].number for key in ended if key in self._in_flight and key.kind == _PACKET]
        for key in ended:
            self._in_flight.pop(key, None)
            self._answered.pop(key, None)
        return Oddity("no answer any more to", tuple(void)) if void else None


def _keys(line: Line, decoded: Decoded) -> tuple[_Key | None, _Key | None]:
    """The key under which the record asks, and that under which it answers."""
    record = line.record
    other = SIDES[SIDES[0] == record.sender]
    if isinstance(record, RawPacket):
        return None, None
    if isinstance(record, Packet):
        if record.type == COMPLETION:
            return None, _Key(_PACKET, other, record.relid, (record.id,))
        asks = record.flags & WANTS_COMPLETION
        return _Key(_PACKET, record.sender, record.relid, (record.id,)) if asks else None, None
    if decoded.fault:
        return None, None
    rule = _BY_REQUEST.get(decoded.name) or _BY_ANSWER.get(decoded.name)
    if rule is None:
        return None, None
    asker = record.sender if decoded.name == rule.request else other
    key = _Key(rule.request, asker, None, tuple(decoded.values[name] for name in rule.fields))
    return (key, None) if asker == record.sender else (None, key)
