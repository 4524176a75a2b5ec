# SPDX-License-Identifier: GPL-2.0-only
"""What a request costs QEMU's main loop, counted."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.driver.lab import Lab

REQUESTS = 100


def writes(thread: int) -> int:
    """How often a thread has called write; what it sends by sockets is not counted."""
    counters = Path(f"/proc/{thread}/task/{thread}/io")
    if not counters.exists():
        pytest.skip("the host's kernel does not count system calls: it needs CONFIG_TASK_IO_ACCOUNTING")
    counted = re.search(r"^syscw: (\d+)", counters.read_text(), re.MULTILINE)
    assert counted
    return int(counted[1])


@pytest.mark.default_kernel_only("it is QEMU that is looked at")
def test_answers_do_not_have_the_main_loop_wake_itself(lab: Lab, node: str) -> None:
    """An eventfd of glib's, written whenever a chardev has read, is another turn of the loop each time."""
    main_thread = lab.machine.console.pid
    before = writes(main_thread)
    for _ in range(REQUESTS):
        assert lab.work.attempt_on(node) == 0
    assert writes(main_thread) - before < REQUESTS
