# SPDX-License-Identifier: GPL-2.0-only
"""The host takes its devices away and brings them back, at any moment."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Sequence
from pathlib import Path

import pytest

from pyharness.errors import HarnessError
from pyharness.machine.vmbus import MessageType
from pyharness.trace.dialogue import Dialogue
from pyharness.trace.record import recording
from pyharness.trace.records import Header, Transcript
from tests.driver.departure import STATES, WAYS, device, wait_until_served
from tests.driver.lab import FIRST, NULL, SECOND, Lab, outcome, until

CYCLES = int(os.environ.get("PYHARNESS_RESCIND_CYCLES", "20"))
"""How often the device goes and comes under load; more tell more."""

PROBE_FAILED = "hv_vmbus: probe failed for device"
FAILED_PROBE = (PROBE_FAILED, "probe of ", "probe with driver hv_azure_blob failed", "Failed to establish GPADL")


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("way", WAYS)
def test_device_goes(lab: Lab, way: str, state: str) -> None:
    """Each call ends, once, with an errno that tells; the file is dead for ever; what comes back is a new device."""
    pinned = lab.work.pinned_pages()
    fd = lab.work.hold_open(lab.node())
    try:
        with STATES[state](lab) as callers:
            WAYS[way].go(lab)
            assert str(FIRST) not in dict(lab.work.nodes())
            assert lab.work.attempt(fd) == errno.ENODEV
            lab.work.exchange_on(lab.node(SECOND), 5, 1000, 1000)
            assert not lab.first.channel_open
            for caller in callers:
                assert caller.errno() in caller.expected
        assert lab.work.pinned_pages() == pinned
        WAYS[way].come_back(lab)
        assert lab.work.attempt(fd) == errno.ENODEV, "a dead file stays dead"
        lab.work.exchange_on(lab.node(), 1, 1000, 1000)
    finally:
        lab.guest.module("os").close(fd)
    assert lab.work.pinned_pages() == pinned


def test_answers_and_rescind_at_the_same_moment(lab: Lab) -> None:
    """Both are under way when the guest runs on: each caller gets its answer or ENODEV."""
    qmp = lab.machine.qmp
    after = len(qmp.events)
    with STATES["in flight"](lab) as callers:
        qmp.execute("stop")
        for request in lab.first.in_flight:
            lab.first.backend.handle(request)
        device(lab).rescind()
        qmp.execute("cont")
        device(lab).wait_unplugged(after)
        assert {caller.errno() for caller in callers} <= {0, errno.ENODEV}
    device(lab).plug()
    wait_until_served(lab)


def test_twice_in_a_row(lab: Lab) -> None:
    """It goes again as soon as it has come, whether its probe has begun or not, which may fail then."""
    lab.tolerated = FAILED_PROBE
    for _ in range(5):
        device(lab).unplug()
        device(lab).plug()
    wait_until_served(lab)
    lab.work.exchange_on(lab.node(), 1, 1000, 1000)


def test_asked_twice_to_go(lab: Lab) -> None:
    """QEMU says that it is on its way; the guest hears of one rescind."""
    qmp = lab.machine.qmp
    after = len(qmp.events)
    qmp.execute("stop")
    device(lab).rescind()
    with pytest.raises(HarnessError, match="already in the process of unplug"):
        device(lab).rescind()
    qmp.execute("cont")
    device(lab).wait_unplugged(after)
    device(lab).plug()
    wait_until_served(lab)


def test_two_devices_at_once(lab: Lab) -> None:
    qmp = lab.machine.qmp
    devices = [lab.machine.blob_device(index) for index in range(3)]
    fds = [lab.work.hold_open(lab.node(instance)) for instance in (FIRST, SECOND, NULL)]
    with STATES["in flight"](lab) as callers:
        after = len(qmp.events)
        qmp.execute("stop")
        for one in devices:
            one.rescind()
        qmp.execute("cont")
        for one in devices:
            one.wait_unplugged(after)
        assert [caller.errno() for caller in callers] == [errno.ENODEV] * len(callers)
    assert dict(lab.work.nodes()) == {}
    assert [lab.work.attempt(fd) for fd in fds] == [errno.ENODEV] * 3
    for fd in fds:
        lab.guest.module("os").close(fd)
    for one in devices:
        one.plug()
    wait_until_served(lab)
    lab.second.wait_channel()
    for instance in (FIRST, SECOND):
        lab.work.exchange_on(lab.node(instance), 1, 1000, 1000)


def test_reload_after_the_host_took_everything(lab: Lab) -> None:
    """Open files of devices that are gone keep the driver loaded, and nothing else."""
    devices = [lab.machine.blob_device(index) for index in range(3)]
    fd = lab.work.hold_open(lab.node())
    for one in devices:
        one.unplug()
    with pytest.raises(OSError) as caught:
        lab.unload()
    assert caught.value.errno == errno.EWOULDBLOCK, "what rmmod reports as in use"
    assert lab.work.attempt(fd) == errno.ENODEV
    lab.guest.module("os").close(fd)
    lab.unload()
    for one in devices:
        one.plug()
    lab.load()
    wait_until_served(lab)
    lab.second.wait_channel()
    lab.work.exchange_on(lab.node(), 1, 1000, 1000)


def test_a_device_that_comes_while_the_driver_is_not_loaded(lab: Lab) -> None:
    lab.unload()
    device(lab).unplug()
    device(lab).plug()
    lab.load()
    wait_until_served(lab)
    lab.second.wait_channel()
    lab.work.exchange_on(lab.node(), 1, 1000, 1000)


# -- during probe


@pytest.mark.parametrize("message", [MessageType.GPADL_HEADER, MessageType.OPENCHANNEL], ids=lambda m: m.name)
def test_refused_at_probe(lab: Lab, message: MessageType) -> None:
    """The device has no node then, and the host may take it away as any other."""
    lab.tolerated = FAILED_PROBE
    device(lab).unplug()
    mark = len(lab.guest.dmesg())
    device(lab).plug(refuse=(message,))
    until(lambda: probe_has_failed(lab, mark), "the probe's failure")
    assert str(FIRST) not in dict(lab.work.nodes())
    device(lab).refuse()
    lab.work.bind(str(FIRST))
    wait_until_served(lab)
    lab.work.exchange_on(lab.node(), 1, 1000, 1000)


@pytest.mark.parametrize("message", [MessageType.GPADL_HEADER, MessageType.OPENCHANNEL], ids=lambda m: m.name)
def test_rescind_of_a_probe_that_gets_no_answer(lab: Lab, message: MessageType) -> None:
    """The probe waits for the host for as long as it likes; the rescind ends it, and that of another is not held up.

    VMBus probes new devices one by one: what is offered meanwhile waits.
    """
    lab.tolerated = FAILED_PROBE
    device(lab).unplug()
    device(lab).plug(ignore=(message,))
    wait_for_unheard(lab, 1)
    other = lab.machine.blob_device(1)
    other.unplug()
    other.plug()
    device(lab).unplug()
    lab.second.wait_channel()
    assert str(FIRST) not in dict(lab.work.nodes())
    device(lab).plug()
    wait_until_served(lab)
    lab.work.exchange_on(lab.node(), 1, 1000, 1000)


# -- during remove


@pytest.mark.parametrize(
    "ignored", [(MessageType.GPADL_TEARDOWN,), (MessageType.CLOSECHANNEL,)], ids=lambda m: m[0].name
)
def test_rescind_of_a_remove_that_gets_no_answer(lab: Lab, ignored: Sequence[MessageType]) -> None:
    """Nobody answers the unbind; the rescind ends it, and the device comes back."""
    device(lab).ignore(*ignored)
    unbinding = lab.work.start("unbind", str(FIRST))
    wait_for_unheard(lab, 1)
    device(lab).unplug()
    assert unbinding.failure() == ""
    device(lab).plug()
    wait_until_served(lab)
    lab.work.exchange_on(lab.node(), 1, 1000, 1000)


def test_rescind_while_the_device_drains(lab: Lab) -> None:
    """The unbind gives the host time to answer, which the rescind cuts short."""
    with STATES["in flight"](lab) as callers:
        unbinding = lab.work.start("unbind_if_there", str(FIRST))
        lab.work.wait_for_nodes(2)
        device(lab).unplug()
        assert unbinding.failure() == ""
        assert [caller.errno() for caller in callers] == [errno.ENODEV] * len(callers)
    device(lab).plug()
    wait_until_served(lab)


# -- at length


def test_rescind_of_a_crowded_device(lab: Lab, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """A hundred requests that are stuck in a hundred files of a process that does not run: nobody waits for it."""
    count, transcript = 100, tmp_path / "transcript"
    lab.first.behaviour = lambda request: True
    crowd = lab.work.start("crowd_with_files", lab.node(), count)
    lab.first.wait_in_flight(count)
    crowd.kill(signal.SIGSTOP)
    with recording(lab.machine, transcript, Header()):
        device(lab).unplug()
        lab.machine.blob_device(1).unplug()
    assert set(dict(lab.work.nodes())) == {str(NULL)}
    crowd.kill(signal.SIGCONT)
    assert crowd.value() == (errno.ENODEV,) * count
    lab.first.behaviour = None
    with transcript.open("rb") as stream:
        released = [
            event for event in Dialogue(Transcript(stream, str(transcript))) if event.decoded.name == "RELID_RELEASED"
        ]
    for what, event in zip(("crowded", "idle"), released, strict=True):
        latency_ms = (event.pair.latency_ns or 0) / 1e6
        request.node.user_properties.append((f"rescind of the {what} device, ms of guest time", latency_ms))
    for index in (0, 1):
        lab.machine.blob_device(index).plug()
    wait_until_served(lab)
    lab.second.wait_channel()


def test_rescinds_under_load(lab: Lab) -> None:
    """Callers see success or ENODEV and nothing else, however often the device goes and comes."""
    pinned = lab.work.pinned_pages()
    load = lab.work.start("openers_until_told", str(FIRST), 6)
    for _ in range(CYCLES):
        device(lab).unplug()
        device(lab).plug()
        lab.work.wait_for_nodes(3)
    lab.work.tell_openers()
    served, gone = outcome(load)
    assert served > 0
    assert gone > 0
    assert lab.work.pinned_pages() == pinned


def wait_for_unheard(lab: Lab, count: int) -> None:
    """Wait until so many of the guest's messages about the first device have gone unheard."""
    until(lambda: device(lab).unheard >= count, f"{count} messages that the host ignores")


def probe_has_failed(lab: Lab, mark: int) -> bool:
    """Whether the kernel has said so since message number `mark`."""
    return any(PROBE_FAILED in message.text for message in lab.guest.dmesg(mark))
