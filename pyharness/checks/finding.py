# SPDX-License-Identifier: GPL-2.0-only
"""What a static check objects to."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, order=True)
class Finding:
    """An objection to one place of the tree.

    `file` is relative to the repository's root; `line` counts from 1, and 0 means the file as a whole. `rule` is what
    the tool calls the kind of fault, when it has a name for it.
    """

    file: str
    line: int
    message: str
    rule: str = ""

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.line else self.file
        return f"{place}: {self.message}" + (f" [{self.rule}]" if self.rule else "")
