# SPDX-License-Identifier: GPL-2.0-only
"""The console with a shell script in QEMU's place: a process on a terminal is all that it knows of QEMU."""

from __future__ import annotations

import signal
import threading
import time
from pathlib import Path

import pytest

from pyharness.errors import HarnessError
from pyharness.machine.console import Console
from pyharness.machine.crash import Kind

END_S = 30


def started(tmp_path: Path, script: str) -> Console:
    console = Console(["/bin/sh", "-c", script], tmp_path, lambda console: None)
    console.start()
    return console


def test_output_goes_to_the_log_and_to_the_tail(tmp_path: Path) -> None:
    console = started(tmp_path, r"printf 'one\n\033[1mtwo\033[0m\nthree'; echo oh dear >&2; exit 3")
    assert console.wait_end(END_S)
    assert console.tail() == "one\ntwo\nthree"
    assert console.log.read_bytes().replace(b"\r", b"") == b"one\n\x1b[1mtwo\x1b[0m\nthree"
    assert console.qemu_said() == "oh dear"
    assert (console.exit_status, console.splat, console.fault) == (3, None, None)


def test_the_log_is_current_while_it_grows(tmp_path: Path) -> None:
    console = started(tmp_path, "echo first; exec sleep 600")
    deadline = time.monotonic() + END_S
    while b"first" not in console.log.read_bytes() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert b"first" in console.log.read_bytes()
    console.kill()
    assert console.wait_end(END_S)
    assert console.exit_status == -signal.SIGKILL


def test_a_panic_ends_the_process_once_its_splat_is_complete(tmp_path: Path) -> None:
    script = """
    echo '[    1.000000] Kernel panic - not syncing: test'
    echo '[    1.000001] Call Trace:'
    echo '[    1.000002] ---[ end Kernel panic - not syncing: test ]---'
    exec sleep 600
    """
    console = started(tmp_path, script)
    assert console.wait_end(END_S)
    assert console.splat is not None
    assert console.splat.text.count("\n") == 2


def test_a_splat_that_never_ends_is_not_waited_for(tmp_path: Path) -> None:
    begun = time.monotonic()
    console = started(tmp_path, "echo '[    1.000000] BUG: scheduling while atomic: a/1/0x2'; exec sleep 600")
    assert console.wait_end(END_S)
    assert console.splat is not None and console.splat.kind is Kind.ATOMIC_SLEEP
    assert time.monotonic() - begun < 15


def test_a_line_that_comes_in_pieces_is_one_line(tmp_path: Path) -> None:
    console = started(
        tmp_path, "printf '[    1.000000] Kernel pa'; sleep 0.3; printf 'nic - not syncing: x'; sleep 0.3; echo"
    )
    assert console.wait_end(END_S)
    assert console.splat is not None and console.splat.headline == "Kernel panic - not syncing: x"


def test_a_full_disk_is_named(tmp_path: Path) -> None:
    (tmp_path / "console.log").symlink_to("/dev/full")
    console = started(tmp_path, "echo text; exec sleep 600")
    assert console.wait_end(END_S)
    assert console.fault is not None and "No space left" in str(console.fault)


def test_the_end_is_told_once_and_on_the_reading_thread(tmp_path: Path) -> None:
    told: list[str] = []
    console = Console(["/bin/true"], tmp_path, lambda console: told.append(threading.current_thread().name))
    console.start()
    assert console.wait_end(END_S)
    console.kill()
    assert told == ["console"]


def test_a_kill_before_the_start_holds(tmp_path: Path) -> None:
    console = Console(["/bin/sleep", "600"], tmp_path, lambda console: None)
    console.kill()
    assert console.wait_end(END_S)
    console.start()
    assert console.wait_end(END_S)


def test_the_terminal_is_the_controlling_one(tmp_path: Path) -> None:
    """Its hang-up must reach QEMU should the harness die before the death signal is armed."""
    console = started(tmp_path, "echo tty >/dev/tty; cut -d' ' -f1,6 /proc/$$/stat")
    assert console.wait_end(END_S)
    tty, ids = console.tail().splitlines()
    assert tty == "tty"
    pid, session = ids.split()
    assert pid == session


def test_a_missing_program_is_an_error_of_one_line(tmp_path: Path) -> None:
    console = Console([str(tmp_path / "qemu")], tmp_path, lambda console: None)
    with pytest.raises(HarnessError, match="there is no QEMU at"):
        console.start()
    assert console.wait_end(0)


def test_a_log_directory_that_is_gone_is_an_error(tmp_path: Path) -> None:
    console = Console(["/bin/true"], tmp_path / "gone", lambda console: None)
    with pytest.raises(HarnessError, match="cannot be started"):
        console.start()
    assert console.wait_end(END_S)
