# SPDX-License-Identifier: GPL-2.0-only
"""`pyharness fuzz` as users run it: Ctrl-C, and an end of its own."""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path

import pytest

from pyharness.fuzz.corpus import read_corpus
from pyharness.report.subjects import Subject
from tests.marked import PATIENCE_S, Marked

pytestmark = pytest.mark.kernel_has("KCOV", "KASAN")

COUNTED = {"ioctl": " ioctls in ", "host": " packets of the host in "}


def fuzz(subject: Subject, output: Path, *words: str) -> Marked:
    return Marked([sys.executable, "-m", "pyharness", "fuzz", *words, *subject.arguments, "--seed", "1"], output)


@pytest.mark.parametrize("fuzzer", COUNTED)
def test_ctrl_c_sums_up_and_leaves_nothing_running(fuzzer: str, subject: Subject, tmp_path: Path) -> None:
    corpus = ("--corpus", str(tmp_path / "corpus")) if fuzzer == "ioctl" else ()
    command = fuzz(subject, tmp_path / "output", fuzzer, *corpus)
    deadline = time.monotonic() + PATIENCE_S
    while COUNTED[fuzzer] not in command.output:
        assert command.process.poll() is None, command.output
        assert time.monotonic() < deadline, command.output
        time.sleep(0.1)
    command.process.send_signal(signal.SIGINT)
    assert command.finish() == 130
    assert f"(tcg, {subject.name})" in command.output or f"(kvm, {subject.name})" in command.output
    assert "nothing is left running" in command.output
    command.wait_until_gone()


def test_session_that_ends_by_itself(subject: Subject, tmp_path: Path) -> None:
    """It begins without a corpus and leaves one, which `--minimise` takes."""
    corpus = tmp_path / "corpus"
    command = fuzz(subject, tmp_path / "output", "ioctl", "--executions", "1000", "--corpus", str(corpus))
    assert command.finish() == 0, command.output
    assert "PASS" in command.output
    programs = read_corpus(corpus)
    assert len(programs) > 5
    command = fuzz(subject, tmp_path / "again", "ioctl", "--minimise", "--corpus", str(corpus))
    assert command.finish() == 0, command.output
    assert set(read_corpus(corpus)) <= set(programs)
