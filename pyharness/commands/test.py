# SPDX-License-Identifier: GPL-2.0-only
"""Build what is missing, with progress, then run pytest over tests/. Arguments after -- go to pytest:

pyharness test -- tests/driver -k einval -x
"""

from __future__ import annotations

import argparse
import os
import signal
from collections.abc import Sequence
from types import FrameType

import pytest

from pyharness import repository
from pyharness.artifacts.cache import Cache
from pyharness.artifacts.prepare import prepare
from pyharness.commands import options
from pyharness.errors import Exit, HarnessError
from pyharness.progress import Progress

# A run in which no test ran (5) is no pass.
_EXITS = {
    pytest.ExitCode.OK: Exit.OK,
    pytest.ExitCode.TESTS_FAILED: Exit.FAILED,
    pytest.ExitCode.USAGE_ERROR: Exit.USAGE,
    pytest.ExitCode.INTERNAL_ERROR: Exit.HARNESS,
    pytest.ExitCode.NO_TESTS_COLLECTED: Exit.HARNESS,
    pytest.ExitCode.INTERRUPTED: 128 + signal.SIGINT,
}
_WORST_FIRST = (Exit.GUEST_CRASH, Exit.HARNESS, Exit.TIMEOUT)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `pyharness test`."""
    options.add_kernel(parser)
    parser.add_argument("pytest_args", nargs="*", metavar="-- PYTEST_ARGUMENT", help="passed to pytest")


def execute(args: argparse.Namespace) -> int:
    """Run the suite on the chosen kernel."""
    prepare(args.kernel, Cache.open(), Progress())
    os.environ["PYHARNESS_KERNEL"] = args.kernel
    os.chdir(repository.ROOT)
    return run_pytest(args.pytest_args)


class _Causes:
    """Collects why tests failed, where that says more than that they did."""

    def __init__(self) -> None:
        self.seen: set[Exit] = set()

    def pytest_exception_interact(self, call: pytest.CallInfo[None]) -> None:
        if call.excinfo and isinstance(call.excinfo.value, HarnessError):
            self.seen.add(call.excinfo.value.exit_code)


def run_pytest(arguments: Sequence[str]) -> int:
    """Run pytest in this process, so that a signal ends it through its fixtures, and return our exit code."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _terminated)
    causes = _Causes()
    status = pytest.main(list(arguments), plugins=[causes])
    if status == pytest.ExitCode.TESTS_FAILED:
        return next((code for code in _WORST_FIRST if code in causes.seen), Exit.FAILED)
    # _terminated chose a status that is none of pytest's own.
    return _EXITS[pytest.ExitCode(status)] if status in _EXITS else int(status)


def _terminated(number: int, _frame: FrameType | None) -> None:
    pytest.exit(f"ended by signal {number}", returncode=128 + number)
