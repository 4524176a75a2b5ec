# SPDX-License-Identifier: GPL-2.0-only
"""Every byte arrives where it belongs, and no other byte changes."""

from __future__ import annotations

import errno
import mmap
import os

import pytest

from pyharness.vsp.frames import MAX_IN_FLIGHT
from pyharness.vsp.server import VspServer
from tests.driver.lab import FIRST, Lab, outcome
from tests.driver.memory import live
from tests.driver.pattern import ORDER_SIZE
from tests.driver.workload import PAGE

MIB = 1 << 20


@pytest.mark.parametrize("length", [0, 1, 2, 7, 8, 9, 511, PAGE - 1, PAGE, PAGE + 1, 2 * PAGE, 65_537, MIB, 4 * MIB])
def test_both_directions(lab: Lab, node: str, length: int) -> None:
    lab.work.exchange_on(node, 100 + length, length, length)


@pytest.mark.parametrize(("out_len", "in_len", "data_len"), [(100, 0, 100), (0, 100, 100), (5, 9, 20), (9, 5, PAGE)])
def test_directions_of_different_lengths(lab: Lab, node: str, out_len: int, in_len: int, data_len: int) -> None:
    lab.work.exchange_on(node, 7, out_len, in_len, data_len=data_len)


OFFSETS = [(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 2, 3), (PAGE - 1, PAGE - 1, PAGE - 1), (2048, PAGE - 8, 17)]


@pytest.mark.parametrize("offsets", OFFSETS)
@pytest.mark.parametrize("length", [1, 2, PAGE - 1, PAGE, 3 * PAGE + 1, 100_003])
def test_unaligned_buffers(lab: Lab, node: str, offsets: tuple[int, int, int], length: int) -> None:
    lab.work.exchange_on(node, length, length, length, offsets=offsets, request_len=ORDER_SIZE + 3, response_len=33)


@pytest.mark.parametrize("length", [ORDER_SIZE, 1000, PAGE + 1, 50_001])
def test_long_requests_and_responses(lab: Lab, node: str, length: int) -> None:
    lab.work.exchange_on(node, length, 10, 20, request_len=length, response_len=length, offsets=(5, 6, 7))


@pytest.mark.parametrize("length", [100, 50_001])
def test_32_bit_program(lab: Lab, node: str, length: int) -> None:
    """Fails with ENOTTY for a driver without .compat_ioctl: the kernel never calls .unlocked_ioctl for such a call."""
    lab.work.exchange_of_32_bit(node, length, length)


def test_page_limit_and_one_page_over(lab: Lab, node: str) -> None:
    before = lab.first.counters
    assert lab.work.largest_exchange(node, 0) == 0
    after = lab.first.counters
    assert after.bytes - before.bytes == 8192 * PAGE
    assert lab.work.largest_exchange(node, 1) == errno.EINVAL
    assert lab.first.counters.requests == after.requests


def rounds_on(lab: Lab) -> int:
    """Requests of each client: a checker learns nothing from the later ones, each of which costs ten times as much."""
    return 5 if lab.machine.config.kernel.judges else 20


def test_one_hundred_threads(lab: Lab, node: str) -> None:
    served, rounds = lab.first.counters.requests, rounds_on(lab)
    outcome(lab.work.start("clients_in_threads", node, 100, rounds))
    assert lab.first.counters.requests == served + 100 * rounds
    assert lab.pending() == []


def test_one_hundred_processes(lab: Lab, node: str) -> None:
    served, rounds = lab.first.counters.requests, rounds_on(lab)
    assert outcome(lab.work.start("clients_in_processes", node, 100, rounds)) == ""
    assert lab.first.counters.requests == served + 100 * rounds
    assert lab.pending() == []


def test_more_callers_than_the_host_takes(lab: Lab, node: str, vsp: VspServer) -> None:
    """The host holds 1024 requests; who comes later waits in line and is served in its turn."""
    vsp.behaviour = lambda request: True
    callers = lab.work.start("crowd", node, MAX_IN_FLIGHT + 30)
    held = vsp.wait_in_flight(MAX_IN_FLIGHT)
    lab.work.wait_for_pending(str(FIRST), MAX_IN_FLIGHT + 30)
    states = [row[1] for row in lab.pending()]
    assert (states.count("sent"), states.count("queued")) == (MAX_IN_FLIGHT, 30)
    assert len(vsp.in_flight) == MAX_IN_FLIGHT
    if lab.machine.config.kernel.vmlinux:
        requests = live(lab)[str(FIRST)].requests
        assert [request.state for request in requests] == states
        assert {request.caller and request.caller.pid for request in requests} == {callers.pid}
    vsp.behaviour = None
    for request in held:
        vsp.backend.handle(request)
    assert list(outcome(callers)) == [0] * (MAX_IN_FLIGHT + 30)


def test_packets_that_do_not_fit_into_the_ring_together(lab: Lab, node: str, vsp: VspServer) -> None:
    served = vsp.counters.completions
    outcome(lab.work.start("long_packets", node, 8, 15))
    assert vsp.counters.completions == served + 8 * 15


def test_child_inherits_the_file(lab: Lab, node: str) -> None:
    assert lab.work.shared_file(node, 20) == ""


def test_no_page_stays_pinned(lab: Lab, node: str) -> None:
    before = lab.work.pinned_pages()
    lab.work.exchange_on(node, 3, 100_000, 100_000)
    assert lab.work.pinned_pages() == before


# -- memory that is a file: the host must not change what the caller may not change

READ, WRITE = mmap.PROT_READ, mmap.PROT_WRITE
FILE = "/tmp/target"


@pytest.fixture
def file(lab: Lab) -> str:
    lab.guest.push(bytes(range(256)) * (2 * PAGE // 256), FILE)
    return FILE


@pytest.mark.parametrize("flags", [mmap.MAP_PRIVATE, mmap.MAP_SHARED], ids=["private", "shared"])
@pytest.mark.parametrize("open_flags", [os.O_RDONLY, os.O_RDWR], ids=["rdonly", "rdwr"])
def test_read_only_mapping_of_a_file(lab: Lab, node: str, file: str, flags: int, open_flags: int) -> None:
    served = lab.first.counters.requests
    assert tuple(lab.work.receive_into_file(node, file, READ, flags, open_flags)) == (errno.EFAULT, False, False)
    assert lab.first.counters.requests == served


@pytest.mark.parametrize("open_flags", [os.O_RDONLY, os.O_RDWR], ids=["rdonly", "rdwr"])
def test_private_writable_mapping_gets_copies(lab: Lab, node: str, file: str, open_flags: int) -> None:
    result = lab.work.receive_into_file(node, file, READ | WRITE, mmap.MAP_PRIVATE, open_flags)
    assert tuple(result) == (0, True, False)


def test_shared_writable_mapping_is_the_file(lab: Lab, node: str, file: str) -> None:
    result = lab.work.receive_into_file(node, file, READ | WRITE, mmap.MAP_SHARED, os.O_RDWR)
    assert tuple(result) == (0, True, True)


PROGRAM = "/usr/bin/busybox"


@pytest.mark.parametrize(("protection", "outcome"), [(READ, (errno.EFAULT, False)), (READ | WRITE, (0, True))])
def test_page_cache_of_a_read_only_file_system(lab: Lab, node: str, protection: int, outcome: tuple[int, bool]) -> None:
    """The fault of 2021: pages of programs could be written through the host."""
    result = lab.work.receive_into_file(node, PROGRAM, protection, mmap.MAP_PRIVATE, os.O_RDONLY)
    assert tuple(result) == (*outcome, False)


def test_request_in_a_read_only_file(lab: Lab, node: str) -> None:
    assert lab.work.request_from_read_only_file(node, "/tmp/request") == 0
