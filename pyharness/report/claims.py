# SPDX-License-Identifier: GPL-2.0-only
"""docs/review.md claims that tests prove something: those tests must be there, and must have passed."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from pyharness import repository
from pyharness.errors import Exit
from pyharness.report.faults import Fault
from pyharness.report.recorder import Outcome, Result

DOCUMENT = repository.ROOT / "docs" / "review.md"

_TEST = re.compile(r"`(tests/[\w/]+\.py::\w+)`")


def claimed(text: str) -> list[str]:
    """The tests that a document names, each once, as pytest names them without their parameters."""
    return list(dict.fromkeys(_TEST.findall(text)))


def unproved(tests: Sequence[str], results: Iterable[Result]) -> Fault | None:
    """What is wrong with the claims after a session of the whole suite: a test that passed nowhere, or did not run."""
    passed = {result.nodeid.partition("[")[0] for result in results if result.outcome is Outcome.PASSED}
    missing = [test for test in tests if test not in passed]
    if not missing:
        return None
    return Fault(
        int(Exit.FAILED),
        f"{DOCUMENT.relative_to(repository.ROOT)} names {len(missing)} tests that did not pass: {missing[0]}",
        detail="\n".join(missing),
    )
