# SPDX-License-Identifier: GPL-2.0-only
"""The hostile host against the driver as it is, for about a minute, and each of its actions alone."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pyharness.fuzz.host import Fuzzer
from pyharness.fuzz.hostile import ACTIONS
from pyharness.fuzz.ioctl import StartRig

pytestmark = pytest.mark.kernel_has("KASAN")

SEED = 1
EXECUTIONS = 7_000


@pytest.fixture
def fuzzer(start: StartRig) -> Iterator[Fuzzer]:
    fuzzer = Fuzzer(start, SEED)
    yield fuzzer
    fuzzer.discard()


def test_host_that_does_anything(fuzzer: Fuzzer) -> None:
    fuzzer.fuzz(lambda progressed: progressed.executions >= EXECUTIONS)
    fuzzer.finish()
    assert fuzzer.progressed.requests > 1000, fuzzer.progressed


def test_each_action_alone(fuzzer: Fuzzer) -> None:
    """Whatever chance leaves out: each action some times, with other numbers."""
    for name in ACTIONS:
        fuzzer.play([(name, number * 7) for number in range(8)])
    fuzzer.finish()
