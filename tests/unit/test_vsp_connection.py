# SPDX-License-Identifier: GPL-2.0-only
"""The reading thread of a connection sleeps until there is something to read."""

from __future__ import annotations

import re
import socket
import threading
import time
from pathlib import Path

from pyharness.vsp.connection import Connection

ANSWERS = 100


def slept(thread: int) -> tuple[str, int]:
    """State of a thread of this process, and how often it has gone to sleep."""
    status = Path(f"/proc/self/task/{thread}/status").read_text()
    state = re.search(r"^State:\s+(\w)", status, re.MULTILINE)
    switches = re.search(r"^voluntary_ctxt_switches:\s+(\d+)", status, re.MULTILINE)
    assert state and switches
    return state[1], int(switches[1])


def at_rest(thread: int) -> tuple[str, int]:
    """Wait until it sleeps in the kernel, and is not on its way there."""
    deadline = time.monotonic() + 20
    while True:
        before = slept(thread)
        time.sleep(0.05)
        if before[0] == "S" and slept(thread) == before:
            return before
        assert time.monotonic() < deadline, "the thread does not come to rest"


def test_answers_that_are_read_do_not_wake_the_reading_thread() -> None:
    ours, device = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    connection = Connection(ours)
    reader = threading.Thread(target=connection.receive_hello)
    reader.start()
    assert reader.native_id is not None
    try:
        before = at_rest(reader.native_id)
        for _ in range(ANSWERS):
            connection.send(b"answer")
            assert device.recv(64) == b"answer"
        assert slept(reader.native_id) == before
    finally:
        device.close()
        reader.join(20)
        connection.close()
