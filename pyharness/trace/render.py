# SPDX-License-Identifier: GPL-2.0-only
"""A dialogue as lines for a person, and as JSON for programs."""

from __future__ import annotations

import json
from typing import Any

from pyharness.trace.dialogue import Event
from pyharness.trace.records import Header

ARROWS = {"guest": "->", "host": "<-"}
_DIM, _RED, _CYAN = "2", "31", "36"
_NS_PER_S = 1_000_000_000
_NS_PER_US = 1_000
_CHANNEL_WIDTH = 23
_NAME_WIDTH = 20


def header_line(header: Header) -> str:
    """What the transcript was recorded with, and how to read the arrows."""
    made_of = f"kernel {header.kernel}, qemu {header.qemu}, driver {header.driver}, {header.accelerator}"
    return f"# {made_of}; -> the guest sends, <- the host"


def seconds(ns: int) -> str:
    """Guest time in seconds, cut to microseconds."""
    return f"{ns // _NS_PER_S}.{ns % _NS_PER_S // _NS_PER_US:06}"


def microseconds(ns: int) -> str:
    """A latency."""
    return f"{ns / _NS_PER_US:.1f}"


class Lines:
    """Renders events, one line each; with `delta`, time counts from the event that was rendered before."""

    def __init__(self, *, delta: bool = False, colour: bool = False) -> None:
        self._delta = delta
        self._colour = colour
        self._before: int | None = None

    def render(self, event: Event) -> str:
        """The number of its line, the time, the direction, the channel, what it is and says, what it answers."""
        record, decoded, pair = event.line.record, event.decoded, event.pair
        since = (record.ns if self._before is None else self._before) if self._delta else 0
        self._before = record.ns
        ahead = record.ns < since
        time = ("-" if ahead else "") + seconds(abs(record.ns - since))
        what = f"{decoded.name:{_NAME_WIDTH}}"
        parts = [
            self._paint(f"{event.line.number:6} {time:>12}", _DIM),
            ARROWS[record.sender],
            f"{event.channel or '-'!s:{_CHANNEL_WIDTH}}",
            self._paint(what, _CYAN) if record.sender == "host" else what,
            *(f"{name}={text}" for name, text in decoded.texts.items() if name != "relid"),  # the channel tells
        ]
        if pair.request is not None and pair.latency_ns is not None:
            parts.append(self._paint(f"[request in {pair.request}, {microseconds(pair.latency_ns)} us]", _DIM))
        parts += [self._paint(f"[{fault}]", _RED) for fault in (decoded.fault, str(pair.oddity or "")) if fault]
        return " ".join(parts).rstrip()

    def _paint(self, text: str, code: str) -> str:
        return f"\033[{code}m{text}\033[0m" if self._colour else text


def as_json(event: Event) -> str:
    """The transcript's own object with what has been found out; docs/transcripts.md names the keys."""
    known: dict[str, Any] = {
        **event.line.source,
        "line": event.line.number,
        "what": event.decoded.name,
        "fields": event.decoded.values,
        "fault": event.decoded.fault,
        "channel": event.channel.relid if event.channel else None,
        "class": event.channel.device_class if event.channel else "",
        "instance": event.channel.instance if event.channel else "",
        "request": event.pair.request,
        "latency_ns": event.pair.latency_ns,
        "oddity": event.pair.oddity.what if event.pair.oddity else "",
        "about": list(event.pair.oddity.lines) if event.pair.oddity else [],
    }
    return json.dumps(known)
