# SPDX-License-Identifier: GPL-2.0-only
"""Where this repository is: the harness always runs from a checkout, for that is where the driver's sources are."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build"
"""What runs leave behind: logs and reports."""
