# SPDX-License-Identifier: GPL-2.0-only
"""One session over several kernels: what runs where, with workers and without."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

import pytest

from pyharness.errors import Exit
from tests.unit.inner import Inner

JOBS = pytest.mark.parametrize("jobs", [1, 2])

TESTS = """
import pytest

def test_alone():
    pass

def test_each(prepared):
    assert prepared.kernel.name

@pytest.mark.parametrize("size", [1, 2])
def test_sizes(prepared, size):
    pass
"""


@JOBS
def test_what_needs_a_kernel_runs_once_on_each_and_the_rest_once(tmp_path: Path, jobs: int) -> None:
    inner = Inner(tmp_path, jobs=jobs).write("test_a.py", TESTS)
    assert inner.run() == Exit.OK, inner.output
    expected = {"test_a.py::test_alone"}
    for kernel in ("debian-6.12", "other"):
        expected |= {
            f"test_a.py::test_{name}" for name in (f"each[{kernel}]", f"sizes[{kernel}-1]", f"sizes[{kernel}-2]")
        }
    assert inner.outcomes == dict.fromkeys(expected, "passed")
    kernels = {nodeid: result["kernel"] for nodeid, result in inner.results.items()}
    assert kernels["inner/test_a.py::test_alone"] == ""
    assert kernels["inner/test_a.py::test_sizes[other-2]"] == "other"


MARKED = """
import pytest

@pytest.mark.kernel_has("EXTRA")
def test_extra(prepared):
    assert prepared.kernel.name == "other"

@pytest.mark.kernel_has("EXTRA", "NOWHERE")
def test_nowhere(prepared):
    raise AssertionError

@pytest.mark.default_kernel_only("about the harness")
def test_default(prepared):
    assert prepared.kernel.name == "debian-6.12"
"""


@JOBS
def test_a_test_that_one_kernel_runs_is_not_there_on_the_others(tmp_path: Path, jobs: int) -> None:
    inner = Inner(tmp_path, jobs=jobs).write("test_a.py", MARKED)
    assert inner.run() == Exit.OK, inner.output
    assert inner.outcomes == {
        "test_a.py::test_extra[other]": "passed",
        "test_a.py::test_nowhere[debian-6.12]": "skipped",
        "test_a.py::test_nowhere[other]": "skipped",
        "test_a.py::test_default[debian-6.12]": "passed",
    }
    reasons = {nodeid: result["reason"] for nodeid, result in inner.results.items()}
    assert reasons["inner/test_a.py::test_nowhere[debian-6.12]"] == (
        "debian-6.12 has no CONFIG_EXTRA, CONFIG_NOWHERE; `--kernel debug-6.12` has it"
    )
    assert reasons["inner/test_a.py::test_nowhere[other]"].startswith("other has no CONFIG_NOWHERE;")


def test_a_test_that_no_kernel_of_the_session_can_run_is_skipped_with_the_reason(tmp_path: Path) -> None:
    inner = Inner(tmp_path, {"lone": ()}).write("test_a.py", MARKED)
    assert inner.run() == Exit.HARNESS, "nothing was tested"
    assert set(inner.outcomes.values()) == {"skipped"}
    assert inner.results["inner/test_a.py::test_default[lone]"]["reason"] == (
        "about the harness; `--kernel debian-6.12` runs it"
    )
    assert "3 skipped" in inner.output and "no test ran: all were skipped" in inner.output


def test_a_kernel_behind_the_dashes_is_refused(tmp_path: Path) -> None:
    """It would be taken for pytest's own option, and do nothing."""
    inner = Inner(tmp_path, arguments=("--kernel", "other")).write("test_a.py", MARKED)
    assert inner.run() == Exit.USAGE
    assert "--kernel belongs before the --" in inner.output


@JOBS
def test_a_test_without_a_kernel_cannot_ask_for_one(tmp_path: Path, jobs: int) -> None:
    marked = "import pytest\n@pytest.mark.kernel_has('X')\ndef test_it():\n    pass\n"
    inner = Inner(tmp_path, jobs=jobs).write("test_a.py", marked)
    assert inner.run() == Exit.HARNESS
    assert "test_it uses no kernel, so it cannot be marked with kernel_has" in inner.output
    assert "INTERNALERROR" not in inner.output


COSTLY = """
import os, pathlib, pytest

HERE = pathlib.Path({here!r})

@pytest.fixture(scope="session")
def guest(prepared):
    (HERE / f"guest-{{prepared.kernel.name}}-{{os.getpid()}}").touch()
    return prepared.modules.driver.hash

@pytest.mark.parametrize("number", range(5))
def test_it(guest, number, kernel_choice):
    assert guest == f"driver-for-{{kernel_choice}}"
"""


@JOBS
def test_each_kernels_guest_is_made_once_and_side_by_side_with_workers(tmp_path: Path, jobs: int) -> None:
    inner = Inner(tmp_path, jobs=jobs)
    inner.write("test_a.py", COSTLY.format(here=str(tmp_path))).write("test_b.py", "def test_x(prepared):\n    pass\n")
    assert inner.run() == Exit.OK, inner.output
    made = sorted(path.name.rsplit("-", 1) for path in tmp_path.glob("guest-*"))
    assert [name for name, _ in made] == ["guest-debian-6.12", "guest-other"]
    assert len({worker for _, worker in made}) == jobs


DEADLY = """
import os, pytest, signal

@pytest.mark.parametrize("number", range(6))
def test_it(number, prepared):
    if number == 2 and prepared.kernel.name == "other":
        os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_worker_that_dies_costs_one_result_and_is_no_pass(tmp_path: Path) -> None:
    inner = Inner(tmp_path, jobs=2).write("test_a.py", DEADLY)
    assert inner.run() == Exit.HARNESS, inner.output
    outcomes = inner.outcomes
    assert outcomes.pop("test_a.py::test_it[other-2]") == "failed"
    assert len(outcomes) == 11 and set(outcomes.values()) == {"passed"}
    fault = inner.results["inner/test_a.py::test_it[other-2]"]["fault"]
    assert fault["exit_code"] == Exit.HARNESS and "the worker died that ran" in fault["message"]


def test_a_worker_that_dies_after_its_last_test_is_no_pass(tmp_path: Path) -> None:
    dying = """
import os, pytest
@pytest.fixture(scope="session", autouse=True)
def last():
    yield
    os._exit(0)
def test_it():
    pass
"""
    inner = Inner(tmp_path, jobs=2).write("test_a.py", dying).write("test_b.py", "def test_it():\n    pass\n")
    assert inner.run() == Exit.HARNESS, inner.output


RESTING = """
import os, pathlib, pytest, time

HERE = pathlib.Path({here!r})

@pytest.fixture(scope="session")
def guest(prepared):
    name = prepared.kernel.name
    yield name
    time.sleep(0.3)
    (HERE / f"torn-down-{{name}}").touch()

def test_quick(guest):
    pass

def test_it(guest):
    (HERE / f"ready-{{guest}}").touch()
    time.sleep(600)
"""


@pytest.mark.parametrize(
    ("number", "whole_group", "jobs"),
    [
        (signal.SIGINT, True, 1),
        (signal.SIGINT, True, 2),
        (signal.SIGINT, False, 2),
        (signal.SIGTERM, False, 1),
        (signal.SIGTERM, False, 2),
        (signal.SIGTERM, True, 2),
        (signal.SIGHUP, True, 1),
        (signal.SIGHUP, True, 2),
    ],
)
def test_a_signal_ends_all_through_the_fixtures(
    tmp_path: Path, number: signal.Signals, whole_group: bool, jobs: int
) -> None:
    """A terminal sends Ctrl-C to the whole group, `kill` to the one process."""
    inner = Inner(tmp_path, jobs=jobs).write("test_a.py", RESTING.format(here=str(tmp_path)))
    running = inner.start()
    inner.wait_for("ready-*", jobs)
    (os.killpg if whole_group else os.kill)(running.process.pid, number)
    assert running.finish() == 128 + number, inner.output
    running.wait_until_gone()
    assert len(list(tmp_path.glob("torn-down-*"))) == jobs
    assert "Traceback" not in inner.output
    assert re.search(r"^=+ 1?.* in [0-9.]+s.* =+$", inner.output, re.MULTILINE), "pytest's own summary"


def test_workers_of_a_killed_controller_end_through_their_fixtures(tmp_path: Path) -> None:
    inner = Inner(tmp_path, jobs=2).write("test_a.py", RESTING.format(here=str(tmp_path)))
    running = inner.start()
    inner.wait_for("ready-*", 2)
    running.process.kill()
    running.finish()
    running.wait_until_gone()
    assert len(list(tmp_path.glob("torn-down-*"))) == 2
