# SPDX-License-Identifier: GPL-2.0-only
"""What the commands that start guests begin with."""

from __future__ import annotations

import argparse

from pyharness.artifacts.cache import Cache
from pyharness.artifacts.prepare import Prepared, prepare
from pyharness.commands import options
from pyharness.machine.accel import Accelerator, choose_accelerator
from pyharness.progress import Progress


def told_accelerator(progress: Progress) -> Accelerator:
    """The accelerator, once the user knows which and why."""
    accelerator = choose_accelerator()
    progress.line(f"accelerator    {accelerator.name} ({accelerator.reason})")
    return accelerator


def told_guest(args: argparse.Namespace, cache: Cache, progress: Progress) -> tuple[Accelerator, Prepared]:
    """The accelerator and the chosen kernel's artifacts, once the user knows them. Raises as `prepare`."""
    accelerator = told_accelerator(progress)
    prepared = prepare(options.chosen_kernel(args), cache, progress, args.qemu)
    progress.line(f"kernel         {prepared.kernel.name} {prepared.kernel.release}")
    return accelerator, prepared
