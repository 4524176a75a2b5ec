# SPDX-License-Identifier: GPL-2.0-only
"""Why some lines do not run: a table that quotes source text, so that edits elsewhere do not break it."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from pyharness import repository
from pyharness.errors import HarnessError

REASONS = repository.ROOT / "kernel" / "uncovered.toml"
MINIMUM_PERCENT = 90.0
"""How many of the lines must have run, whatever the reasons for the others."""

_NO_HEAD = ("/*", " *", "}", "#")


@dataclass(frozen=True)
class Reason:
    """Why lines that `source` quotes from `function` (of a file named from the repository's or kernel's top) never run.

    `source` is any number of whole lines as they follow each other; white space at their ends does not matter.
    """

    file: str
    function: str
    source: str
    reason: str

    def __str__(self) -> str:
        return f"{self.file} {self.function}(): {' / '.join(line.strip() for line in self.source.strip().splitlines())}"


def load_reasons(path: Path = REASONS) -> list[Reason]:
    """The table. Raises HarnessError when it cannot be understood."""
    try:
        rows = tomllib.loads(path.read_text())["uncovered"]
        return [Reason(**row) for row in rows]
    except (OSError, tomllib.TOMLDecodeError, KeyError, TypeError) as error:
        raise HarnessError(
            f"{path.name} is no table of reasons: {error}",
            mend="give each [[uncovered]] a file, a function, the source and a reason",
        ) from error


class SourceText:
    """A source file in the kernel's style: which function a line is in, and where a quotation stands."""

    def __init__(self, text: str) -> None:
        self.lines = text.splitlines()
        self._bare = [line.strip() for line in self.lines]
        self.functions = _functions(self.lines)
        """The name of each function and its range of line numbers, its head included."""

    def line(self, number: int) -> str:
        """The line `number`, counted from 1, without the white space around it."""
        return self._bare[number - 1]

    def function_at(self, number: int) -> str:
        """The function that the line is in, or nothing."""
        return next((name for name, span in self.functions.items() if number in span), "")

    def quoted(self, reason: Reason) -> set[int]:
        """The numbers of all lines that the reason quotes."""
        span = self.functions.get(reason.function, range(0))
        wanted = [line.strip() for line in reason.source.strip().splitlines()]
        found: set[int] = set()
        for first in span:
            if self._bare[first - 1 : first - 1 + len(wanted)] == wanted:
                found.update(range(first, first + len(wanted)))
        return found


def _functions(lines: list[str]) -> dict[str, range]:
    """A body is between braces in the first column; its head is what stands right before it."""
    found = {}
    head: int | None = None
    for index, line in enumerate(lines):
        if line.startswith("{"):
            head = index
            while head and lines[head - 1].strip() and not lines[head - 1].startswith(_NO_HEAD):
                head -= 1
        elif line.startswith("}") and head is not None:
            name = re.search(r"(\w+)\s*\(", " ".join(lines[head:index]))
            if name:
                found[name[1]] = range(head + 1, index + 2)
            head = None
    return found


def explain(
    reasons: Iterable[Reason], sources: Mapping[str, SourceText], uncovered: set[tuple[str, int]]
) -> tuple[dict[tuple[str, int], str], list[Reason]]:
    """The reason of each uncovered (file, line) that has one, and the reasons that explain none of them."""
    explained: dict[tuple[str, int], str] = {}
    stale = []
    for reason in reasons:
        source = sources.get(reason.file)
        matched = {(reason.file, number) for number in source.quoted(reason)} & uncovered if source else set()
        explained |= dict.fromkeys(matched, reason.reason)
        if not matched:
            stale.append(reason)
    return explained, stale
