# SPDX-License-Identifier: GPL-2.0-only
import fcntl
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyharness.errors import HarnessError
from pyharness.machine import rundir
from pyharness.machine.rundir import LogDir, RunDir

# Longest path of a UNIX socket, without its NUL (unix(7)).
SUN_PATH_MAX = 107


@pytest.fixture
def base(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Short, unlike pytest's own directories, or it would not be taken."""
    with tempfile.TemporaryDirectory(prefix="run-") as base:
        monkeypatch.setenv("XDG_RUNTIME_DIR", base)
        yield Path(base)


def test_it_is_private_and_goes_without_a_trace(base: Path) -> None:
    run_dir = RunDir()
    assert run_dir.path.parent == base
    assert run_dir.path.stat().st_mode & 0o777 == 0o700
    (run_dir.path / "file").write_text("x")
    run_dir.remove()
    assert list(base.iterdir()) == []


def test_socket_paths_fit_whatever_the_runtime_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deep = tmp_path / ("d" * 100)
    deep.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(deep))
    run_dir = RunDir()
    try:
        assert len(os.fsencode(run_dir.vsp_socket(9999))) <= SUN_PATH_MAX
        assert run_dir.path.is_dir()
    finally:
        run_dir.remove()


def test_what_a_killed_process_left_is_swept_and_the_living_are_spared(base: Path) -> None:
    mine = RunDir()
    code = "import time; from pyharness.machine.rundir import RunDir; r = RunDir(); print(r.path, flush=True)"
    code += "; time.sleep(99)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout
        left = Path(other.stdout.readline().strip())
        assert left.is_dir() and mine.path.is_dir()
        other.send_signal(signal.SIGKILL)
    fresh = RunDir()
    assert not left.exists()
    assert mine.path.is_dir() and fresh.path.is_dir()
    mine.remove()
    fresh.remove()


def test_a_sweep_between_making_and_locking_costs_nobody_a_directory(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another start sweeps in the one moment when the fresh directory is there and not locked yet."""
    flock = fcntl.flock
    swept: list[Path] = []

    def sweep_first(lock: int, how: int) -> None:
        if how == fcntl.LOCK_EX and not swept:
            swept.extend(base.iterdir())
            rundir._sweep(base)
        flock(lock, how)

    monkeypatch.setattr(fcntl, "flock", sweep_first)
    run_dir = RunDir()
    assert len(swept) == 1 and not swept[0].exists(), "the sweep came at another moment"
    rundir._sweep(base)
    assert list(base.iterdir()) == [run_dir.path] and run_dir.path != swept[0]
    run_dir.remove()


def test_without_a_writable_place_the_error_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_args: object, **_kwargs: object) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tempfile.mkdtemp", refuse)
    with pytest.raises(HarnessError, match="No space left on device"):
        RunDir()


def test_only_the_newest_logs_stay(tmp_path: Path) -> None:
    for number in range(40):
        (tmp_path / f"20200101-0000{number:02}-x").mkdir()
    fresh = LogDir(tmp_path)
    kept = sorted(path.name for path in tmp_path.iterdir())
    assert len(kept) == 32 and fresh.path.name == kept[-1] and "20200101-000000-x" not in kept
    fresh.release()
    fresh.release()


def test_logs_that_are_being_written_stay(tmp_path: Path) -> None:
    """A machine that lives for a whole session is the oldest soon."""
    alive = LogDir(tmp_path)
    others = [LogDir(tmp_path) for _ in range(40)]
    assert alive.path.exists()
    for one in (alive, *others):
        one.release()
    LogDir(tmp_path).release()
    assert len(list(tmp_path.iterdir())) == 32
