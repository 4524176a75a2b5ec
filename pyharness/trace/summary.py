# SPDX-License-Identifier: GPL-2.0-only
"""A dialogue in a table: how many of which kind on each channel, and how long answers took."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from pyharness.trace.dialogue import Event
from pyharness.trace.render import ARROWS, microseconds

_HEAD = ("CHANNEL", "", "WHAT", "COUNT", "MIN us", "MEDIAN us", "P99 us", "MAX us")
_SHOWN = 10


class Latency(NamedTuple):
    """Of some answers, in nanoseconds of guest time. Each figure is that of one of them."""

    min: int
    median: int
    p99: int
    max: int


def latency(samples: Sequence[int]) -> Latency:
    """The figures of at least one answer, by nearest rank."""
    ordered = sorted(samples)
    rank = [max(0, -(-len(ordered) * percent // 100) - 1) for percent in (50, 99)]
    return Latency(ordered[0], ordered[rank[0]], ordered[rank[1]], ordered[-1])


@dataclass
class _Row:
    count: int = 0
    latencies: list[int] = field(default_factory=list)


class Summary:
    """Counts the events that it is shown."""

    def __init__(self) -> None:
        self._rows: dict[tuple[int, str, str, str], _Row] = {}
        self._lines: set[int] = set()
        self._oddities: list[str] = []

    def add(self, event: Event) -> None:
        """Count an event."""
        relid = event.channel.relid if event.channel else -1
        key = (relid, str(event.channel or "-"), ARROWS[event.line.record.sender], event.decoded.name)
        row = self._rows.setdefault(key, _Row())
        row.count += 1
        if event.pair.latency_ns is not None:
            row.latencies.append(event.pair.latency_ns)
        self._lines.add(event.line.number)
        said = (event.decoded.fault, event.pair.oddity)
        self._oddities += [f"line {event.line.number}: {one}" for one in said if one]

    def render(self, unanswered: Sequence[int]) -> str:
        """The table by channel, then what is worth a look; `unanswered` is the pairing's at the end."""
        cells = [_HEAD]
        for (_, *names), row in sorted(self._rows.items(), key=lambda item: item[0][0]):
            figures = map(microseconds, latency(row.latencies)) if row.latencies else [""] * len(Latency._fields)
            cells.append((*names, str(row.count), *figures))
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = [
            " ".join(cell.ljust(width) if index < 3 else cell.rjust(width) for index, (cell, width) in enumerate(pairs))
            for pairs in (list(zip(row, widths, strict=True)) for row in cells)
        ]
        lines += _shortened(
            "unanswered at the end", [f"line {number}" for number in unanswered if number in self._lines]
        )
        lines += _shortened("odd", self._oddities)
        return "\n".join(line.rstrip() for line in lines)


def _shortened(title: str, items: Sequence[str]) -> list[str]:
    if not items:
        return []
    more = [f"  and {len(items) - _SHOWN} more"] if len(items) > _SHOWN else []
    return [f"{title}: {len(items)}", *(f"  {item}" for item in items[:_SHOWN]), *more]
