# SPDX-License-Identifier: GPL-2.0-only
"""The exit code of a test run tells a failed test from a crashed guest and from a harness at fault."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pyharness import repository
from pyharness.errors import Exit


def raising(error: str) -> str:
    return f"from pyharness.errors import {error}\ndef test_it():\n    raise {error}('why')\n"


EXPECTED_CRASH = (
    "import pytest\nfrom pyharness.errors import GuestCrashed\n"
    "def test_it():\n    with pytest.raises(GuestCrashed):\n        raise GuestCrashed('splat')\n"
)
RUN = "import sys; from pyharness.report.session import Session; sys.exit(Session(sys.argv[1:]).run())"


def command(directory: Path) -> list[str]:
    return [sys.executable, "-c", RUN, "-q", "-c", "/dev/null", f"--rootdir={directory}", str(directory)]


@pytest.mark.parametrize(
    ("test", "plugin", "code"),
    [
        ("def test_it():\n    pass\n", "", Exit.OK),
        ("def test_it():\n    assert 1 == 2\n", "", Exit.FAILED),
        (raising("GuestCrashed"), "", Exit.GUEST_CRASH),
        (raising("TimedOut"), "", Exit.TIMEOUT),
        (raising("HarnessError"), "", Exit.HARNESS),
        (raising("CheckFailed"), "", Exit.FAILED),
        (raising("TimedOut") + raising("GuestCrashed").replace("test_it", "test_more"), "", Exit.GUEST_CRASH),
        (EXPECTED_CRASH, "", Exit.OK),
        ("", "", Exit.HARNESS),
        ("def test_it():\n    pass\n", "def pytest_runtest_protocol():\n    raise RuntimeError\n", Exit.HARNESS),
    ],
    ids=[
        *("pass", "failure", "crash", "timeout", "harness", "check", "timeout and crash"),
        *("expected crash", "no test", "fault of pytest"),
    ],
)
def test_exit_code(tmp_path: Path, test: str, plugin: str, code: Exit) -> None:
    (tmp_path / "test_one.py").write_text(test)
    (tmp_path / "conftest.py").write_text(plugin)
    done = subprocess.run(
        command(tmp_path),
        cwd=repository.ROOT,
        env={"PATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code, done.stdout + done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_the_run_through_its_fixtures(tmp_path: Path, number: signal.Signals) -> None:
    (tmp_path / "test_one.py").write_text(
        "import pathlib, pytest, time\n"
        f"HERE = pathlib.Path({str(tmp_path)!r})\n"
        "@pytest.fixture(scope='session')\n"
        "def machine():\n    yield\n    time.sleep(0.5)\n    (HERE / 'torn down').touch()\n"
        "def test_it(machine):\n    (HERE / 'ready').touch()\n    time.sleep(600)\n"
    )
    running = subprocess.Popen(command(tmp_path), cwd=repository.ROOT, stdout=subprocess.PIPE, text=True)
    while not (tmp_path / "ready").exists():
        assert running.poll() is None, running.communicate()[0]
        time.sleep(0.02)
    running.send_signal(number)
    assert running.wait() == 128 + number, running.communicate()[0]
    assert (tmp_path / "torn down").exists()
    running.communicate()
