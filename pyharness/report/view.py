# SPDX-License-Identifier: GPL-2.0-only
"""What a session shows while it runs: a line for each finished file, and each failure in full when it happens.

On a terminal a few lines below those follow what is being run. pytest's own summary ends the session.
"""

from __future__ import annotations

import os
import shutil
import sys
import threading
import time
from collections import Counter
from collections.abc import Generator, Sequence
from typing import Any, TextIO

import pytest

from pyharness.report.recorder import Outcome, Recorder, Result

_TICK_S = 0.5
_FAILURE_LINES = 40
_NOT_TOLD = (Outcome.NOT_RUN,)
_RED, _GREEN, _YELLOW, _BOLD, _DIM = "31", "32", "33", "1", "2"


class View:
    """A pytest plugin of the controller alone, in place of pytest's dots. `recorder` is told of everything first."""

    def __init__(self, recorder: Recorder, stream: TextIO | None = None) -> None:
        self.recorder = recorder
        # Of its own: during a test pytest keeps what goes to standard output.
        self.stream = stream or os.fdopen(os.dup(sys.stdout.fileno()), "w")
        self.live = self.stream.isatty() and os.environ.get("TERM", "dumb") != "dumb"
        self._began = time.monotonic()
        self._running: dict[str, float] = {}
        self._finished: set[str] = set()
        self._drawn = 0
        self._lock = threading.RLock()
        self._ticker: threading.Thread | None = None
        self._end = threading.Event()

    @pytest.hookimpl(trylast=True)
    def pytest_configure(self, config: pytest.Config) -> None:
        """Stand back where the user wants to see more, or less, or the tests' own output."""
        asked = config.option
        reporter = config.pluginmanager.get_plugin("terminalreporter")
        if asked.verbose or asked.capture == "no" or asked.usepdb or asked.collectonly or reporter is None:
            config.pluginmanager.unregister(self)
            return
        reporter.showfspath = False

    @pytest.hookimpl(wrapper=True)
    def pytest_report_teststatus(self) -> Generator[None, Any, Any]:
        """Keep pytest's count and drop its dot."""
        status = yield
        return (status[0], "", status[2]) if status else status

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        """A test begins, here or in a worker."""
        with self._lock:
            self._running[nodeid] = time.monotonic()
            if self.live and self._ticker is None:
                self._ticker = threading.Thread(target=self._tick, name="view", daemon=True)
                self._ticker.start()

    @pytest.hookimpl(trylast=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Tell of a failure at once."""
        if report.failed:
            self._failure(report)
        if report.when not in ("setup", "call", "teardown"):  # its worker died
            self._finish(report.nodeid)

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        """A test has ended."""
        self._finish(nodeid)

    @pytest.hookimpl(optionalhook=True, tryfirst=True)
    def pytest_testnodedown(self) -> None:
        """Make room for what xdist says of it."""
        with self._lock:
            self._erase()

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self) -> None:
        """Leave the terminal to pytest's summary."""
        self._end.set()
        if self._ticker:
            self._ticker.join()
        with self._lock:
            self._erase()

    def _finish(self, nodeid: str) -> None:
        with self._lock:
            self._running.pop(nodeid, None)
        self._finished.add(nodeid)
        results = self.recorder.results
        own = results[nodeid]
        together = [one for one in results.values() if (one.file, one.kernel) == (own.file, own.kernel)]
        if all(one.nodeid in self._finished for one in together):
            self._print([self._file_line(together)])

    def _file_line(self, results: Sequence[Result]) -> str:
        first = results[0]
        counted = Counter(result.outcome for result in results)
        colour = _RED if counted[Outcome.FAILED] else _GREEN if counted[Outcome.PASSED] else _YELLOW
        said = ", ".join(f"{counted[outcome]} {outcome.value}" for outcome in Outcome if counted[outcome])
        seconds = sum(result.seconds for result in results)
        return f"{first.kernel:14} {first.file:40} {self._paint(said, colour)} in {seconds:.1f} s"

    def _failure(self, report: pytest.TestReport) -> None:
        """The reason; a traceback waits for pytest's summary, but for what it says of the assertion."""
        lines = str(report.longrepr).rstrip("\n").split("\n")
        if not getattr(report, "explained", False):
            lines = [line for line in lines if line.startswith("E ")] + lines[-1:]
        if (hidden := len(lines) - _FAILURE_LINES) > 0:
            lines = [*lines[:_FAILURE_LINES], f"({hidden} more lines in the summary)"]
        self._print(["", self._paint(f"FAILED {report.nodeid}", _RED), *(f"  {line}" for line in lines), ""])

    def _tick(self) -> None:
        while not self._end.wait(_TICK_S):
            with self._lock:
                self._draw()

    def _window(self) -> list[str]:
        now = time.monotonic()
        counted = Counter(result.outcome for result in list(self.recorder.results.values()))
        told = ", ".join(f"{counted[outcome]} {outcome.value}" for outcome in Outcome if outcome not in _NOT_TOLD)
        minutes, seconds = divmod(int(now - self._began), 60)
        total = sum(counted.values())
        lines = [f"{now - since:5.0f} s  {nodeid}" for nodeid, since in self._running.items()]
        return [*lines, f"{total - counted[Outcome.NOT_RUN]} of {total}: {told}; {minutes}:{seconds:02}"]

    def _draw(self) -> None:
        width = shutil.get_terminal_size().columns - 1
        lines = self._window()
        self._erase()
        self.stream.write("".join(f"{self._paint(line[:width], _DIM)}\n" for line in lines))
        self.stream.flush()
        self._drawn = len(lines)

    def _erase(self) -> None:
        if self._drawn:
            self.stream.write(f"\033[{self._drawn}A\033[J")
            self.stream.flush()
            self._drawn = 0

    def _print(self, lines: Sequence[str]) -> None:
        """Lasting lines, above the window."""
        with self._lock:
            self._erase()
            self.stream.write("".join(f"{line}\n" for line in lines))
            self.stream.flush()
            if self._ticker and not self._end.is_set():
                self._draw()

    def _paint(self, text: str, code: str) -> str:
        return f"\033[{code}m{text}\033[0m" if self.live else text
