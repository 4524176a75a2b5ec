# SPDX-License-Identifier: GPL-2.0-only
"""Which lines of the driver, and of those that we change in channel_mgmt.c, have run: gcov in the kernel, gcovr here.

A `Collector` takes what each machine counted shortly before it ends, `Coverage.of` makes numbers and a report of it.
"""

from __future__ import annotations

from pyharness.coverage.collect import Collector
from pyharness.coverage.measure import Coverage
from pyharness.coverage.reasons import MINIMUM_PERCENT, REASONS

__all__ = ["MINIMUM_PERCENT", "REASONS", "Collector", "Coverage"]
