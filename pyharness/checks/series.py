# SPDX-License-Identifier: GPL-2.0-only
"""The check of the patches that would be sent."""

from __future__ import annotations

from pyharness import series
from pyharness.checks.check import Check, Uses
from pyharness.checks.context import Context
from pyharness.checks.finding import Finding
from pyharness.checks.needs import GIT, PATCH, PERL


def _series(context: Context) -> list[Finding]:
    return series.findings(context.root, context.artifacts.cache, context.artifacts.progress)


CHECKS = (
    Check(
        "series",
        "the patches for the kernel apply, and are as maintainers ask (docs/series.md)",
        _series,
        inputs=("kernel/*", "uapi/*.h", "pyharness/series/*.py"),
        needs=(GIT, PATCH, PERL),
        uses=(Uses.SOURCES,),
    ),
)
