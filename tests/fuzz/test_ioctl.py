# SPDX-License-Identifier: GPL-2.0-only
"""The ioctl fuzzer against the driver as it is, for about a minute."""

from __future__ import annotations

import pytest

from pyharness.fuzz.corpus import IOCTL_CORPUS, read_corpus
from pyharness.fuzz.ioctl import Fuzzer, Runner, StartRig
from pyharness.fuzz.program import Step

pytestmark = pytest.mark.kernel_has("KCOV", "KASAN")

SEED = 1
EXECUTIONS = 35_000


def test_programs_that_do_anything(start: StartRig) -> None:
    with start() as rig, Runner(rig) as runner:
        fuzzer = Fuzzer(runner, read_corpus(IOCTL_CORPUS), SEED)
        fuzzer.fuzz(lambda progressed: progressed.executions >= EXECUTIONS)
        assert fuzzer.progressed.answered > EXECUTIONS // 20, fuzzer.progressed


def test_what_gets_further_reaches_more(start: StartRig) -> None:
    """The edges that the fuzzer goes by: the same program has the same ones, one that is refused has fewer."""
    refused, served = (Step.of("ioctl", pad=1),), (Step.of("ioctl"),)
    with start() as rig, Runner(rig) as runner:
        first, second, third = runner.coverage([refused, refused, served])
        assert first == second
        assert len(third - first) > len(first)
        # Each that reaches new code runs twice.
        batch = runner.run([refused, served, refused])
        assert [index for index, _ in batch.found] == [0, 1]
        assert (batch.executions, batch.answered) == (5, 2)
