# SPDX-License-Identifier: GPL-2.0-only
"""A command in a process of its own, all of whose processes can be told, however they were re-parented."""

from __future__ import annotations

import os
import subprocess
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path

from pyharness import repository

# Ends only a wait that would last for ever; no verdict depends on it.
PATIENCE_S = 300.0
_MARK = "PYHARNESS_TEST_MARK"


class Marked:
    """A running command with a mark in its environment that every process of it inherits."""

    def __init__(self, command: Sequence[str], output: Path, environment: Mapping[str, str] | None = None) -> None:
        """`output` takes what it says; it is the leader of a process group of its own."""
        self._mark = uuid.uuid4().hex
        self._output = output
        with output.open("w") as stream:
            self.process = subprocess.Popen(
                command,
                cwd=repository.ROOT,
                env={**os.environ, **(environment or {}), _MARK: self._mark},
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def output(self) -> str:
        """What it has said."""
        return self._output.read_text()

    def finish(self) -> int:
        """Wait for its end; returns its exit status."""
        return self.process.wait(PATIENCE_S)

    def processes(self) -> dict[int, str]:
        """Every live process of it, and its program."""
        found = {}
        for directory in Path("/proc").glob("[0-9]*"):
            try:
                if f"{_MARK}={self._mark}".encode() in (directory / "environ").read_bytes().split(b"\0"):
                    found[int(directory.name)] = (directory / "cmdline").read_text().partition("\0")[0]
            except OSError:
                continue  # it has ended, or is another user's
        return found

    def wait_until_gone(self) -> None:
        """Wait until no process of it is left."""
        deadline = time.monotonic() + PATIENCE_S
        while left := self.processes():
            assert time.monotonic() < deadline, f"left running: {left}"
            time.sleep(0.02)
