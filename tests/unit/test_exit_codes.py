# SPDX-License-Identifier: GPL-2.0-only
"""The exit code of a test run tells a failed test from a crashed guest and from a harness at fault."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pyharness import repository
from pyharness.errors import Exit

CRASH = "from pyharness.errors import GuestCrashed\ndef test_it():\n    raise GuestCrashed('splat')\n"
EXPECTED_CRASH = (
    "import pytest\nfrom pyharness.errors import GuestCrashed\n"
    "def test_it():\n    with pytest.raises(GuestCrashed):\n        raise GuestCrashed('splat')\n"
)


@pytest.mark.parametrize(
    ("test", "plugin", "code"),
    [
        ("def test_it():\n    pass\n", "", Exit.OK),
        ("def test_it():\n    assert 1 == 2\n", "", Exit.FAILED),
        (CRASH, "", Exit.GUEST_CRASH),
        (EXPECTED_CRASH, "", Exit.OK),
        ("", "", Exit.HARNESS),
        ("def test_it():\n    pass\n", "def pytest_runtest_protocol():\n    raise RuntimeError\n", Exit.HARNESS),
    ],
    ids=["pass", "failure", "crash", "expected crash", "no test", "fault of pytest"],
)
def test_exit_code(tmp_path: Path, test: str, plugin: str, code: Exit) -> None:
    (tmp_path / "test_one.py").write_text(test)
    (tmp_path / "conftest.py").write_text(plugin)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-c", "/dev/null", f"--rootdir={tmp_path}", "-p", "tests.conftest", "."],
        cwd=tmp_path,
        env={"PYTHONPATH": str(repository.ROOT), "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code, done.stdout + done.stderr
