# SPDX-License-Identifier: GPL-2.0-only
"""Running tools: no process outlives its runner, and every way to fail names its cause."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pyharness import repository
from pyharness.artifacts.run import CommandFailed, run
from pyharness.errors import HarnessError
from pyharness.series.git import Repository


def wait_until_gone(pid: int) -> None:
    """Wait until the process has ended; a zombie that nobody reaps has ended too. The suite's time-out is the bound."""
    stat = Path(f"/proc/{pid}/stat")
    while True:
        try:
            if stat.read_text().rpartition(")")[2].split()[0] == "Z":
                return
        except (FileNotFoundError, ProcessLookupError):
            return
        time.sleep(0.01)


def test_output_log_and_lines(tmp_path: Path) -> None:
    heard: list[str] = []
    log = tmp_path / "log"
    argv = ["sh", "-c", "echo one; echo two >&2; echo $GREETING"]
    assert run(argv, log=log, on_line=heard.append, env={"GREETING": "three"}) == ["one", "two", "three"]
    assert heard == ["one", "two", "three"]
    assert log.read_text() == "one\ntwo\nthree\n"


def test_a_git_and_a_make_around_us_are_not_heard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hook's git names its own repository and index, which are not the tools' to write to."""
    run(["git", "init", "-q", tmp_path / "theirs"])
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "theirs/.git"))
    monkeypatch.setenv("MAKEFLAGS", "n")
    Repository.of(tmp_path / "ours", {"one": "1\n"}, "A U Thor", "author@example.org", date=0)
    assert (tmp_path / "ours/.git").is_dir()
    assert not list((tmp_path / "theirs/.git/refs/heads").iterdir())
    assert run(["sh", "-c", "echo $GIT_DIR $MAKEFLAGS", "sh"], env={"MAKEFLAGS": "k"}) == ["k"]


def test_failure_holds_the_last_lines() -> None:
    with pytest.raises(CommandFailed, match="sh failed with status 3") as caught:
        run(["sh", "-c", "seq 1000; exit 3"])
    assert caught.value.status == 3
    assert caught.value.output[-1] == "1000"
    assert len(caught.value.output) < 100


def test_status_127_of_a_tool_is_not_a_missing_tool() -> None:
    with pytest.raises(CommandFailed, match="status 127"):
        run(["sh", "-c", "exit 127"])


def test_missing_tool_names_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("pyharness.artifacts.run", fromlist=["x"]).PACKAGE_OF, "no-such-tool", "its-package")
    with pytest.raises(HarnessError, match="no-such-tool is not installed") as caught:
        run(["no-such-tool"])
    assert "its-package" in caught.value.mend


def test_full_disk_is_an_oserror() -> None:
    with pytest.raises(OSError, match="No space left") as caught:
        run(["sh", "-c", "echo x | cat >/dev/full"])
    assert caught.value.errno == errno.ENOSPC


def test_ctrl_c_kills_the_whole_group() -> None:
    pids: list[int] = []

    def interrupt(line: str) -> None:
        pids.extend(int(word) for word in line.split())
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(["sh", "-c", "sleep 1000 & child=$!; echo $$ $child; wait"], on_line=interrupt)
    assert len(pids) == 2
    for pid in pids:
        wait_until_gone(pid)


def test_a_tool_that_ignores_sigterm_is_killed() -> None:
    pids: list[int] = []

    def interrupt(line: str) -> None:
        pids.append(int(line))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(["sh", "-c", "trap '' TERM; echo $$; while :; do sleep 1; done"], on_line=interrupt)
    wait_until_gone(pids[0])


def killed_runner(program: str) -> int:
    """The process id that a tool says first, after its runner has been killed."""
    runner = subprocess.Popen(
        [sys.executable, "-u", "-c", program],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(repository.ROOT)},
    )
    assert runner.stdout is not None
    pid = int(runner.stdout.readline())
    runner.kill()
    runner.wait()
    return pid


def test_a_killed_runner_takes_its_tool_along() -> None:
    program = "from pyharness.artifacts.run import run; run(['sh', '-c', 'echo $$; exec sleep 1000'], on_line=print)"
    wait_until_gone(killed_runner(program))


def test_a_killed_runner_takes_along_what_make_has_started(tmp_path: Path) -> None:
    """A make that is killed itself leaves the makes below it at work."""
    (tmp_path / "Makefile").write_text("all:\n\t@$(MAKE) -s below\nbelow:\n\t@echo $$$$; exec sleep 1000\n")
    command = ["make", "-s", "--no-print-directory", "-C", str(tmp_path)]
    wait_until_gone(killed_runner(f"from pyharness.artifacts.run import run; run({command}, on_line=print)"))


def test_a_tool_that_outlives_its_runner_keeps_the_lock(tmp_path: Path) -> None:
    fifo, path = tmp_path / "fifo", tmp_path / "lock"
    os.mkfifo(fifo)
    program = (
        "import fcntl\nfrom pyharness.artifacts.run import held_by_tools, run\n"
        f"lock = open({str(path)!r}, 'w')\nfcntl.flock(lock, fcntl.LOCK_EX)\n"
        "with held_by_tools(lock.fileno()):\n"
        f"    run(['sh', '-c', 'trap \"\" TERM; echo $$; read line <{fifo}'], on_line=print)\n"
    )
    pid = killed_runner(program)
    with path.open() as lock:
        with pytest.raises(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fifo.write_text("go on\n")
        wait_until_gone(pid)
        fcntl.flock(lock, fcntl.LOCK_EX)
