# SPDX-License-Identifier: GPL-2.0-only
"""Where the parts of this repository are: the harness always runs from a checkout."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
KERNEL = ROOT / "kernel"
UAPI = ROOT / "uapi"
QEMU = ROOT / "qemu"
TESTS = ROOT / "tests"
BUILD = ROOT / "build"
