# SPDX-License-Identifier: GPL-2.0-only
"""How a survey reads; what it finds is shown on real guests."""

from __future__ import annotations

import uuid
from dataclasses import replace

from pyharness.debug.survey import Device, OpenFile, Process, Request, render

CALLER = Process(59, "python3")
REQUEST = Request(uuid.UUID(int=7), "sent", 12, 5000, 40, 64, 4096, 3, CALLER)
ORPHAN = replace(REQUEST, state="orphaned", caller=None)
DEVICE = Device(1, "azure_blob", uuid.UUID(int=9), "open", "opened", 2, 2, (OpenFile(CALLER, 8),), (REQUEST, ORPHAN))


def test_a_device_with_its_files_and_requests() -> None:
    assert render((DEVICE,)).splitlines() == [
        "/dev/azure_blob  00000000-0000-0000-0000-000000000009  open, channel opened, 2 in flight, 2 references",
        "  1 open files",
        "    python3[59] fd 8",
        "  2 requests",
        "    00000000-0000-0000-0000-000000000007 sent, 12 ms old, timeout 5000 ms, 40 bytes of request, "
        "64 of response, 4096 of data, 3 pages pinned, python3[59]",
        "    00000000-0000-0000-0000-000000000007 orphaned, 12 ms old, timeout 5000 ms, 40 bytes of request, "
        "64 of response, 4096 of data, 3 pages pinned, nobody waits",
    ]


def test_a_dead_device_and_no_device() -> None:
    dead = replace(DEVICE, instance=None, state="dead", channel="none", requests=())
    assert "no VMBus device  dead, channel none" in render((dead,))
    assert render(()) == "hv_azure_blob has no device"
