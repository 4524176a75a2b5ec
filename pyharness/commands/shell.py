# SPDX-License-Identifier: GPL-2.0-only
"""Open a shell in a guest with the patched hv_vmbus and the driver loaded, and a VSP attached.

Python in the guest finds the client library (`import pyharness.client`). Leave with exit or Ctrl-D; the guest ends.
"""

from __future__ import annotations

import argparse

from pyharness.artifacts.cache import Cache
from pyharness.artifacts.prepare import prepare
from pyharness.commands import options
from pyharness.commands.start import told_accelerator
from pyharness.errors import Exit
from pyharness.machine.terminal import require_terminal
from pyharness.progress import Progress
from pyharness.rig import NODE, rig


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `pyharness shell`."""
    options.add_rig(parser)


def execute(args: argparse.Namespace) -> Exit:
    """Boot, then give the terminal to the guest."""
    require_terminal()
    chosen = options.rig_options(args, options.trace_file(args))
    scenario = chosen.scenario
    progress = Progress()
    accelerator = told_accelerator(progress)
    prepared = prepare(options.chosen_kernel(args), Cache.open(), progress, args.qemu)
    with (
        rig(prepared, accelerator, progress, chosen) as running,
        running.vsp.behaving(*scenario.behaviours),
    ):
        if prepared.kernel.vmlinux:
            socket = running.machine.run_dir.debug_socket
            progress.line(f"what the driver holds, from another terminal: pyharness inspect {socket}")
        if scenario.summary:
            progress.line(f"scenario       {scenario.summary}")
        progress.line(f"{NODE} is served by a VSP with backend {chosen.backend.name}; exit or Ctrl-D ends the guest")
        running.machine.interact()
    return Exit.OK
