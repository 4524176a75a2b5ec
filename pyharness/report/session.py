# SPDX-License-Identifier: GPL-2.0-only
"""One pytest session over several kernels, in this process and its workers."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from dataclasses import dataclass
from types import FrameType

import pytest

from pyharness.report.directory import ReportDirectory
from pyharness.report.plugin import SUBJECTS, subjects_of
from pyharness.report.recorder import Recorder
from pyharness.report.subjects import Subject, Subjects
from pyharness.report.view import View


@dataclass
class _Handover:
    """Gives the session its kernels, and the recorder their names."""

    subjects: Sequence[Subject]
    recorder: Recorder

    def pytest_configure(self, config: pytest.Config) -> None:
        if self.subjects:
            config.stash[SUBJECTS] = Subjects.of(self.subjects)
        self.recorder.kernel_of = subjects_of(config).named_in


def run_session(
    arguments: Sequence[str], subjects: Sequence[Subject] = (), jobs: int = 1, report: ReportDirectory | None = None
) -> tuple[Recorder, int]:
    """Run pytest on `subjects` with `jobs` workers, or in this process for one; returns the results and our exit code.

    A signal ends the session through its fixtures. Without subjects pytest's own option chooses the kernels.
    """
    recorder = Recorder()
    plugins: list[object] = [_Handover(subjects, recorder), recorder, View(recorder)]
    if report:
        plugins.append(report)
    given = ["-p", "pyharness.report.plugin", "-o", "console_output_style=classic"]
    # This process has it imported already; it asserts nothing.
    given += ["-W", "ignore:Module already imported:pytest.PytestAssertRewriteWarning"]
    given += report.pytest_arguments if report else ()
    if jobs > 1:
        given += ["-n", str(jobs)]
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _terminated)
    status = pytest.main([*given, *arguments], plugins=plugins)
    return recorder, recorder.exit_code(int(status))


def _terminated(number: int, _frame: FrameType | None) -> None:
    pytest.exit(f"ended by signal {number}", returncode=128 + number)
