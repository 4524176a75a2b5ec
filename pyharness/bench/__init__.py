# SPDX-License-Identifier: GPL-2.0-only
"""How fast the driver is, against HTTP through the guest's TCP stack: measured in one guest, in turns."""

from __future__ import annotations

from pathlib import Path

RESULTS = Path("bench/bench.json")
"""Where the figures are left, below build/."""
