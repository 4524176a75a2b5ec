# SPDX-License-Identifier: GPL-2.0-only
"""QEMU lives exactly as long as its machine, and nothing is left behind."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from pyharness.errors import HarnessError
from pyharness.machine.config import MachineConfig
from pyharness.machine.vm import Machine, State
from pyharness.repository import ROOT

pytestmark = pytest.mark.default_kernel_only("how long QEMU lives does not depend on its guest's kernel")

GONE_S = 20.0
STAGES = ("qemu", "restoring", "booting", "ready")

# Says when it has come to a stage, with QEMU's pid, and stays there.
HARNESS = """
import pickle, sys, threading, time
from pyharness.machine.vm import Machine, State
machine = Machine(pickle.load(sys.stdin.buffer))

def stages():
    while machine._console is None or machine._console._process is None:
        time.sleep(0.001)
    print("qemu", machine._console.pid, flush=True)
    while machine.state is State.STARTING:
        time.sleep(0.001)
    print(machine.state.value, machine._console.pid, flush=True)

threading.Thread(target=stages, daemon=True).start()
with machine:
    print("ready", machine.console.pid, flush=True)
    time.sleep(600)
"""


@pytest.fixture
def runtime_dir(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The sockets' directory, of this test alone."""
    base = Path("/tmp") / f"pyh-test-{os.getpid()}"
    base.mkdir(mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(base))
    yield base
    for left in base.iterdir():
        for file in left.iterdir():
            file.unlink()
        left.rmdir()
    base.rmdir()


def wait_gone(pid: int) -> bool:
    """Whether the process ends in its time; a zombie counts as ended."""
    deadline = time.monotonic() + GONE_S
    while time.monotonic() < deadline:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return True
        if state == "Z":
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM], ids=lambda how: how.name)
def test_qemu_dies_with_the_harness(
    config: MachineConfig, runtime_dir: Path, tmp_path: Path, how: signal.Signals, stage: str
) -> None:
    argv = [sys.executable, "-c", HARNESS]
    with subprocess.Popen(
        argv, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as harness:
        assert harness.stdin and harness.stdout and harness.stderr
        harness.stdin.write(pickle.dumps(replace(config, log_root=tmp_path, cold=stage == "booting")))
        harness.stdin.close()
        pid = 0
        for line in harness.stdout:
            reached, number = line.split()
            pid = int(number)
            if reached.decode() == stage:
                break
        else:
            pytest.fail(f"the harness was never {stage}: {harness.stderr.read().decode()}")
        harness.send_signal(how)
        harness.wait(GONE_S)
        assert wait_gone(pid)
        if how is signal.SIGINT:
            assert list(runtime_dir.iterdir()) == [], "Ctrl-C leaves no run directory"


def test_boots_in_a_row_are_strangers(config: MachineConfig, runtime_dir: Path) -> None:
    seen = set()
    for _ in range(2):
        with Machine(replace(config, cold=True)) as machine:
            seen.add(machine.guest.module("pathlib").Path("/proc/sys/kernel/random/boot_id").read_text())
            assert len(list(runtime_dir.iterdir())) == 1
            pid = machine.console.pid
        assert machine.state is State.STOPPED
        assert not Path(f"/proc/{pid}").exists()
        assert list(runtime_dir.iterdir()) == []
        assert "Linux version" in machine.console.log.read_text()
    assert len(seen) == 2


def test_what_goes_wrong_at_the_end_keeps_no_qemu(config: MachineConfig, runtime_dir: Path) -> None:
    def fail(_machine: Machine) -> None:
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space left"), Machine(replace(config, before_stop=(fail,))) as machine:
        pid = machine.console.pid
    assert wait_gone(pid)
    assert list(runtime_dir.iterdir()) == []


def test_two_machines_run_at_once(config: MachineConfig) -> None:
    with Machine(config) as one, Machine(config) as two:
        one.guest.push(b"one", "/tmp/who")
        two.guest.push(b"two", "/tmp/who")
        assert (one.guest.pull("/tmp/who"), two.guest.pull("/tmp/who")) == (b"one", b"two")


def test_a_stopped_machine_says_so(config: MachineConfig) -> None:
    machine = Machine(config)
    with pytest.raises(HarnessError, match="the machine is new, not ready"):
        machine.guest  # noqa: B018
    machine.stop()
    machine.stop()
    with pytest.raises(HarnessError, match="cannot be starting"):
        machine.start()
