# SPDX-License-Identifier: GPL-2.0-only
"""Devices, modules and callers that go away at any moment."""

from __future__ import annotations

import errno

import pytest
from elftools.elf.elffile import ELFFile

from pyharness.vsp.server import VspServer
from pyharness.vsp.wire import Status
from tests.driver.lab import FIRST, NULL, SECOND, Lab, release


def reload(lab: Lab) -> None:
    lab.load()
    for server in (lab.first, lab.second):
        server.wait_channel()


def assert_in_use(lab: Lab) -> None:
    with pytest.raises(OSError) as caught:
        lab.unload()
    assert caught.value.errno == errno.EWOULDBLOCK, "what rmmod reports as in use"


# -- killed callers


def test_killed_caller_ends_at_once_and_its_pages_stay_pinned(lab: Lab, node: str, vsp: VspServer) -> None:
    vsp.behaviour = lambda request: True
    before = lab.work.pinned_pages()
    waiter = lab.work.start("waiter", node, 30, 100 * 4096)
    (held,) = vsp.wait_in_flight(1)
    assert lab.work.pinned_pages() == before + 102
    waiter.kill()
    assert waiter.wait() == 9
    assert lab.work.pinned_pages() == before + 102
    assert [row[1] for row in lab.pending()] == ["orphaned"]
    held.data.write(b"\xee" * len(held.data))
    lab.work.use_memory(64 << 20)
    assert held.data.read() == b"\xee" * len(held.data), "nobody else got the pages meanwhile"
    assert held.complete()
    lab.work.wait_until_unpinned(str(FIRST))
    assert lab.work.pinned_pages() == before
    assert lab.pending() == []


def test_many_killed_callers_and_late_completions(lab: Lab, node: str, vsp: VspServer) -> None:
    before = lab.work.pinned_pages()
    vsp.behaviour = lambda request: True
    waiters = [lab.work.start("waiter", node, 40 + index, 10_000) for index in range(12)]
    held = vsp.wait_in_flight(12)
    for waiter in waiters[::2]:
        waiter.kill()
        waiter.wait()
    assert sorted(row[1] for row in lab.pending()) == ["orphaned"] * 6 + ["sent"] * 6
    vsp.behaviour = None
    for request in reversed(held):
        vsp.backend.handle(request)
    assert [waiter.failure() for waiter in waiters[1::2]] == [""] * 6
    lab.work.wait_until_unpinned(str(FIRST))
    assert lab.work.pinned_pages() == before
    lab.work.exchange_on(node, 60, 5000, 5000)


# -- unbind


def test_unbind_and_bind(lab: Lab) -> None:
    node = lab.node()
    fd = lab.work.hold_open(node)
    try:
        lab.work.unbind(str(FIRST))
        assert str(FIRST) not in dict(lab.work.nodes())
        assert not lab.guest.module("os").path.exists(node)
        lab.first.wait_channel(is_open=False)
        assert lab.work.attempt(fd) == errno.ENODEV
        lab.work.bind(str(FIRST))
        lab.work.wait_for_nodes(3)
        assert lab.work.attempt(fd) == errno.ENODEV, "a dead file stays dead"
        assert lab.work.attempt_on(lab.node()) == 0
    finally:
        lab.guest.module("os").close(fd)


def test_unbind_with_a_request_in_flight(lab: Lab, node: str, vsp: VspServer) -> None:
    before = lab.work.pinned_pages()
    vsp.behaviour = lambda request: True
    waiter = lab.work.start("waiter_errno", node)
    (held,) = vsp.wait_in_flight(1)
    lab.work.unbind(str(FIRST))
    assert waiter.value() == errno.ENODEV
    assert lab.work.pinned_pages() == before
    vsp.wait_channel(is_open=False)
    assert not held.complete(), "the channel it came on is closed"
    vsp.behaviour = None
    lab.work.bind(str(FIRST))
    lab.work.wait_for_nodes(3)
    vsp.wait_channel()
    assert lab.work.attempt_on(lab.node()) == 0


def test_unbind_waits_for_an_answer_that_comes(lab: Lab, node: str, vsp: VspServer) -> None:
    """The host answers while the device drains: the caller gets its answer, not ENODEV."""
    vsp.behaviour = lambda request: True
    waiter = lab.work.start("waiter_errno", node)
    (held,) = vsp.wait_in_flight(1)
    unbinding = lab.work.start("unbind", str(FIRST))
    lab.work.wait_for_nodes(2)
    vsp.backend.handle(held)
    assert waiter.value() == 0
    assert unbinding.failure() == ""
    vsp.behaviour = None
    lab.work.bind(str(FIRST))
    lab.work.wait_for_nodes(3)


def test_unbind_with_an_orphaned_request(lab: Lab, node: str, vsp: VspServer) -> None:
    before = lab.work.pinned_pages()
    vsp.behaviour = lambda request: True
    waiter = lab.work.start("waiter", node, 70)
    vsp.wait_in_flight(1)
    waiter.kill()
    waiter.wait()
    lab.work.unbind(str(FIRST))
    assert lab.work.pinned_pages() == before
    vsp.behaviour = None
    lab.work.bind(str(FIRST))
    lab.work.wait_for_nodes(3)


def test_unbind_and_bind_under_load(lab: Lab, node: str) -> None:
    """Callers see success or ENODEV and nothing else, and the node comes back each time."""
    before = lab.work.pinned_pages()
    load = lab.work.start("tolerant_openers", str(FIRST), 8, 40)
    for _ in range(5):
        lab.work.unbind(str(FIRST))
        lab.work.bind(str(FIRST))
        lab.work.wait_for_nodes(3)
    served, gone = load.value()
    assert served > 0
    assert served + gone == 8 * 40
    assert lab.work.pinned_pages() == before


def test_lowest_free_name_is_taken(lab: Lab) -> None:
    nodes = dict(lab.work.nodes())
    lab.work.unbind(str(FIRST))
    lab.work.unbind(str(SECOND))
    lab.work.bind(str(SECOND))
    lab.work.bind(str(FIRST))
    lab.work.wait_for_nodes(3)
    again = dict(lab.work.nodes())
    assert sorted(again.values()) == sorted(nodes.values())
    assert again[str(NULL)] == nodes[str(NULL)]
    assert again[str(SECOND)] == min(nodes[str(FIRST)], nodes[str(SECOND)])
    lab.work.exchange_on(again[str(FIRST)], 1, 100, 100)
    lab.work.exchange_on(again[str(SECOND)], 1, 100, 100)


# -- load and unload


def test_nothing_is_said_when_all_is_well(lab: Lab) -> None:
    """The driver has no word for success; VMBus tells of each driver that comes and goes."""
    lab.unload()
    mark = len(lab.guest.dmesg())
    reload(lab)
    for instance in (FIRST, SECOND):
        lab.work.exchange_on(lab.node(instance), 1, 10_000, 10_000)
    lab.work.unbind(str(FIRST))
    lab.work.bind(str(FIRST))
    lab.work.wait_for_nodes(3)
    lab.unload()
    said = [message.text for message in lab.guest.dmesg(mark)]
    reload(lab)
    assert said == [
        "hv_vmbus: registering driver hv_azure_blob",
        "hv_vmbus: unregistering driver hv_azure_blob",
    ]


def test_alias_names_the_device(lab: Lab) -> None:
    """The driver is loaded for the device on sight: udev asks for the module whose alias is the device's modalias."""
    with lab.modules.driver.path.open("rb") as stream:
        section = ELFFile(stream).get_section_by_name(".modinfo")
        assert section
        fields = section.data().split(b"\0")
    aliases = [field.removeprefix(b"alias=").decode() for field in fields if field.startswith(b"alias=")]
    for instance in (FIRST, SECOND, NULL):
        assert aliases == [lab.work.modalias(str(instance))]


def test_unload_while_a_file_is_open(lab: Lab, node: str) -> None:
    fd = lab.work.hold_open(node)
    try:
        assert_in_use(lab)
        assert lab.work.attempt(fd) == 0
    finally:
        lab.guest.module("os").close(fd)


def test_unload_while_a_request_is_held(lab: Lab, node: str, vsp: VspServer) -> None:
    vsp.behaviour = lambda request: True
    waiter = lab.work.start("waiter", node, 80)
    vsp.wait_in_flight(1)
    assert_in_use(lab)
    release(vsp)
    assert waiter.failure() == ""


def test_unload_and_load(lab: Lab) -> None:
    before = lab.work.pinned_pages()
    for turn in range(5):
        lab.unload()
        assert dict(lab.work.nodes()) == {}
        assert not lab.guest.module("os").path.exists("/sys/kernel/debug/hv_azure_blob")
        lab.first.wait_channel(is_open=False)
        reload(lab)
        for instance in (FIRST, SECOND):
            lab.work.exchange_on(lab.node(instance), turn, 10_000, 10_000)
    assert lab.work.pinned_pages() == before


def test_unload_with_an_orphaned_request(lab: Lab, node: str, vsp: VspServer) -> None:
    """Its caller is dead, so nothing keeps the module; the pages come back with the channel's end."""
    before = lab.work.pinned_pages()
    vsp.behaviour = lambda request: True
    waiter = lab.work.start("waiter", node, 81)
    vsp.wait_in_flight(1)
    waiter.kill()
    waiter.wait()
    lab.unload()
    assert lab.work.pinned_pages() == before
    vsp.behaviour = None
    reload(lab)
    assert lab.work.attempt_on(lab.node()) == 0


def test_load_while_no_backend_is_attached(lab: Lab, vsp: VspServer) -> None:
    lab.unload()
    vsp.disconnect()
    try:
        lab.load()
        assert lab.work.answer_of(lab.node())[:2] == (0, Status.CONNECTION_DISCONNECTED)
    finally:
        vsp.reconnect()
    assert vsp.channel_open
    assert lab.work.attempt_on(lab.node()) == 0
