# SPDX-License-Identifier: GPL-2.0-only
"""A dialogue without what differs from one run to the next, so that two of them can be compared line by line."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from pyharness.trace.dialogue import Event
from pyharness.trace.render import ARROWS

# Addresses and numbers that a run makes up, and how the guest's memory lies.
_LEFT_OUT = (
    *("interrupt_page", "target_vp", "open_id", "id", "guid", "segments"),
    "relid",  # the channel tells
)


def comparable(events: Iterable[Event]) -> Iterator[str]:
    """A line for each event: no times, relids and GPADLs by the order in which they come up, answers by distance."""
    relids: dict[int, int] = {}
    gpadls: dict[int, int] = {}
    positions: dict[int, int] = {}
    for position, event in enumerate(events):
        positions[event.line.number] = position
        parts = [ARROWS[event.line.record.sender], event.decoded.name]
        if event.channel:
            parts.append(f"channel={_number(relids, event.channel.relid)}")
        for name, text in event.decoded.texts.items():
            if name == "gpadl":
                parts.append(f"gpadl={_number(gpadls, event.decoded.values['gpadl'])}")
            elif name not in _LEFT_OUT:
                parts.append(f"{name}={text}")
        if event.pair.request in positions:
            parts.append(f"[answers {position - positions[event.pair.request]} up]")
        odd = event.pair.oddity.what if event.pair.oddity else ""
        parts += [f"[{said}]" for said in (event.decoded.fault, odd) if said]
        yield " ".join(parts)


def _number(known: dict[int, int], value: int) -> int:
    return known.setdefault(value, len(known) + 1)
