# SPDX-License-Identifier: GPL-2.0-only
"""A dialogue without what differs from one run to the next, so that two of them can be compared line by line."""

from __future__ import annotations

from collections.abc import Iterable

from pyharness.trace.dialogue import Event
from pyharness.trace.render import ARROWS

# Addresses and numbers that a run makes up, and how the guest's memory lies.
_LEFT_OUT = ("interrupt_page", "target_vp", "open_id", "id", "guid", "segments")
_CHANNEL = "relid"


class _Part:
    """What was said of one channel, or of none: only there does the order of things mean something."""

    def __init__(self, title: str) -> None:
        self.lines = [title]
        self._positions: dict[int, int] = {}
        self._gpadls: dict[int, int] = {}

    def add(self, event: Event) -> None:
        pair, decoded = event.pair, event.decoded
        words = [f"  {ARROWS[event.line.record.sender]} {decoded.name}"]
        for name, text in decoded.texts.items():
            if name == "gpadl":
                words.append(f"gpadl={self._gpadls.setdefault(decoded.values['gpadl'], len(self._gpadls) + 1)}")
            elif name not in (*_LEFT_OUT, _CHANNEL):
                words.append(f"{name}={text}")
        if pair.request in self._positions:
            words.append(f"[answers {len(self.lines) - self._positions[pair.request]} up]")
        words += [f"[{said}]" for said in (decoded.fault, pair.oddity.what if pair.oddity else "") if said]
        self._positions[event.line.number] = len(self.lines)
        self.lines.append(" ".join(words))


def comparable(events: Iterable[Event]) -> list[str]:
    """A line for each event, by channel, those by the order in which they come up.

    Left out are times and what is made up; GPADLs are numbered anew, and an answer tells how far above its request is.
    """
    parts: dict[int | None, _Part] = {None: _Part("connection")}
    for event in events:
        relid = event.channel.relid if event.channel else None
        if relid not in parts:
            parts[relid] = _Part(f"channel {len(parts)}")
        parts[relid].add(event)
    return [line for part in parts.values() for line in part.lines]
