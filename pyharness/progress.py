# SPDX-License-Identifier: GPL-2.0-only
"""Progress of long work: named stages with seconds, and steps within a stage.

Work reports to a `Progress`; what is shown is decided here alone. On a terminal a step overwrites the line; elsewhere
(CI, a file) each stage is one plain line and steps are shown at most every few seconds.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TextIO

_PLAIN_STEP_INTERVAL_S = 10.0


@dataclass(frozen=True)
class Stage:
    """A finished stage and the wall-clock seconds it took."""

    name: str
    seconds: float


@dataclass
class Progress:
    """Shows stages on `stream` and keeps their times."""

    stream: TextIO = field(default_factory=lambda: sys.stderr)
    quiet: bool = False
    stages: list[Stage] = field(default_factory=list)
    _last_step: float = 0.0
    _open_line: bool = False

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a stage; it is recorded only when it succeeds."""
        started = time.monotonic()
        self._last_step = started
        self.step(f"{name} ...")
        yield
        seconds = time.monotonic() - started
        self.stages.append(Stage(name, round(seconds, 3)))
        self.line(f"{name}: {seconds:.1f} s")

    def step(self, text: str) -> None:
        """A transient line: 'compiling 120/1355'."""
        if self.quiet:
            return
        if self.stream.isatty():
            self.stream.write(f"\r\033[K{text[:110]}")
            self._open_line = True
        elif time.monotonic() - self._last_step >= _PLAIN_STEP_INTERVAL_S:
            self._last_step = time.monotonic()
            self.stream.write(f"  {text}\n")
        self.stream.flush()

    def line(self, text: str) -> None:
        """A lasting line."""
        if self.quiet:
            return
        if self._open_line:
            self.stream.write("\r\033[K")
            self._open_line = False
        self.stream.write(f"{text}\n")
        self.stream.flush()
