# SPDX-License-Identifier: GPL-2.0-only
"""A person at a terminal uses a shell in the guest."""

from __future__ import annotations

import pickle
import sys
import termios
from pathlib import Path

import pexpect
import pytest

from pyharness.errors import UsageError
from pyharness.machine.config import MachineConfig
from pyharness.machine.vm import Machine
from pyharness.repository import ROOT

pytestmark = pytest.mark.default_kernel_only("a terminal is the same with every kernel")

PATIENCE_S = 120

PERSON = """
import pickle, sys
from pathlib import Path
from pyharness.machine.vm import Machine
with Machine(pickle.loads(Path(sys.argv[1]).read_bytes())) as machine:
    machine.interact()
    print("back on the host, guest alive:", machine.guest.module("os").getpid() > 0)
"""


def test_a_shell_on_the_guests_console(config: MachineConfig, tmp_path: Path) -> None:
    (tmp_path / "config").write_bytes(pickle.dumps(config))
    argv = ["-c", PERSON, str(tmp_path / "config")]
    person = pexpect.spawn(sys.executable, argv, cwd=ROOT, dimensions=(33, 111), timeout=PATIENCE_S, encoding="utf-8")
    try:
        person.expect(r"# ")
        assert not termios.tcgetattr(person.child_fd)[3] & termios.ECHO
        person.sendline("uname -r; stty size; echo $((6 * 7))")
        person.expect_exact(config.kernel.release)
        person.expect_exact("33 111")
        person.expect_exact("42")
        person.sendline("sleep 1000")
        person.sendcontrol("c")
        person.sendline("echo back=$?")
        person.expect_exact("back=130")
        person.sendline("exit")
        person.expect_exact("back on the host, guest alive: True")
        person.expect(pexpect.EOF)
        person.close()
        assert person.exitstatus == 0
    finally:
        person.close(force=True)


def test_a_crash_under_the_shell_names_its_cause(config: MachineConfig, tmp_path: Path) -> None:
    (tmp_path / "config").write_bytes(pickle.dumps(config))
    argv = ["-c", PERSON, str(tmp_path / "config")]
    person = pexpect.spawn(sys.executable, argv, cwd=ROOT, timeout=PATIENCE_S, encoding="utf-8")
    try:
        person.expect(r"# ")
        person.sendline("echo c >/proc/sysrq-trigger")
        person.expect(r"GuestCrashed: .*sysrq triggered crash")
        person.expect(pexpect.EOF)
    finally:
        person.close(force=True)


def test_without_a_terminal_it_is_refused(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    with Path("/dev/null").open() as nothing:
        monkeypatch.setattr(sys, "stdin", nothing)
        with pytest.raises(UsageError, match="needs a terminal"):
            machine.interact()
