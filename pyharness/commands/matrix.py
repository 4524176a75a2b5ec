# SPDX-License-Identifier: GPL-2.0-only
"""Run the test suite on every kernel of the table, and print one table of what became of it.

It is `pyharness test` with all kernels, but one that cannot be made is a row of the table and does not end the run.
"""

from __future__ import annotations

import argparse

from pyharness.artifacts.kernels import KERNELS
from pyharness.commands.test import add_session_arguments, prepare_session
from pyharness.report.recorder import Outcome
from pyharness.report.session import Session

_HEAD = ("kernel", "result", "passed", "failed", "skipped", "seconds", "coverage")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `pyharness matrix`."""
    add_session_arguments(parser)


def execute(args: argparse.Namespace) -> int:
    """Run on all kernels."""
    session = prepare_session(list(KERNELS), args, keep_going=True)
    code = session.run()
    print()
    print(table(session))
    return code


def table(session: Session) -> str:
    """The table; the first row is of the tests that need no kernel. `seconds` add up over all workers."""
    ran = {subject.name for subject in session.subjects}
    rows = [_HEAD, _row(session, "", "(none)")]
    rows += [_row(session, name, name) if name in ran else (name, "error", *"-----") for name in KERNELS]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEAD))]
    return "\n".join(
        "  ".join(f"{cell:{'<' if index < 2 else '>'}{widths[index]}}" for index, cell in enumerate(row)).rstrip()
        for row in rows
    )


def _row(session: Session, kernel: str, shown: str) -> tuple[str, ...]:
    recorder = session.recorder
    counts = recorder.counts(kernel)
    measured = session.coverage.get(kernel)
    return (
        shown,
        recorder.verdict(kernel),
        *(str(counts[outcome]) for outcome in (Outcome.PASSED, Outcome.FAILED, Outcome.SKIPPED)),
        f"{recorder.seconds(kernel):.0f}",
        f"{measured.lines.percent:g} %" if measured else "-",
    )
