# SPDX-License-Identifier: GPL-2.0-only
"""A device whose channel cannot be opened again after a hibernation is dead until it is bound anew."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from pyharness.guest.host import Guest
from tests.driver.lab import FIRST, NULL, SECOND, Lab

pytestmark = pytest.mark.kernel_has("FAIL_PAGE_ALLOC", "FAULT_INJECTION_DEBUG_FS", "HIBERNATION")

FAULT = "/sys/kernel/debug/fail_page_alloc"
# Both rings of 128 KiB are one block of 2^6 pages. Nothing else that a hibernation allocates is that big.
RING_ORDER = 6


@contextmanager
def no_rings(guest: Guest) -> Iterator[None]:
    """Every allocation of the rings' size fails."""
    settings = {
        "min-order": RING_ORDER,
        "ignore-gfp-wait": "N",
        "verbose": 0,
        "times": -1,
        "probability": 100,
    }
    for name, value in settings.items():
        write(guest, name, value)
    try:
        yield
    finally:
        write(guest, "probability", 0)


def write(guest: Guest, name: str, value: object) -> None:
    guest.module("pathlib").Path(f"{FAULT}/{name}").write_text(str(value))


def test_failed_resume(lab: Lab) -> None:
    lab.tolerated = ("hv_azure_blob", "failed to resume", "PM: ")
    nodes = dict(lab.work.nodes())
    fd = lab.work.hold_open(lab.node())
    try:
        with no_rings(lab.guest):
            lab.work.hibernate()
        for node in nodes.values():
            assert lab.work.attempt_on(node) == errno.ENODEV
        lab.work.hibernate()
        assert lab.work.attempt(fd) == errno.ENODEV, "a second resume, with memory, does not bring it back"
        for instance in (FIRST, SECOND, NULL):
            lab.work.unbind(str(instance))
        assert dict(lab.work.nodes()) == {}
        for instance in (FIRST, SECOND, NULL):
            lab.work.bind(str(instance))
        lab.work.wait_for_nodes(3)
        assert lab.work.attempt(fd) == errno.ENODEV, "a dead file stays dead"
    finally:
        lab.guest.module("os").close(fd)
    for server in (lab.first, lab.second):
        server.wait_channel()
    for instance in (FIRST, SECOND):
        assert lab.work.attempt_on(lab.node(instance)) == 0
    assert lab.work.answer_of(lab.node(NULL))[:2] == (0, 0)
