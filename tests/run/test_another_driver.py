# SPDX-License-Identifier: GPL-2.0-only
"""docs/another-driver, as its users have it: in a repository of their own, with pytest alone."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pyharness import repository
from pyharness.artifacts.prepare import Prepared

pytestmark = pytest.mark.default_kernel_only("the example names the default kernel")

EXAMPLE = repository.ROOT / "docs" / "another-driver"
TIMEOUT_S = 600.0


def run_example(directory: Path) -> str:
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q", str(directory)]
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    return done.stdout + done.stderr


@pytest.fixture
def theirs(prepared: Prepared, tmp_path: Path) -> Path:
    """A copy; `prepared` has already made what it needs."""
    return Path(shutil.copytree(EXAMPLE, tmp_path / "theirs", ignore=shutil.ignore_patterns("__pycache__", "build")))


def test_example_passes(theirs: Path) -> None:
    assert re.search(r"^2 passed", run_example(theirs), re.M)


def test_example_fails_when_its_driver_is_wrong(theirs: Path) -> None:
    """The judge is theirs too: a driver that works but makes the kernel complain does not pass."""
    source = theirs / "hv_listener.c"
    text = source.read_text()
    assert text.count("\tvmbus_close(hdev->channel);\n") == 1
    source.write_text(text.replace("\tvmbus_close(", "\tWARN_ON(1);\n\tvmbus_close("))
    output = run_example(theirs)
    assert "GuestCrashed" in output and "hv_listener_remove" in output
    assert re.search(r"^2 passed, 2 errors", output, re.M)
