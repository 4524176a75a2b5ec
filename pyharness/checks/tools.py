# SPDX-License-Identifier: GPL-2.0-only
"""Run the tools of the checks, and read the lines that they print."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import threading
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from pyharness.artifacts.run import environment
from pyharness.checks.finding import Finding
from pyharness.errors import CheckFailed

_TAIL_LINES = 20

_LINE = re.compile(
    r"^(?P<file>[^\s:][^:\n]*):(?P<line>\d+):(?:\d+(?:-\d+)?:)? *"
    r"(?:(?P<level>fatal error|error|warning|note|ERROR|WARNING|CHECK): *)?"
    r"(?P<message>.+?)(?: +\[(?P<rule>-?[\w=+,-]+)\])?$"
)


class ToolFailed(CheckFailed):
    """A tool ended as it should not and named no place: what it was given is broken, or the tool is."""


@dataclass(frozen=True)
class Output:
    """What a tool printed, stdout and stderr each in its order, and its exit status."""

    tool: str
    status: int
    stdout: str
    stderr: str

    @property
    def lines(self) -> list[str]:
        """All lines, those of stdout first."""
        return (self.stdout + self.stderr).splitlines()

    def findings(self, *, strip: Path | None = None, only: Iterable[str] = ()) -> list[Finding]:
        """What the lines `file:line: level: message [rule]` say, notes left out.

        `strip` is a directory that the names lose, `only` the files that count (all when empty). Raises ToolFailed when
        the tool failed and nothing of that was found.
        """
        wanted = set(only)
        found: list[Finding] = []
        for line in _without(strip, self.lines):
            match = _LINE.match(line)
            if not match or match["level"] == "note":
                continue
            rule = (match["rule"] or "").lstrip("-").removeprefix("Werror=")
            new = Finding(os.path.normpath(match["file"]), int(match["line"]), match["message"].strip(), rule)
            if wanted and new.file not in wanted:
                continue
            if found and not match["level"] and (new.file, new.line) == (found[-1].file, found[-1].line):
                # sparse goes on in lines of the same place.
                found[-1] = replace(found[-1], message=f"{found[-1].message}; {new.message}")
            else:
                found.append(new)
        if self.status and not found:
            raise self.failure(strip)
        return sorted(set(found))

    def failure(self, strip: Path | None = None) -> ToolFailed:
        """The error that says what the tool said."""
        said = "\n".join(_without(strip, self.lines[-_TAIL_LINES:]))
        return ToolFailed(f"{self.tool} failed with status {self.status}", detail=said)


def _without(prefix: Path | None, lines: list[str]) -> list[str]:
    return [line.replace(f"{prefix}/", "") for line in lines] if prefix else lines


class Runner:
    """Runs tools; `stop` ends those that run, from another thread, and lets none start after that."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: set[subprocess.Popen[str]] = set()
        self._stopped = False

    def run(self, argv: Sequence[str | Path], *, cwd: Path, stdin: str = "") -> Output:
        """Run a tool to its end. Raises ToolFailed when it cannot be started or was stopped."""
        command = [str(word) for word in argv]
        with self._lock:
            if self._stopped:
                raise ToolFailed("stopped")
            try:
                process = subprocess.Popen(
                    command,
                    cwd=cwd,
                    env=environment(),
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                    errors="replace",
                    start_new_session=True,
                )
            except OSError as error:
                raise ToolFailed(f"{command[0]} cannot be run: {error.strerror}") from error
            self._running.add(process)
        try:
            stdout, stderr = process.communicate(stdin)
        finally:
            with self._lock:
                self._running.discard(process)
        return Output(Path(command[0]).name, process.returncode, stdout, stderr)

    def stop(self) -> None:
        """End all that runs, with what it has started."""
        with self._lock:
            self._stopped = True
            for process in self._running:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGTERM)
