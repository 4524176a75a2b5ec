# SPDX-License-Identifier: GPL-2.0-only
"""Where this repository is: the package runs from a checkout, for that is where the driver's sources are."""

from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
