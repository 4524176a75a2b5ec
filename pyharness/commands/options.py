# SPDX-License-Identifier: GPL-2.0-only
"""Arguments that several subcommands share."""

from __future__ import annotations

import argparse
from pathlib import Path

from pyharness.artifacts.kernels import DEFAULT_KERNEL, KERNELS


def add_kernel(parser: argparse.ArgumentParser) -> None:
    """--kernel NAME."""
    parser.add_argument(
        "--kernel",
        default=DEFAULT_KERNEL,
        metavar="NAME",
        help=f"the guest's kernel, one of {', '.join(KERNELS)} (default: %(default)s)",
    )


def add_qemu(parser: argparse.ArgumentParser) -> None:
    """--qemu BINARY."""
    parser.add_argument(
        "--qemu",
        type=Path,
        metavar="BINARY",
        help="a QEMU of your own with the devices of qemu/, instead of building one",
    )
