# SPDX-License-Identifier: GPL-2.0-only
"""Snapshots of booted guests: taken once per kind of machine, kept in the cache, restored in a moment.

The guest is stopped when its agent waits for the host's code: before hv_vmbus is loaded, so that every module of a run
is loaded afresh, and nothing of the host's side is part of the snapshot. The clock is set right after each restore.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pyharness.artifacts.cache import GIB, key_of
from pyharness.machine.config import MachineConfig
from pyharness.machine.rundir import RunDir

_RECIPE = "1"  # raise it when what a snapshot holds changes
SNAPSHOT_NEEDS = GIB
"""Disk space in bytes that making one takes, at most."""
CAPABILITIES = ("mapped-ram",)
"""QEMU's migration capabilities, the same for saving and restoring: pages at fixed offsets read fastest."""


@dataclass(frozen=True)
class Snapshot:
    """A finished snapshot in the cache."""

    directory: Path

    @property
    def state(self) -> Path:
        """QEMU's migration file."""
        return self.directory / "state"

    @property
    def console(self) -> Path:
        """What the console said until then."""
        return self.directory / "console.log"


def snapshot_key(config: MachineConfig, command: Sequence[str], run_dir: RunDir) -> str:
    """The key of a machine's snapshot: kernel, QEMU, root image and QEMU's command line, without this run's paths."""
    general = [argument.replace(str(run_dir.path), "RUN") for argument in command]
    return key_of(_RECIPE, config.kernel.key, config.qemu.key, config.root_image.key, *general)
