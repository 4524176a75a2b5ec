# SPDX-License-Identifier: GPL-2.0-only
"""`pyharness test` with workers that have guests running, ended in every way: nothing of it is left."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyharness.machine import rundir
from pyharness.report.subjects import Subject
from tests.marked import PATIENCE_S, Marked

pytestmark = pytest.mark.default_kernel_only("how a session ends does not depend on its guests' kernel")

JOBS = 2
# Files whose tests keep one guest each.
FILES = ("tests/boot/test_guest.py", "tests/boot/test_hyperv.py")


@pytest.fixture
def runtime() -> Iterator[Path]:
    """A place for run directories that nobody else uses; its path is short, for the sake of the sockets."""
    with tempfile.TemporaryDirectory(prefix="run-") as directory:
        yield Path(directory)


@pytest.mark.parametrize(
    ("number", "whole_group"),
    [(signal.SIGINT, True), (signal.SIGTERM, False), (signal.SIGHUP, True), (signal.SIGKILL, False)],
    ids=["Ctrl-C", "SIGTERM", "SIGHUP", "SIGKILL"],
)
def test_nothing_is_left(
    number: signal.Signals, whole_group: bool, subject: Subject, runtime: Path, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "pyharness", "test", *subject.arguments, "-j", str(JOBS), "--", *FILES]
    session = Marked(command, tmp_path / "output", {"XDG_RUNTIME_DIR": str(runtime)})
    deadline = time.monotonic() + PATIENCE_S
    while sum("qemu-system" in program for program in session.processes().values()) < JOBS:
        assert session.process.poll() is None and time.monotonic() < deadline, session.output
        time.sleep(0.02)
    assert list(runtime.iterdir()), "the guests have run directories"
    (os.killpg if whole_group else os.kill)(session.process.pid, number)
    assert session.finish() == (-number if number == signal.SIGKILL else 128 + number), session.output
    session.wait_until_gone()
    if number == signal.SIGKILL:
        rundir._sweep(runtime)  # as each start of a machine does
    assert list(runtime.iterdir()) == []
