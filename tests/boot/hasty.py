# SPDX-License-Identifier: GPL-2.0-only
"""The guest's half of a test: hv_vmbus is loaded and unloaded without a pause for its work queues."""

from __future__ import annotations

import os
from pathlib import Path

from pyharness.guest.kernel import insmod, rmmod

_CONNECT_CPU = 0
"""VMBUS_CONNECT_CPU: it gets the host's messages, and its workers handle them."""

_VERSION_AND_AN_OFFER = 2


def load_and_unload(module: str) -> None:
    """The host's offers arrive, because that takes only interrupts, and are handled after the guest has left."""
    everywhere = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {_CONNECT_CPU})
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    try:
        before = _host_interrupts()
        insmod(module)
        while _host_interrupts() < before + _VERSION_AND_AN_OFFER:
            pass
        rmmod("hv_vmbus")
    finally:
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
        os.sched_setaffinity(0, everywhere)


def _host_interrupts() -> int:
    lines = Path("/proc/interrupts").read_text().splitlines()
    return next(int(line.split()[1 + _CONNECT_CPU]) for line in lines if line.split()[0] == "HYP:")
