# SPDX-License-Identifier: GPL-2.0-only
"""Static checks of the tree: a table of small plug-ins, grouped by field into modules."""

from __future__ import annotations

from pyharness.checks import ci, compiled, licences, python, series, style, uapi
from pyharness.checks.check import Check

CHECKS: tuple[Check, ...] = (
    # What takes longest is first: it starts first.
    *compiled.CHECKS,
    *series.CHECKS,
    *python.CHECKS,
    *style.CHECKS,
    *licences.CHECKS,
    *uapi.CHECKS,
    *ci.CHECKS,
)
