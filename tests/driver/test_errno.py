# SPDX-License-Identifier: GPL-2.0-only
"""The errno contract of uapi/hv_azure_blob.h, row by row and in the order of the checks."""

from __future__ import annotations

import errno

import pytest

from pyharness.client.abi import AZURE_BLOB_IOCTL, MAX_PAGES
from pyharness.vsp.server import VspServer
from tests.driver.lab import FIRST, Lab, release
from tests.driver.workload import PAGE

TCGETS = 0x5401
BLKGETSIZE64 = 0x80081272


def errno_name(number: int) -> str:
    return errno.errorcode.get(number, str(number)) if number else "0"


def assert_nothing_sent(lab: Lab, before: int) -> None:
    """A good request after the refused one is the only one that reached the host."""
    assert lab.work.attempt_on(lab.node()) == 0
    assert lab.first.counters.requests == before + 1


def test_good_request(lab: Lab, node: str) -> None:
    assert lab.work.attempt_on(node) == 0


# -- ENOTTY


@pytest.mark.parametrize(
    "command",
    [TCGETS, BLKGETSIZE64, 0, AZURE_BLOB_IOCTL + 1, AZURE_BLOB_IOCTL - 0x10000, AZURE_BLOB_IOCTL ^ (1 << 30)],
    ids=hex,
)
def test_enotty(lab: Lab, node: str, command: int) -> None:
    before = lab.first.counters.requests
    assert errno_name(lab.work.attempt_on(node, command=command)) == "ENOTTY"
    assert_nothing_sent(lab, before)


def test_enotty_in_a_32_bit_program(lab: Lab, node: str) -> None:
    before = lab.first.counters.requests
    assert errno_name(lab.work.attempt_of_32_bit(node, AZURE_BLOB_IOCTL + 1)) == "ENOTTY"
    assert errno_name(lab.work.attempt_of_32_bit(node, BLKGETSIZE64)) == "ENOTTY"
    assert_nothing_sent(lab, before)


# -- EACCES


@pytest.mark.parametrize("change", ["user", "saved user", "group", "groups", "capability", "user namespace"])
def test_eacces_after_a_change_of_credentials(lab: Lab, node: str, change: str) -> None:
    inherited, own = lab.work.after_change(node, change)
    assert errno_name(inherited) == "EACCES"
    assert errno_name(own) == "0", "a file opened with the new credentials works"


def test_forked_child_that_changed_nothing_may_use_the_file(lab: Lab, node: str) -> None:
    assert tuple(lab.work.after_change(node, "nothing")) == (0, 0)


# -- EINVAL


@pytest.mark.parametrize(
    "fields",
    [
        {"pad": 1},
        {"pad": 0x80000000},
        {"request_len": 0},
        {"response_len": 0},
        {"data_valid": PAGE + 1},
        {"data_len": 0, "data_valid": 1},
        {"data_valid": 0xFFFFFFFF},
        {"data_len": (MAX_PAGES - 1) * PAGE},
        {"data_len": 0xFFFFFFFF},
        {"request_len": 0xFFFFFFFF},
        {"response_len": 0xFFFFFFFF},
        {"data_len": 0xFFFFFFFF, "request_len": 0xFFFFFFFF, "response_len": 0xFFFFFFFF},
    ],
    ids=str,
)
def test_einval(lab: Lab, node: str, fields: dict[str, int]) -> None:
    before = lab.first.counters.requests
    assert errno_name(lab.work.attempt_on(node, **fields)) == "EINVAL"
    assert_nothing_sent(lab, before)


def test_data_buffer_is_not_looked_at_without_data(lab: Lab, node: str) -> None:
    for address in (1, 0xFFFF888000000000, 2**64 - 1):
        assert lab.work.attempt_on(node, data_pages=0, data_buffer=address) == 0


# -- EFAULT


@pytest.mark.parametrize("kind", ["null", "kernel", "end", "no access", "read-only", "across"])
def test_efault_of_the_struct(lab: Lab, node: str, kind: str) -> None:
    before = lab.first.counters.requests
    assert errno_name(lab.work.attempt_with_struct_at(node, kind)) == "EFAULT"
    assert_nothing_sent(lab, before)


BAD_MEMORY = ["null", "kernel", "end", "wraps", "last user page", "no access", "second page missing"]


@pytest.mark.parametrize(
    ("which", "kind"),
    [(which, kind) for which in ("request", "response", "data") for kind in BAD_MEMORY]
    + [(which, kind) for which in ("response", "data") for kind in ("read-only", "second page read-only")],
)
def test_efault_of_a_buffer(lab: Lab, node: str, which: str, kind: str) -> None:
    before, pinned = lab.first.counters.requests, lab.work.pinned_pages()
    assert errno_name(lab.work.attempt_with_buffer_at(node, which, kind)) == "EFAULT"
    assert lab.work.pinned_pages() == pinned, "what was pinned before the fault is let go"
    assert_nothing_sent(lab, before)


@pytest.mark.parametrize("kind", ["read-only", "second page read-only"])
def test_request_may_be_read_only(lab: Lab, node: str, kind: str) -> None:
    assert errno_name(lab.work.attempt_with_buffer_at(node, "request", kind)) == "0"


# -- ENOMEM


def test_enomem_at_the_exact_limit(lab: Lab, node: str) -> None:
    """A request is charged for its pages and two more; one page of request and one of response are always there."""
    for data_pages in (0, 1, 50):
        charge = data_pages + 2 + 2
        assert list(lab.work.locked_memory(node, charge, data_pages, 1)) == [0]
        assert list(lab.work.locked_memory(node, charge - 1, data_pages, 1)) == [errno.ENOMEM]


def test_charge_is_given_back(lab: Lab, node: str) -> None:
    assert list(lab.work.locked_memory(node, 24, 20, 30)) == [0] * 30
    assert list(lab.work.locked_memory(node, 23, 20, 30)) == [errno.ENOMEM] * 30


def test_charge_outlives_a_killed_caller(lab: Lab, node: str, vsp: VspServer) -> None:
    """The limit is the user's: what the host still holds counts against the next process of that user."""
    vsp.behaviour = lambda request: True
    work = lab.work
    waiter = work.limited_waiter(node, 8)
    vsp.wait_in_flight(1)
    waiter.kill()
    waiter.wait()
    vsp.behaviour = None
    assert list(work.locked_memory(node, 8, 1, 1)) == [errno.ENOMEM]
    assert list(work.locked_memory(node, 10, 1, 1)) == [0]
    release(vsp)
    work.wait_until_unpinned(str(FIRST))
    assert list(work.locked_memory(node, 8, 1, 1)) == [0]


# -- ENODEV: see test_lifetime.py

# -- EINTR


def test_eintr_is_what_a_killed_caller_gets(lab: Lab, node: str, vsp: VspServer) -> None:
    vsp.behaviour = lambda request: True
    trace = lab.work.IoctlTrace()
    waiter = lab.work.start("waiter", node, 9)
    vsp.wait_in_flight(1)
    waiter.kill()
    assert waiter.wait() == 9, "killed by signal 9"
    assert list(trace.results(waiter.pid)) == [-errno.EINTR]
    trace.stop()


def test_a_handled_signal_does_not_end_the_wait(lab: Lab, node: str, vsp: VspServer) -> None:
    voided = vsp.counters.voided
    vsp.behaviour = lambda request: True
    waiter = lab.work.start("waiter_with_signals", node)
    vsp.wait_in_flight(1)
    for _ in range(3):
        waiter.kill(10)
    assert waiter.alive()
    release(vsp)
    assert waiter.value() >= 1
    assert vsp.counters.voided == voided


# -- EIO: see test_host.py
