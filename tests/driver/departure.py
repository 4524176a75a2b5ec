# SPDX-License-Identifier: GPL-2.0-only
"""Ways for a device to go, and what its users may be in the middle of when it does."""

from __future__ import annotations

import errno
import signal
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyharness.machine.vmbus import VmbusDevice
from tests.driver.lab import FIRST, GUEST_DIRECTORY, Lab, release

GONE = frozenset({errno.ENODEV})
_TIMEOUT_S = 100.0


def device(lab: Lab) -> VmbusDevice:
    """The first device."""
    return lab.machine.blob_device(0)


def late_module(lab: Lab) -> Any:
    """tests/driver/late.py in the guest."""
    lab.guest.push(Path(__file__).with_name("late.py"), f"{GUEST_DIRECTORY}/tests/driver/late.py")
    return lab.guest.module("tests.driver.late")


@dataclass(frozen=True)
class Caller:
    """One ioctl that is under way: how to wait for its errno, and which ones are right."""

    errno: Callable[[], int]
    expected: Collection[int] = GONE


@dataclass(frozen=True)
class Way:
    """How the device goes and how it comes back; both return when it has."""

    go: Callable[[Lab], None]
    come_back: Callable[[Lab], None]


def _rescind(lab: Lab) -> None:
    device(lab).unplug()


def _offer(lab: Lab) -> None:
    device(lab).plug()
    wait_until_served(lab)


def _unbind(lab: Lab) -> None:
    lab.work.unbind(str(FIRST))


def _bind(lab: Lab) -> None:
    lab.work.bind(str(FIRST))
    wait_until_served(lab)


def _rescind_and_unbind(lab: Lab) -> None:
    """Both at once: whichever is second finds the device on its way, or gone."""
    after = len(device(lab).qmp.events)
    device(lab).rescind()
    lab.work.unbind_if_there(str(FIRST))
    device(lab).wait_unplugged(after)


def _unbind_and_rescind(lab: Lab) -> None:
    unbinding = lab.work.start("unbind_if_there", str(FIRST))
    device(lab).unplug()
    assert unbinding.failure() == ""


WAYS = {
    "rescind": Way(_rescind, _offer),
    "unbind": Way(_unbind, _bind),
    "rescind, then unbind": Way(_rescind_and_unbind, _offer),
    "unbind, then rescind": Way(_unbind_and_rescind, _offer),
}


def wait_until_served(lab: Lab) -> None:
    """Wait until the first device has a node, and its VSP an open channel."""
    lab.work.wait_for_nodes(3)
    lab.first.wait_channel()


# -- what is under way: each yields the calls whose end is to be waited for, and lets go after that


def _child(lab: Lab, name: str = "waiter_errno", expected: Collection[int] = GONE) -> Caller:
    return Caller(lab.work.start(name, lab.node()).value, expected)


@contextmanager
def _idle(lab: Lab) -> Iterator[Sequence[Caller]]:
    yield ()


@contextmanager
def _being_made(lab: Lab) -> Iterator[Sequence[Caller]]:
    """The driver sleeps in a page fault on a buffer that it is about to pin."""
    late = late_module(lab)
    memory = late.LateMemory()
    task = lab.guest.spawn(late.request_with, lab.node(), "data", memory)
    memory.wait_for_toucher()

    def result() -> int:
        memory.serve()
        return int(task.result(_TIMEOUT_S))

    yield (Caller(result),)
    memory.close()


@contextmanager
def _queued(lab: Lab) -> Iterator[Sequence[Caller]]:
    """The host does not read its ring, which looks full."""
    outbound = device(lab).outbound
    outbound.read_index = outbound.write_index + 8
    callers = []
    for count in (1, 2, 3):
        callers.append(_child(lab))
        lab.work.wait_for_pending(str(FIRST), count)
    yield callers


@contextmanager
def _in_flight(lab: Lab) -> Iterator[Sequence[Caller]]:
    lab.first.behaviour = lambda request: True
    callers = [_child(lab) for _ in range(4)]
    lab.first.wait_in_flight(len(callers))
    yield callers
    lab.first.behaviour = None


@contextmanager
def _completing(lab: Lab) -> Iterator[Sequence[Caller]]:
    """The answers are on their way: QEMU writes them when the guest runs on, and so does the rescind begin then."""
    lab.first.behaviour = lambda request: True
    callers = [_child(lab, expected={0, errno.ENODEV}) for _ in range(8)]
    lab.first.wait_in_flight(len(callers))
    release(lab.first)
    yield callers


@contextmanager
def _killed(lab: Lab) -> Iterator[Sequence[Caller]]:
    """The caller has died, its pages are still the host's."""
    lab.first.behaviour = lambda request: True
    waiter = lab.work.start("waiter", lab.node(), 70)
    lab.first.wait_in_flight(1)
    waiter.kill()
    waiter.wait()
    yield ()
    lab.first.behaviour = None


@contextmanager
def _stopped(lab: Lab) -> Iterator[Sequence[Caller]]:
    """Its process does not run: nobody may wait for it."""
    lab.first.behaviour = lambda request: True
    waiter = lab.work.start("waiter_errno", lab.node())
    lab.first.wait_in_flight(1)
    waiter.kill(signal.SIGSTOP)

    def result() -> int:
        waiter.kill(signal.SIGCONT)
        return int(waiter.value())

    yield (Caller(result),)
    lab.first.behaviour = None


STATES: dict[str, Callable[[Lab], AbstractContextManager[Sequence[Caller]]]] = {
    "file open and idle": _idle,
    "before it is sent": _being_made,
    "ring full": _queued,
    "in flight": _in_flight,
    "completing": _completing,
    "waiter killed": _killed,
    "waiter stopped": _stopped,
}
