# SPDX-License-Identifier: GPL-2.0-only
"""Joins the terminal of this process with a guest's console."""

from __future__ import annotations

import os
import select
import socket
import sys
import termios
import time
import tty
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pyharness.errors import UsageError

_CHUNK = 65536


@dataclass(frozen=True)
class Terminal:
    """The terminal in raw mode, and the console's socket."""

    console: socket.socket
    size: tuple[int, int]
    """Rows and columns."""
    kind: str
    """The value of TERM."""

    def copy(self, seconds: float) -> None:
        """Copy in both directions for some time, and then what is there already. Returns when the console hangs up."""
        deadline = time.monotonic() + seconds
        stdin, stdout = sys.stdin.fileno(), sys.stdout.fileno()
        sources: list[socket.socket | int] = [self.console, stdin]
        while ready := select.select(sources, [], [], max(0.0, deadline - time.monotonic()))[0]:
            try:
                if self.console in ready:
                    if not (shown := self.console.recv(_CHUNK)):
                        return
                    os.write(stdout, shown)
                if stdin in ready:
                    if not (typed := os.read(stdin, _CHUNK)):
                        sources.remove(stdin)
                    self.console.sendall(typed)
            except ConnectionError:
                return


def require_terminal() -> None:
    """Raise UsageError unless this process has a terminal to give to a shell."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise UsageError("the shell needs a terminal", mend="run it from one; for scripts there is `pyharness run`")


@contextmanager
def attached_terminal(path: Path) -> Iterator[Terminal]:
    """Connect to the console's socket at `path`, with the terminal in raw mode for as long. Raises UsageError."""
    require_terminal()
    columns, rows = os.get_terminal_size(sys.stdin.fileno())
    saved = termios.tcgetattr(sys.stdin)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as console:
        console.connect(str(path))
        try:
            tty.setraw(sys.stdin)
            yield Terminal(console, (rows, columns), os.environ.get("TERM", "linux"))
        finally:
            termios.tcsetattr(sys.stdin, termios.TCSADRAIN, saved)
