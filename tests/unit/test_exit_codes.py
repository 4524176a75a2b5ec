# SPDX-License-Identifier: GPL-2.0-only
"""The exit code of a test run tells a failed test from a crashed guest and from a harness at fault."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pyharness import repository
from pyharness.errors import Exit


def raising(error: str, name: str = "test_it") -> str:
    return f"from pyharness.errors import {error}\ndef {name}():\n    raise {error}('why')\n"


EXPECTED_CRASH = (
    "import pytest\nfrom pyharness.errors import GuestCrashed\n"
    "def test_it():\n    with pytest.raises(GuestCrashed):\n        raise GuestCrashed('splat')\n"
)
RUN = "import sys; from pyharness.report.session import Session; sys.exit(Session(sys.argv[1:]).run())"


SEVERAL_AT_ONCE = (
    "import pytest\nfrom pyharness.errors import GuestCrashed\n"
    "def fail():\n    raise GuestCrashed('splat')\n"
    "def wrong():\n    assert 1 == 2\n"
    "@pytest.fixture\ndef broken(request):\n    request.addfinalizer(fail)\n    request.addfinalizer(wrong)\n"
    "def test_it(broken):\n    pass\n"
)
"""Several fixtures fail at the end of one test."""

CONSEQUENCE = (
    "from pyharness.errors import GuestCrashed\n"
    "def test_it():\n    try:\n        raise GuestCrashed('splat')\n    finally:\n        assert 1 == 2\n"
)
"""The first error is what another one happened under."""


def command(directory: Path, *arguments: str) -> list[str]:
    return [sys.executable, "-c", RUN, "-q", "-c", "/dev/null", f"--rootdir={directory}", *arguments, str(directory)]


PASS = "def test_it():\n    pass\n"
BROKEN_PLUGIN = "def pytest_runtest_protocol():\n    raise RuntimeError\n"

CASES = {
    "pass": (PASS, "", Exit.OK),
    "failure": ("def test_it():\n    assert 1 == 2\n", "", Exit.FAILED),
    "crash": (raising("GuestCrashed"), "", Exit.GUEST_CRASH),
    "timeout": (raising("TimedOut"), "", Exit.TIMEOUT),
    "the suite's timeout": (
        "import pytest, time\n@pytest.mark.timeout(0.2)\ndef test_it():\n    time.sleep(60)\n",
        "",
        Exit.TIMEOUT,
    ),
    "harness": (raising("HarnessError"), "", Exit.HARNESS),
    "check": (raising("CheckFailed"), "", Exit.FAILED),
    "timeout and crash": (raising("TimedOut") + raising("GuestCrashed", "test_more"), "", Exit.GUEST_CRASH),
    "expected crash": (EXPECTED_CRASH, "", Exit.OK),
    "several at once": (SEVERAL_AT_ONCE, "", Exit.GUEST_CRASH),
    "consequence": (CONSEQUENCE, "", Exit.GUEST_CRASH),
    "not importable": ("import nothing_that_is_there\n", "", Exit.HARNESS),
    "no test": ("", "", Exit.HARNESS),
    "all skipped": ("import pytest\n@pytest.mark.skip\ndef test_it():\n    pass\n", "", Exit.HARNESS),
    "fault of pytest": (PASS, BROKEN_PLUGIN, Exit.HARNESS),
}
DIFFERENT_WITH_WORKERS = (
    "timeout and crash",
    "consequence",
    "not importable",
    "no test",
    "all skipped",
    "fault of pytest",
)
"""Where the way of the cause to the exit code is another one."""


@pytest.mark.parametrize(
    ("case", "workers"), [*((case, "0") for case in CASES), *((case, "2") for case in DIFFERENT_WITH_WORKERS)]
)
def test_exit_code(tmp_path: Path, case: str, workers: str) -> None:
    test, plugin, code = CASES[case]
    (tmp_path / "test_one.py").write_text(test)
    (tmp_path / "conftest.py").write_text(plugin)
    done = subprocess.run(
        command(tmp_path, "-n", workers),
        cwd=repository.ROOT,
        env={"PATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code, done.stdout + done.stderr


@pytest.mark.parametrize("workers", ["0", "2"])
def test_the_cause_counts_when_the_first_failure_ends_the_run(tmp_path: Path, workers: str) -> None:
    """pytest calls that an interrupt when it has workers."""
    (tmp_path / "test_one.py").write_text(raising("TimedOut") + "def test_more():\n    pass\n")
    done = subprocess.run(command(tmp_path, "-x", "-n", workers), cwd=repository.ROOT, capture_output=True, check=False)
    assert done.returncode == Exit.TIMEOUT
