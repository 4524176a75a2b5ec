# SPDX-License-Identifier: GPL-2.0-only
"""What became of each test, kept by the controller of a session, and the exit code that follows from it."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import pytest

from pyharness.errors import VERDICTS, Exit
from pyharness.report.faults import WORST_FIRST, Fault


class Outcome(Enum):
    """What became of a test; NOT_RUN is no pass."""

    PASSED = "passed"
    FAILED = "failed"
    SKIPPED = "skipped"
    NOT_RUN = "not run"


@dataclass
class Result:
    """A test on a kernel ("" where it needs none); `seconds` are its three phases' of the host's clock."""

    nodeid: str
    kernel: str = ""
    outcome: Outcome = Outcome.NOT_RUN
    seconds: float = 0.0
    reason: str = ""
    """Why it was skipped, or its failure as pytest shows it."""
    fault: Fault | None = None
    consoles: tuple[str, ...] = ()
    """Console logs of the machines that a failed test held."""

    @property
    def file(self) -> str:
        """The test's file."""
        return self.nodeid.partition("::")[0]

    @property
    def test(self) -> str:
        """The test within its file."""
        return self.nodeid.partition("::")[2] or self.nodeid


@dataclass(eq=False)
class Recorder:
    """A pytest plugin of the controller alone."""

    kernel_of: Callable[[str], str] = lambda _: ""
    """The kernel that a test's id names."""
    results: dict[str, Result] = field(default_factory=dict)
    """By test id, in the order of the collection."""
    problems: list[Fault] = field(default_factory=list)
    """What went wrong outside of any test: a worker's death, a file that cannot be imported."""
    interrupted: bool = False
    _workers: dict[Any, int] = field(default_factory=dict)

    def counts(self, kernel: str | None = None) -> dict[Outcome, int]:
        """How many tests came to each outcome, on one kernel or altogether."""
        chosen = [result for result in self.results.values() if kernel in (None, result.kernel)]
        return {outcome: sum(result.outcome is outcome for result in chosen) for outcome in Outcome}

    def seconds(self, kernel: str) -> float:
        """The host's time that the tests on a kernel took, added up over all workers."""
        return sum(result.seconds for result in self.results.values() if result.kernel == kernel)

    @property
    def failures(self) -> list[Result]:
        """The failed tests."""
        return [result for result in self.results.values() if result.outcome is Outcome.FAILED]

    def worst(self, kernel: str | None = None) -> Exit:
        """The exit code that the failures come to, on one kernel or altogether with what is outside of tests."""
        faults = [result.fault for result in self.failures if result.fault and kernel in (None, result.kernel)]
        codes = {Exit(fault.exit_code) for fault in (*faults, *(self.problems if kernel is None else ()))}
        return next((code for code in WORST_FIRST if code in codes), Exit.OK)

    def verdict(self, kernel: str) -> str:
        """What the tests on a kernel came to, in one word."""
        if worst := self.worst(kernel):
            return VERDICTS[worst]
        counts = self.counts(kernel)
        return "incomplete" if counts[Outcome.NOT_RUN] else "pass" if counts[Outcome.PASSED] else "-"

    def exit_code(self, status: int) -> int:
        """Our exit code for pytest's: a run in which no test ran is no pass, nor is one that lost a result."""
        if status not in set(pytest.ExitCode):
            return int(status)  # the signal handler's: 128 and the signal
        if self.interrupted:
            return 128 + signal.SIGINT
        if status == pytest.ExitCode.USAGE_ERROR:
            return Exit.USAGE
        if status == pytest.ExitCode.INTERNAL_ERROR:
            return Exit.HARNESS
        if worst := self.worst():
            return worst
        complete = self.results and all(result.outcome is not Outcome.NOT_RUN for result in self.results.values())
        return Exit.OK if status == pytest.ExitCode.OK and complete else Exit.HARNESS

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Without workers: what is going to be run."""
        self._collected([item.nodeid for item in session.items])

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, ids: Sequence[str]) -> None:
        """With workers, each of which finds the same."""
        self._collected(ids)

    def _collected(self, nodeids: Sequence[str]) -> None:
        for nodeid in nodeids:
            self.results.setdefault(nodeid, Result(nodeid, self.kernel_of(nodeid)))

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """A file that cannot be imported."""
        if report.failed:
            last = report.longreprtext.strip().split("\n")[-1].removeprefix("E ").strip()
            self.problems.append(
                Fault(Exit.HARNESS, f"{report.nodeid} cannot be collected: {last}", detail=report.longreprtext)
            )

    @pytest.hookimpl(optionalhook=True)
    def pytest_handlecrashitem(self, crashitem: str, report: pytest.TestReport) -> None:
        """The worker died that ran this test."""
        fault = Fault(Exit.HARNESS, f"the worker died that ran {crashitem}", "run it with -j1 to see what it says")
        vars(report).update(fault=vars(fault), explained=True)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """One of a test's phases: setup, call, teardown; or its worker's death."""
        result = self.results.setdefault(report.nodeid, Result(report.nodeid, self.kernel_of(report.nodeid)))
        result.seconds += report.duration
        if report.failed:
            result.outcome = Outcome.FAILED
            fault = Fault(**getattr(report, "fault", None) or {"exit_code": Exit.FAILED, "message": "it failed"})
            # The first phase that failed tells why; a later one may only tell worse.
            if result.fault is None:
                result.fault, result.reason = fault, str(report.longrepr)
            elif _severity(fault) < _severity(result.fault):
                result.fault = fault
            result.consoles = tuple(dict.fromkeys((*result.consoles, *getattr(report, "consoles", ()))))
        elif report.skipped and result.outcome is Outcome.NOT_RUN:
            result.outcome = Outcome.SKIPPED
            skip = report.longrepr
            said = skip[2] if isinstance(skip, tuple) else getattr(report, "wasxfail", "")
            result.reason = said.removeprefix("Skipped: ")
        elif report.when == "teardown" and result.outcome is Outcome.NOT_RUN:
            result.outcome = Outcome.PASSED

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodeready(self, node: Any) -> None:
        """A worker is there."""
        self._workers[node] = node.gateway._rinfo().pid

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any, error: object) -> None:
        """A worker is gone: by itself, if there is no error."""
        self._workers.pop(node, None)
        if error:
            self.problems.append(Fault(Exit.HARNESS, f"worker {node.gateway.id} died: {error}"))

    def pytest_internalerror(self, excrepr: object) -> None:
        """A fault of pytest, a plugin of it, or ours."""
        self.problems.append(Fault(Exit.HARNESS, "pytest failed", detail=str(excrepr)))

    def pytest_keyboard_interrupt(self, excinfo: pytest.ExceptionInfo[BaseException]) -> None:
        """Ctrl-C or a signal; what pytest raises after -x is a subclass of the same."""
        self.interrupted = excinfo.type in (KeyboardInterrupt, pytest.exit.Exception)

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self) -> None:
        """After an interrupt, tell the workers at once: xdist would let them run on for some seconds."""
        if self.interrupted:
            for pid in self._workers.values():
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGINT)


def _severity(fault: Fault) -> int:
    return WORST_FIRST.index(Exit(fault.exit_code))
