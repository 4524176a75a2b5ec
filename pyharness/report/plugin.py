# SPDX-License-Identifier: GPL-2.0-only
"""The part of a session that is in every pytest process, with workers and without.

It runs each test that needs a kernel once per kernel of the session, leaves out what a kernel cannot run, and hands the
reason of each failure to whoever reports it. Kernels come from `pyharness test`, or from pytest's option --kernel.
"""

from __future__ import annotations

import ctypes
import os
import pickle
import signal
from collections.abc import Generator
from dataclasses import asdict
from types import FrameType
from typing import Any

import pytest

from pyharness.artifacts.kernels import DEBUG_KERNEL, DEFAULT_KERNEL, KERNELS
from pyharness.report.faults import Explanation, Fault, consoles_of, fault_of, machines_of
from pyharness.report.subjects import Subjects

SUBJECTS = pytest.StashKey[Subjects]()
"""The session's kernels, in the stash of pytest's configuration."""

FIXTURE = "kernel_choice"
"""The session's fixture whose parameter is the name of the kernel."""

_MARKERS = {
    "kernel_has": "(OPTION, ...): the test needs a kernel that was configured with CONFIG_OPTION",
    "default_kernel_only": "(reason): the test is not about the kernel, so that the default one is enough",
}
_PR_SET_PDEATHSIG = 1


def pytest_addoption(parser: pytest.Parser) -> None:
    """--kernel, for pytest without `pyharness test`."""
    parser.getgroup("pyharness").addoption(
        "--kernel",
        action="append",
        metavar="NAME",
        help=f"run on this kernel, one of {', '.join(KERNELS)}; may be repeated (default: {DEFAULT_KERNEL})",
    )


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Declare the markers; in a worker, take what the controller gave."""
    for marker, meaning in _MARKERS.items():
        config.addinivalue_line("markers", f"{marker}{meaning}")
    given: dict[str, Any] | None = getattr(config, "workerinput", None)
    if given is not None:
        _end_with(given["controller"])
        config.stash[SUBJECTS] = pickle.loads(given["subjects"])


def subjects_of(config: pytest.Config) -> Subjects:
    """The session's kernels. Raises pytest.UsageError when pytest's option names one that does not exist."""
    if SUBJECTS not in config.stash:
        names = config.getoption("kernel") or [DEFAULT_KERNEL]
        if unknown := [name for name in names if name not in KERNELS]:
            raise pytest.UsageError(f"there is no kernel {unknown[0]!r}: choose one of {', '.join(KERNELS)}")
        config.stash[SUBJECTS] = Subjects(dict.fromkeys(names))
    return config.stash[SUBJECTS]


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Hand the kernels to a worker, so that all workers test the same artifacts whatever is edited meanwhile."""
    node.workerinput["controller"] = os.getpid()
    node.workerinput["subjects"] = pickle.dumps(subjects_of(node.config))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config) -> object | None:
    """Keep a worker on its kernel, unless another distribution was asked for."""
    # Not earlier: pytest wants to be the first to import xdist.
    from pyharness.report.schedule import KernelScheduling

    return KernelScheduling(config, subjects_of(config).named_in) if config.getoption("dist") == "load" else None


@pytest.hookimpl(tryfirst=True)
def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Once per kernel, and the kernel comes first in the test's id."""
    if FIXTURE in metafunc.fixturenames:
        names = subjects_of(metafunc.config).names
        metafunc.parametrize(FIXTURE, names, ids=names, indirect=True, scope="session")
    elif mark := next((mark for name in _MARKERS for mark in metafunc.definition.iter_markers(name)), None):
        # Not where items are modified: an error there is, in xdist's workers, an internal one.
        what = f"{metafunc.definition.nodeid} uses no kernel, so it cannot be marked with {mark.name}"
        raise pytest.Collector.CollectError(what)


def kernel_of(item: pytest.Item) -> str:
    """The kernel that a test runs on, or nothing."""
    callspec = getattr(item, "callspec", None)
    return str(callspec.params.get(FIXTURE, "")) if callspec else ""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect what another kernel of the session runs; skip, with the reason, what none of them can run."""
    subjects = subjects_of(config)
    dropped = []
    for item in items:
        needs = [option for mark in item.iter_markers("kernel_has") for option in mark.args]
        only = item.get_closest_marker("default_kernel_only")
        if not needs and not only:
            continue
        name = kernel_of(item)
        fitting = [kernel for kernel in subjects.names if not _lacks(subjects, kernel, needs, only)]
        if name in fitting:
            continue
        if fitting:
            dropped.append(item)
        else:
            item.add_marker(pytest.mark.skip(reason=_lacks(subjects, name, needs, only)))
    if dropped:
        config.hook.pytest_deselected(items=dropped)
        items[:] = [item for item in items if item not in dropped]


def _lacks(subjects: Subjects, name: str, needs: list[str], only: pytest.Mark | None) -> str:
    """Why the kernel is not the one for a test, or nothing."""
    missing = [option for option in needs if not subjects[name].prepared.kernel.has(option)]
    if missing:
        hint = f"; `--kernel {DEBUG_KERNEL}` has it" if name != DEBUG_KERNEL else ""
        return f"{name} has no {', '.join(f'CONFIG_{option}' for option in missing)}{hint}"
    if only and name != DEFAULT_KERNEL:
        return f"{only.args[0]}; `--kernel {DEFAULT_KERNEL}` runs it"
    return ""


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Put what reports need to know onto the report, as values that xdist can carry."""
    report = yield
    if report.failed and call.excinfo:
        fault, complete = fault_of(item, call.excinfo.value)
        consoles = list(consoles_of(machines_of(item)))
        vars(report).update(fault=asdict(fault), explained=complete, consoles=[log for log, _ in consoles])
        # JUnit's system-out takes the sections that are called so.
        report.sections += [(f"Captured stdout of the guest's console, {log}", tail) for log, tail in consoles]
        _explain(report)
    return report


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """What a worker sent is text: make it what pytest's summary and JUnit find the message in."""
    if isinstance(report.longrepr, str):
        _explain(report)


def _explain(report: pytest.TestReport) -> None:
    if getattr(report, "explained", False):
        report.longrepr = Explanation(Fault(**report.fault))  # type: ignore[assignment]


def _end_with(controller: int) -> None:
    """In a worker: end, through the fixtures, when the controller ends in any way, and let nothing disturb that."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _end)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != controller:
        raise KeyboardInterrupt


def _end(_number: int, _frame: FrameType | None) -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt
