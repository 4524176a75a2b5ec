# SPDX-License-Identifier: GPL-2.0-only
"""A guest that waits for gdb, and gdb itself: what stops it, and whether it knows where."""

from __future__ import annotations

import re
import shlex
import subprocess
import threading
from pathlib import Path

import pytest

from pyharness.errors import HarnessError
from pyharness.machine.gdb import wait_for_gdb
from tests.driver.lab import Lab

GDB_S = 300
"""For gdb to read the symbols of a whole kernel on a busy machine; nothing is decided by it."""

SOURCE = r"(?:kernel|drivers/hv)/hv_azure_blob\.c"
"""In the repository, or in a kernel's tree."""


class Debugger:
    """gdb as a person would run it, but for what is typed."""

    def __init__(self, command: str, *typed: str) -> None:
        words = [*shlex.split(command), "-nx", "-batch", *(word for line in typed for word in ("-ex", line))]
        self._process = subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def said(self) -> str:
        try:
            return self._process.communicate(timeout=GDB_S)[0]
        finally:
            self._process.kill()


def attached(lab: Lab, *typed: str) -> Debugger:
    debuggers: list[Debugger] = []
    wait_for_gdb(lab.machine, lambda command: debuggers.append(Debugger(command, *typed)))
    return debuggers[0]


def test_a_breakpoint_in_the_driver_is_hit_and_shows_its_source(lab: Lab, node: str) -> None:
    gdb = attached(
        lab,
        "break az_blob_ioctl",
        "continue",
        "list",
        "print *(struct az_blob_device *)file->private_data",
        "delete",
        "detach",
    )
    assert lab.work.attempt_on(node) == 0, "the call goes on once gdb lets it"
    said = gdb.said()
    assert re.search(rf"hit Breakpoint 1, az_blob_ioctl \(file=0x\w+, .*\) at {SOURCE}:\d+", said), said
    assert re.search(r"^\d+\s+static long az_blob_ioctl\(struct file", said, re.MULTILINE), "the source's text"
    assert f'name = "{Path(node).name}"' in said, said


def test_a_breakpoint_in_vmbus_is_hit_with_the_driver_above_it(lab: Lab, node: str) -> None:
    gdb = attached(lab, "break vmbus_sendpacket_mpb_desc", "continue", "backtrace 3", "delete", "detach")
    assert lab.work.attempt_on(node) == 0
    said = gdb.said()
    assert re.search(r"^#0 +vmbus_sendpacket_mpb_desc .* at .*drivers/hv/channel\.c:\d+$", said, re.MULTILINE), said
    assert re.search(rf"^#\d +.*az_blob_\w+ .* at {SOURCE}:\d+$", said, re.MULTILINE), said


@pytest.mark.kernel_has("DEBUG_INFO")
def test_the_kernels_own_symbols(lab: Lab) -> None:
    said = attached(lab, "info line do_sys_openat2", "print init_task.comm", "detach").said()
    assert "fs/open.c" in said and '"swapper/0' in said, said


def test_the_guest_stands_still_until_gdb_has_been_there(lab: Lab) -> None:
    told = threading.Event()
    waiting = threading.Thread(target=wait_for_gdb, args=(lab.machine, lambda _: told.set()))
    waiting.start()
    assert told.wait(GDB_S)
    assert lab.machine.qmp.execute("query-status")["status"] == "paused"
    assert waiting.is_alive()
    commands = lab.machine.run_dir.gdb_commands
    assert commands.stat().st_mode & 0o077 == 0 or commands.parent.stat().st_mode & 0o077 == 0
    Debugger(f"gdb -x {commands}", "detach").said()
    waiting.join(GDB_S)
    assert not waiting.is_alive()
    assert lab.guest.module("os").getpid() > 0


def test_a_gdbstub_that_cannot_listen_is_named(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(lab.machine.run_dir), "gdb_socket", Path("/nonexistent/gdb"))
    with pytest.raises(HarnessError, match="does not listen for gdb"):
        wait_for_gdb(lab.machine, lambda _: None)
    assert lab.guest.module("os").getpid() > 0, "the guest goes on"
