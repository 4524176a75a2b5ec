# SPDX-License-Identifier: GPL-2.0-only
"""One pytest session over several kernels, in this process and its workers."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from pyharness import repository
from pyharness.artifacts.kernels import DEBUG_KERNEL, DEFAULT_KERNEL
from pyharness.coverage import Coverage
from pyharness.errors import Exit, HarnessError
from pyharness.machine.rundir import RunDir
from pyharness.report.claims import DOCUMENT, claimed, unproved
from pyharness.report.directory import COVERAGE, ReportDirectory
from pyharness.report.faults import Fault
from pyharness.report.plugin import SUBJECTS, subjects_of
from pyharness.report.recorder import Outcome, Recorder
from pyharness.report.subjects import Subject, Subjects
from pyharness.report.view import View


@dataclass(eq=False)
class Session:
    """What is to be run. `arguments` are pytest's; without subjects its option --kernel chooses the kernels."""

    arguments: Sequence[str]
    subjects: Sequence[Subject] = ()
    jobs: int = 1
    """Workers; 1 is this process and no worker."""
    cold: bool = False
    report: ReportDirectory | None = None
    recorder: Recorder = field(default_factory=Recorder)
    coverage: dict[str, Coverage] = field(default_factory=dict)
    """By kernel, of those that count."""
    dump: bool = False
    _counters: Path | None = None

    def run(self) -> int:
        """Run it and return our exit code. A signal ends it through its fixtures."""
        given = ["-p", "pyharness.report.plugin", "-o", "console_output_style=classic"]
        # This process has it imported already; it asserts nothing.
        given += ["-W", "ignore:Module already imported:pytest.PytestAssertRewriteWarning"]
        given += ["-n", str(self.jobs)] if self.jobs > 1 else []
        given += self.report.pytest_arguments if self.report else []
        plugins: list[object] = [self, self.recorder, View(self.recorder), *([self.report] if self.report else [])]
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, _terminated)
        repository.BUILD.mkdir(exist_ok=True)
        run_dir = RunDir()  # the next start of a machine sweeps it, should this process be killed
        try:
            self._counters = run_dir.path / "counters"
            self._counters.mkdir()
            status = pytest.main([*given, *self.arguments], plugins=plugins)
        finally:
            run_dir.remove()
        code = self.recorder.exit_code(int(status))
        if self.report:
            self.report.finish(self.recorder, code, {name: one.facts() for name, one in self.coverage.items()})
        return code

    def pytest_configure(self, config: pytest.Config) -> None:
        """Give the session its kernels, and the recorder their names."""
        if self.subjects:
            if config.getoption("kernel"):
                raise pytest.UsageError("--kernel belongs before the --, where pyharness chooses the kernels")
            config.stash[SUBJECTS] = Subjects.of(self.subjects, self.cold, self._counters, self.dump)
        self.recorder.kernel_of = subjects_of(config).named_in

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        """Measure the coverage, and say where the reports are."""
        if not self.recorder.interrupted:
            self._measure(terminalreporter)
            self._check_claims(terminalreporter)
            self._complain_of_nothing(terminalreporter)
        if self.report:
            terminalreporter.write_line(f"report: {self.report.path}")

    def _complain_of_nothing(self, terminal: Any) -> None:
        results = self.recorder.results.values()
        if results and all(result.outcome is Outcome.SKIPPED for result in results):
            nothing = Fault(int(Exit.HARNESS), "no test ran: all were skipped", "choose a kernel that can run them")
            self.recorder.problems.append(nothing)
            terminal.write_line(f"{nothing.message}; {nothing.mend}", red=True)

    def _check_claims(self, terminal: Any) -> None:
        """After the whole suite on the kernels that it is made for."""
        if self.arguments or not {DEFAULT_KERNEL, DEBUG_KERNEL} <= {subject.name for subject in self.subjects}:
            return
        if fault := unproved(claimed(DOCUMENT.read_text()), self.recorder.results.values()):
            self.recorder.problems.append(fault)
            terminal.write_line(fault.message, red=True)

    def _measure(self, terminal: Any) -> None:
        assert self._counters
        counting = [one for one in self.subjects if one.prepared.kernel.has("GCOV_KERNEL")]
        # The whole suite that has counted nothing is a fault.
        if self.arguments and not any(self._counters.iterdir()):
            return
        for subject in counting:
            html = (self.report.path if self.report else repository.BUILD) / COVERAGE / subject.name
            try:
                measured = Coverage.of(self._counters, subject.prepared.kernel, subject.prepared.modules, html)
            except HarnessError as error:
                self.recorder.problems.append(Fault.of(error))
                terminal.write_line(f"coverage on {subject.name}: {error.message}", red=True)
                continue
            self.coverage[subject.name] = measured
            terminal.write_line(f"{measured.summary}: {measured.html}")
            # Part of the suite need not run every line.
            if self.arguments:
                terminal.write_line("  not judged: pytest was given arguments, so this need not be the whole suite")
            elif measured.verdict:
                self.recorder.problems.append(Fault(int(Exit.FAILED), measured.verdict, detail=measured.details()))
                terminal.write_line(measured.verdict, red=True)


def _terminated(number: int, _frame: FrameType | None) -> None:
    pytest.exit(f"ended by signal {number}", returncode=128 + number)
