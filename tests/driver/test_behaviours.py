# SPDX-License-Identifier: GPL-2.0-only
"""Each way in which a host can misbehave, against the driver: every request returns, once, and nothing is left."""

from __future__ import annotations

from pyharness.vsp.behaviours import delay, every, fail, first, hold
from pyharness.vsp.server import VspServer
from pyharness.vsp.wire import Status
from tests.driver.lab import Lab, outcome

SERVED = "served"
CLIENTS, ROUNDS = 6, 6
REQUESTS = CLIENTS * ROUNDS


def test_the_example(lab: Lab, node: str, vsp: VspServer) -> None:
    with vsp.behaving(first(2, hold()), every(3, fail(Status.IO_TIMEOUT)), delay(0.01)) as seen:
        clients = lab.work.start("tally", node, CLIENTS, ROUNDS)
        seen.wait("fail", 3)
        assert len(seen.held) == 2
        assert [row[1] for row in lab.pending()].count("sent") >= 2
        seen.release()
        outcomes = dict(outcome(clients))
        assert outcomes == {SERVED: REQUESTS * 2 // 3, hex(Status.IO_TIMEOUT): REQUESTS // 3}


def test_what_is_held_is_served_at_the_end(lab: Lab, node: str, vsp: VspServer) -> None:
    with vsp.behaving(every(2, hold())) as seen:
        clients = lab.work.start("tally", node, CLIENTS, ROUNDS)
        seen.wait("hold", CLIENTS)
        assert len(lab.pending()) == CLIENTS
    assert dict(outcome(clients)) == {SERVED: REQUESTS}
