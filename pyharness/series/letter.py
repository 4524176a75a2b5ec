# SPDX-License-Identifier: GPL-2.0-only
"""The cover letter's text: what it says, the benchmark's figures, and the changelog."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from pyharness.errors import UsageError
from pyharness.series.plan import Plan
from pyharness.series.target import Target

_MIB = 1 << 20
_COLUMNS = ("path", "backend", "op", "size", "clients", "MiB/s", "ops/s", "p50 us", "p99 us")
_WORDS = 3
"""How many columns at the left are words; the rest are numbers."""


def letter_of(plan: Plan, target: Target, benchmark: Path | None) -> str:
    """The letter, with the table of `benchmark` where it belongs, and the changelog below a line of dashes.

    Raises UsageError when the file is not one of the benchmark's.
    """
    figures = f"\n{figures_of(benchmark)}\n\n" if benchmark else "\n"
    text = plan.letter.replace("{benchmark}\n", figures)
    text += f"\n\nMade for {target.base}."
    for since, changes in plan.changes:
        text += f"\n\n---\nChanges since v{since}:\n{changes}"
    return text


def figures_of(benchmark: Path) -> str:
    """The table of figures, under what they were measured with. Raises UsageError as `letter_of`."""
    try:
        facts = json.loads(benchmark.read_text())
        rows = [_row(row) for row in facts["rows"]]
        head = f"Figures of one run, accelerator {facts['accelerator']}, kernel {facts['kernel']}:"
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"{benchmark} is no result of the benchmark: {type(error).__name__}: {error}",
            mend="measure again, or remove it",
        ) from error
    return "\n".join([head, "", *_aligned([_COLUMNS, *rows])])


def _row(row: dict[str, object]) -> tuple[str, ...]:
    words = [str(row[name]) for name in ("path", "backend", "op")]
    rate, operations, p50, p99 = (float(str(row[name])) for name in ("bytes_per_s", "ops_per_s", "p50_us", "p99_us"))
    numbers = [_size(int(str(row["size"]))), str(row["clients"]), f"{rate / _MIB:.1f}", f"{operations:.0f}"]
    return (*words, *numbers, f"{p50:.0f}", f"{p99:.0f}")


def _size(count: int) -> str:
    if count >= _MIB and count % _MIB == 0:
        return f"{count // _MIB}M"
    return f"{count // 1024}K" if count % 1024 == 0 else str(count)


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(
            f"{cell:{'<' if column < _WORDS else '>'}{widths[column]}}" for column, cell in enumerate(row)
        ).rstrip()
        for row in rows
    ]
