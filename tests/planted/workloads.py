# SPDX-License-Identifier: GPL-2.0-only
"""What the driver is made to do while the judge looks on."""

from __future__ import annotations

from tests.driver.lab import FIRST, Lab


def use(lab: Lab) -> None:
    """Data both ways, a caller that is killed, a device that goes and comes back."""
    node = lab.node()
    for size in (0, 5000, 300_000):
        lab.work.exchange_on(node, 7, size, size)
    lab.first.behaviour = lambda request: True
    waiter = lab.work.start("waiter", node, 8)
    (held,) = lab.first.wait_in_flight(1)
    waiter.kill()
    waiter.wait()
    lab.first.behaviour = None
    lab.first.backend.handle(held)
    lab.work.wait_for_pending(str(FIRST), 0)
    lab.work.unbind(str(FIRST))
    lab.work.bind(str(FIRST))
    lab.work.wait_for_nodes(3)
    lab.work.exchange_on(lab.node(), 9, 5000, 5000)


def fail_allocations(lab: Lab) -> None:
    """Requests in which each allocation fails once."""
    lab.injector().fail_ioctl(lab.node(), 4, 0, 4, touched=True)
